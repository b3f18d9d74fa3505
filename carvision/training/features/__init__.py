"""Features of frozen backbones: cached, and used for linear-probe initialisation."""
