"""Networks from normalised images to {head: logits}, in plain torch and timm."""

import sys

from carvision.system.quick_imports import import_timm

if sys.argv[:1] != ["-m"]:  # `python -m carvision.models` imports this first, and --help needs no timm
    import_timm()  # before a module of this package imports it the slow way
