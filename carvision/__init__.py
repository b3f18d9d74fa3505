"""carvision: classify cars, flowers or anything else fine-grained in photos."""

TYPE_CHECKING = False  # type checkers assume True; `import carvision` alone imports nothing, not even typing
if TYPE_CHECKING:
    from os import PathLike

    from carvision.inference.model_file import LoadedClassifier

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "LoadedClassifier":
    """Load the trained network of a run's folder, or of a model.safetensors file, in eval mode.

    See carvision.inference.model_file.load. Raises InputError.
    """
    from carvision.inference import model_file

    return model_file.load(path)
