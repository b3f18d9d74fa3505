"""Training: the LightningModule, what is built from the configuration, and the run's folder. Lightning lives here."""
