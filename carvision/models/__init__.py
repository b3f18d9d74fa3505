"""Networks: normalised images -> {head: logits}. Plain torch and timm."""

from carvision.models.quick_timm import import_timm

import_timm()  # before any module here imports it in its own, slow way
