"""carvision: classify cars, flowers or anything else fine-grained in photos."""

TYPE_CHECKING = False  # type checkers assume True; `import carvision` alone imports nothing, not even typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from PIL.Image import Image

    from carvision.inference.model_file import LoadedClassifier

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "LoadedClassifier":
    """Load the trained network of a run's folder, or of a model.safetensors file, in eval mode.

    See carvision.inference.model_file.load. Raises InputError.
    """
    from carvision.inference import model_file

    return model_file.load(path)


def predict(
    model: "LoadedClassifier | str | PathLike[str]",
    photos: "Iterable[str | PathLike[str] | Image]",
    *,
    boxes: "Sequence | None" = None,
    top: int = 1,
    batch_size: int = 32,
    device: str = "auto",
) -> list[dict]:
    """Predict the classes of photos, as plain Python values, in this process alone: for an app or a web service.

    model: from load(), or a path for load(). To predict often, load it once: it is moved to the device and stays there.
    photos: paths or PIL images; a JPEG that Image.open has not decoded yet is decoded at the size needed, as by
    model.transform. boxes: for each photo left, top, right, bottom in pixels of the upright photo, or None for all of
    it; for a model that was trained on boxes (model.crop_to_box).

    Returns a dict for each photo, in order:
        {"path": "a.jpg",                    None for a PIL image
         "make": [{"id": "3", "name": "Audi", "prob": 0.97}, ...],   a list for each head with classes: the first by
                                             the run's decoding rule, then the others by probability, `top` in all
         "speed": 182.0,                     a float, in its unit, for each head that predicts a number
         "error": None}                      why the photo can't be used; the lists are then empty, the numbers None

    Raises InputError for a wrong model, device or argument.
    """
    from carvision.inference import in_process

    return in_process.predict(model, photos, boxes, top, batch_size, device)


# The module carvision.predict is the command `python -m carvision.predict`. Importing it hides the function above;
# called, the module does the same.
