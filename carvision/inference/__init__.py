"""From photos on disk to probabilities, with trained models: what evaluate and predict share. No Lightning here."""
