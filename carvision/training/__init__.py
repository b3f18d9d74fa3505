"""Training: the LightningModule, the builders that turn a configuration into objects, and the run's folder."""

from carvision.system.quick_imports import import_lightning

import_lightning()  # before any module here imports it in its own, slow way
