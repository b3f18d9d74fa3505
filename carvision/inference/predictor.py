"""Predict photos with one network, or with the average of several networks and views of each photo.

predict_items reads photos lazily, decodes them in threads, and yields their logits in order. predict returns plain
values.
"""

import importlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from carvision.augment.pipeline import Normalise, to_float
from carvision.data.decode import decode_image, decode_into, empty_images
from carvision.data.images import BLANK, BadImage, Preprocessing, read_file
from carvision.data.loading.loader import Loader
from carvision.data.packs.read import PackedPhoto
from carvision.data.paths import nfc
from carvision.errors import InputError, one_line
from carvision.inference.rows import Layout, rows_of
from carvision.models.decoding import probs_of
from carvision.system.machine import num_cores

if TYPE_CHECKING:  # which predicts with this module
    from carvision.inference.model_file import LoadedClassifier, PhotoInput

log = logging.getLogger(__name__)

CROP = 0.875  # side of a view's crop, as a fraction of the image's; timm's usual crop_pct
PHOTOS_AT_A_TIME = 32  # by predict

# A path, a PIL image or a photo of a pack; its box: left, top, right, bottom in pixels, or None for the whole photo
Item = tuple[str | Image.Image | PackedPhoto, Sequence[float] | np.ndarray | None]


