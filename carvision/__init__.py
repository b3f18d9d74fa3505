"""carvision: tell cars, flowers or anything else fine-grained apart in photos."""

TYPE_CHECKING = False  # which type checkers take for true; `import carvision` alone imports nothing, typing included
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from PIL.Image import Image

    from carvision.inference.model_file import LoadedClassifier

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "LoadedClassifier":
    """The trained network of a run's folder, or of a model.safetensors file, in eval mode: `portable.load`."""
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
    """The classes of photos, as plain Python values, in this process alone: for an app or a web service.

    model: of load(), or a path as load() takes it; load it once where predict is called often, it is then moved to
    the device and stays there. photos: list of paths or PIL images; of one that Image.open has not decoded yet, a JPEG
    is decoded at the size needed, as model.transform does. boxes: for each photo left, top, right, bottom in pixels of
    the upright photo, or None for the whole of it; for a model that was trained on boxes (model.crop_to_box).

    A dict a photo, in their order:
        {"path": "a.jpg",                    None of a PIL image
         "make": [{"id": "3", "name": "Audi", "prob": 0.97}, ...],   a list for each head with classes: the first by
                                             the run's decoding rule, then the others by probability, `top` in all
         "speed": 182.0,                     a float, in its unit, for each head that estimates a number
         "error": None}                      why the photo can't be used; the lists are then empty, the numbers None

    Raises InputError for a model, a device or arguments that are wrong.
    """
    from carvision.inference import in_process

    return in_process.predict(model, photos, boxes, top, batch_size, device)


# The module carvision.predict is the command `python -m carvision.predict`. An import of it puts the module in the
# place of the function above; called, it does the same.
