"""Networks: normalised images -> {head: logits}. Plain torch and timm."""

import sys

from carvision.system.quick_imports import import_timm

if sys.argv[:1] != ["-m"]:  # Python imports this before `python -m carvision.models`, which may have no need of it
    import_timm()  # before any module here imports it in its own, slow way
