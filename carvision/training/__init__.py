"""Training: the LightningModule, the builders that turn a configuration into objects, and the run's folder."""