class Predictor(nn.Module):
    """Averages the probabilities of several models and views; with one model and one view it is that model.

    models: from carvision.load, with the same classes. tta: test-time augmentation, the views of each photo that are
    averaged: "none", "flip" (adds the mirror image), "crops" (adds the corners and the centre at 7/8 of the side),
    "flip_crops" (both, 12 views in all).

    Each model's probabilities use its own temperature. classes, class_ids, parents, labels, about and decode are those
    of the first model, temperature too; it is 1 where probabilities are averaged. geometries: the distinct
    preprocessings (size, interpolation, resize) of the models.

    Raises InputError for models whose heads or classes differ; the order of the classes may differ.
    """

    def __init__(self, models: "list[LoadedClassifier]", tta: str = "none"):
        super().__init__()
        first = models[0]
        self.models, self.tta = cast("Sequence[LoadedClassifier]", nn.ModuleList(models)), tta
        self.labels, self.classes, self.class_ids = first.labels, first.classes, first.class_ids
        self.parents, self.crop_to_box, self.about = first.parents, first.crop_to_box, first.about
        for number, model in enumerate(models, start=1):
            if model.crop_to_box != first.crop_to_box:
                log.warning(
                    "model %d was trained on %s and the first on %s; both get the same images", number,
                    *("boxes" if each.crop_to_box else "whole photos" for each in (model, first)),
                )  # fmt: skip
        self.averages = len(models) > 1 or tta != "none"
        self.temperature = dict.fromkeys(self.classes, 1.0) if self.averages else dict(first.temperature)
        self.orders = [_class_orders(first, model, number) for number, model in enumerate(models, start=1)]
        shapes = [(each.size_px, each.interpolation, each.resize) for each in (model.preprocessing for model in models)]
        distinct = list(dict.fromkeys(shapes))
        self.geometries = [models[shapes.index(shape)].preprocessing for shape in distinct]
        self.geometry_of = [distinct.index(shape) for shape in shapes]
        self.normalise = nn.ModuleList(Normalise(model.preprocessing) for model in models)
        self.eval()

    def probs(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return {head: probabilities float32 (B, C)} for the heads with classes."""
        return probs_of(logits, self.temperature)

    def decode(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return {head: predicted classes int64 (B,)} for the heads with several classes."""
        return self.models[0].decode(logits)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Map images, uint8 (B, 3, size_px, size_px) for each of `geometries`, to {head: float32 logits (B, C)}.

        The logits of averaged probabilities p are log p, whose softmax is p. A regression head returns (B, 1) in its
        unit.
        """
        # torch-xla has no inference mode
        with torch.no_grad() if images[0].device.type == "xla" else torch.inference_mode():
            return self._average_logits(images)

    def _average_logits(self, images: list[Tensor]) -> dict[str, Tensor]:
        if not self.averages:
            return self._model_logits(0, to_float(images[0]))
        sums, number = {}, 0
        for index, model in enumerate(self.models):
            for view in views(to_float(images[self.geometry_of[index]]), self.tta):
                logits = self._model_logits(index, view)
                for name, values in (logits | model.probs(logits)).items():
                    sums[name] = sums.get(name, 0) + values
                number += 1
        tiny = torch.finfo(torch.float32).tiny
        means = {name: value / number for name, value in sums.items()}
        return {name: mean.clamp(min=tiny).log() if name in self.classes else mean for name, mean in means.items()}

    def _model_logits(self, index: int, images: Tensor) -> dict[str, Tensor]:
        logits = {name: values.float() for name, values in self.models[index](self.normalise[index](images)).items()}
        return logits | {name: logits[name][:, order] for name, order in self.orders[index].items()}


def views(images: Tensor, tta: str) -> list[Tensor]:
    """Return the images, float (B, 3, S, S), followed by the views that `tta` adds, all of the same size."""
    found = [images]
    if "crops" in tta:
        size = images.shape[-1]
        side = max(1, round(CROP * size))
        ends = (0, size - side)
        corners = [*((top, left) for top in ends for left in ends), ((size - side) // 2,) * 2]
        parts = [images[..., top : top + side, left : left + side] for top, left in corners]
        found += [interpolate(part, size=(size, size), mode="bilinear", antialias=True) for part in parts]
    if "flip" in tta:
        found += [view.flip(-1) for view in found]
    return found


def _class_orders(first: "LoadedClassifier", model: "LoadedClassifier", number: int) -> dict[str, Tensor]:
    """Return {head: this model's index of each class of the first model} for the heads whose order differs."""
    if set(model.labels) != set(first.labels):
        raise InputError(
            f"--ensemble: model {number} has the heads {', '.join(model.labels)}, the first {', '.join(first.labels)}"
        )
    orders = {}
    for name in first.class_ids:
        ids, other_ids = ([nfc(class_id) for class_id in each.class_ids.get(name, [])] for each in (first, model))
        differing = sorted(set(ids) ^ set(other_ids))
        if differing:
            raise InputError(
                f"--ensemble: model {number} has other classes of {name} than the first (first difference: id "
                f"{differing[0]!r}); give runs that were trained on the same classes"
            )
        if other_ids != ids:
            index_of = {id_: i for i, id_ in enumerate(other_ids)}
            orders[name] = torch.tensor([index_of[id_] for id_ in ids])
    return orders


class PixelNetwork(Protocol):
    """A network for predict_items: a Predictor, or one from pixels to other values, such as an Embedder.

    Called with uint8 images (B, 3, size_px, size_px) for each of `geometries`, returns {name: (B, ...)}.
    """

    geometries: list[Preprocessing]

    def __call__(self, images: list[Tensor]) -> dict[str, Tensor]: ...

    def to(self, *args, **kwargs) -> object: ...


class Batch(NamedTuple):
    """The logits of a batch of photos.

    items: as given. logits: {head: float32 (B, C)}, on the CPU. reasons: why a photo is unusable, else None; its logits
    are then meaningless.
    """

    items: list[Item]
    logits: dict[str, Tensor]
    reasons: list[str | None]


class PhotoBatches:
    """Reads batches of Items for Loader: (images, items, reasons). images: uint8 (B, 3, size_px, size_px) for each
    geometry, grey where a photo is unusable."""

    def __init__(self, geometries: list[Preprocessing]):
        self.geometries = geometries

    def begin(self, items: list[Item], pin_memory: bool) -> tuple[list[Tensor], list[Item], list[str | None]]:
        images = [empty_images(len(items), preprocessing.size_px, pin_memory) for preprocessing in self.geometries]
        return images, items, [None] * len(items)

    def read(self, batch: tuple, items: list[Item], start: int) -> None:
        all_images, _, reasons = batch
        for row, (photo, box) in enumerate(items, start):
            try:
                region = None if box is None else np.asarray(box, np.float32)
                data = photo if isinstance(photo, Image.Image) else read_file(photo)
                for preprocessing, images in zip(self.geometries, all_images, strict=True):
                    if isinstance(data, Image.Image):
                        images[row] = decode_image(data, preprocessing, region)
                    else:
                        decode_into(data, preprocessing, images[row], region)
            except BadImage as error:
                reasons[row] = str(error)
                for images in all_images:
                    images[row] = BLANK


def predict_items(
    network: PixelNetwork,
    items: Iterable[Item],
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Yield the network's logits of the photos, batch by batch, in the order of `items`.

    items: read lazily, so there may be any number. num_workers: threads that decode; None: one fewer than there are
    cores, at most 16; 0: decode in this one. device: "auto", or a torch device. Raises InputError for a device that
    isn't available.
    """
    torch_device = choose_device(device)
    network.to(torch_device)
    if torch_device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    workers = max(1, min(16, num_cores() - 1)) if num_workers is None else num_workers
    rest = iter(items)
    batches = iter(lambda: list(itertools.islice(rest, batch_size)), [])
    photos = PhotoBatches(network.geometries)
    for images, batch, reasons in Loader(photos, batches, batch_size, workers, torch_device.type == "cuda"):
        if torch_device.type == "xla":
            images = [_pad_batch(values, batch_size) for values in images]
        logits = network([values.to(torch_device, non_blocking=True) for values in images])
        yield Batch(batch, {name: values.cpu()[: len(batch)] for name, values in logits.items()}, reasons)


def _pad_batch(images: Tensor, batch_size: int) -> Tensor:
    """Pad with blank images to the full batch size, as torch-xla compiles one graph per size."""
    blank = torch.full((batch_size - len(images), *images.shape[1:]), BLANK, dtype=images.dtype)
    return torch.cat([images, blank])


def choose_device(name: str) -> torch.device:
    """Return the torch device of that name. "auto": the first GPU, else the CPU. "xla": torch-xla's, a TPU core.

    Raises InputError for a device that isn't available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name == "xla":
            importlib.import_module("torch_xla")  # registers the device with torch
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:
        text = one_line(error, 120)
        raise InputError(f"--device: {name!r} is not auto, cpu or an available device ({text})") from None


def predict(model: "LoadedClassifier", photos: "Iterable[PhotoInput]", boxes: Iterable | None, top: int) -> list[dict]:
    """Predict photos in this thread: see LoadedClassifier.predict."""
    if isinstance(photos, str | os.PathLike | Image.Image):
        raise InputError(f"photos: {photos!r} is one photo; give a list, [photo]")
    if not isinstance(top, Integral) or top < 1:
        raise InputError(f"top: {top!r} is not a whole number from 1")
    photos = list(photos)
    boxes = [None] * len(photos) if boxes is None else list(boxes)
    if len(boxes) != len(photos):
        raise InputError(f"boxes: {len(boxes)} for {len(photos)} photos; give one for each photo, None for the whole")
    for number, photo in enumerate(photos, 1):
        if not isinstance(photo, str | os.PathLike | Image.Image):
            raise InputError(
                f"photos: number {number} is a {type(photo).__name__}, not a path or a PIL image; make one of an array "
                "with PIL.Image.fromarray, of bytes with PIL.Image.open(io.BytesIO(data))"
            )
    items = [photo if isinstance(photo, Image.Image) else os.fspath(photo) for photo in photos]
    regions = [None if box is None else _region_of(box) for box in boxes]
    predictor, device = Predictor([model]), str(next(model.parameters()).device)
    layout = Layout(model.class_ids, model.labels, top)  # refuses heads named like other columns
    results = []
    for batch in predict_items(predictor, zip(items, regions, strict=True), device, PHOTOS_AT_A_TIME, num_workers=0):
        paths = [photo if isinstance(photo, str) else None for photo, _ in batch.items]
        unnamed, unknown = [""] * len(paths), [{}] * len(paths)
        rows = rows_of(predictor, layout, unnamed, unknown, batch.logits, batch.reasons)
        results += [{"path": path, **row.labels, "error": row.error} for path, row in zip(paths, rows, strict=True)]
    return results


def _region_of(box: Sequence[float]) -> np.ndarray:
    try:
        region = np.asarray(box, np.float32)
    except (ValueError, TypeError):
        region = np.zeros(0)
    if region.shape != (4,):
        raise InputError(f"boxes: {box!r} is not left, top, right, bottom in pixels, or None for the whole photo")
    return region
