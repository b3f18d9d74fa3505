"""Predict photos in the calling process and return plain Python values, for an app or a web service."""

import os
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np
from PIL import Image

from carvision.errors import InputError
from carvision.inference.model_file import LoadedClassifier, load
from carvision.inference.predictor import Item, PhotoBatches, Predictor, choose_device
from carvision.inference.rows import Layout, rows_of
from carvision.inference.sources import Photo

PhotoInput = str | os.PathLike | Image.Image


def predict(
    model: LoadedClassifier | Predictor | str | os.PathLike,
    photos: Iterable[PhotoInput],
    boxes: Sequence | None = None,
    top: int = 1,
    batch_size: int = 32,
    device: str = "auto",
) -> list[dict]:
    """Predict photos with a trained model; see carvision.predict for the arguments and the result."""
    if isinstance(photos, str | os.PathLike | Image.Image):
        raise InputError(f"photos: {photos!r} is one photo; give a list, [photo]")
    if not all(isinstance(number, Integral) and number >= 1 for number in (top, batch_size)):
        raise InputError(f"top and batch_size: {top!r} and {batch_size!r} are not both whole numbers from 1")
    photos = _check_photos(photos)
    boxes = [None] * len(photos) if boxes is None else _as_list(boxes, "boxes", "a box for each photo")
    if len(boxes) != len(photos):
        raise InputError(f"boxes: {len(boxes)} for {len(photos)} photos; give one for each photo, None for the whole")
    predictor = _as_predictor(model).to(choose_device(device))
    layout = Layout(predictor.class_ids, predictor.labels, top)  # refuses heads named like other columns
    torch_device = next(predictor.parameters()).device
    results = []
    for start in range(0, len(photos), batch_size):
        batch = [
            photo if isinstance(photo, Image.Image) else os.fspath(photo)
            for photo in photos[start : start + batch_size]
        ]
        regions = [None if box is None else _as_box(box) for box in boxes[start : start + batch_size]]
        items: list[Item] = list(zip(batch, regions, strict=True))
        images, _, reasons = PhotoBatches(predictor.geometries)[items]
        logits = {head: values.cpu() for head, values in predictor([part.to(torch_device) for part in images]).items()}
        paths = [None if isinstance(photo, Image.Image) else photo for photo in batch]
        named_photos = [Photo(path or "", "") for path in paths]
        rows = rows_of(predictor, layout, named_photos, [{}] * len(batch), logits, reasons)
        results += [{"path": path, **row.labels, "error": row.error} for row, path in zip(rows, paths, strict=True)]
    return results


def _check_photos(photos: Iterable[PhotoInput]) -> list[PhotoInput]:
    photos = _as_list(photos, "photos", "paths or PIL images")
    for number, photo in enumerate(photos, 1):
        is_path = isinstance(photo, str | os.PathLike) and isinstance(os.fspath(photo), str)
        if not is_path and not isinstance(photo, Image.Image):
            fix = "; open its bytes with PIL.Image.open(io.BytesIO(data))" if isinstance(photo, bytes) else ""
            fix = "; make an image of it with PIL.Image.fromarray" if isinstance(photo, np.ndarray) else fix
            raise InputError(f"photos: number {number} is a {type(photo).__name__}, not a path or a PIL image{fix}")
    return photos


def _as_list(values: Iterable, name: str, of_what: str) -> list:
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name}: a {type(values).__name__} is not a list of {of_what}") from None


def _as_predictor(model: LoadedClassifier | Predictor | str | os.PathLike) -> Predictor:
    if isinstance(model, Predictor):
        return model
    if isinstance(model, str | os.PathLike):
        return Predictor([load(model)])
    if not hasattr(model, "about"):
        raise InputError(f"model: a {type(model).__name__} is not a model of carvision.load, nor the folder of a run")
    return Predictor([model])


def _as_box(box: Sequence[float]) -> np.ndarray:
    try:
        region = np.asarray(box, np.float32)
    except (ValueError, TypeError):
        region = np.zeros(0)
    if region.shape != (4,):
        raise InputError(f"boxes: {box!r} is not left, top, right, bottom in pixels, or None for the whole photo")
    return region
