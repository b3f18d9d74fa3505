"""Training: the LightningModule, what is built from the configuration, and the run's folder. Lightning lives here."""

from carvision.quick_imports import import_lightning

import_lightning()  # before any module here imports it in its own, slow way
