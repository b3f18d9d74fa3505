"""Turn photos on disk into probabilities with trained models; shared by evaluate and predict. Imports no Lightning."""
