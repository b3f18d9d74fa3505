"""carvision: tell cars, flowers or anything else fine-grained apart in photos."""

__version__ = "0.1.0"


def load(path):
    """The trained network of a run's folder, or of a model.safetensors file, in eval mode: `portable.load`."""
    from carvision import portable  # not above: `import carvision` alone loads no torch

    return portable.load(path)
