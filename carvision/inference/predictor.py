"""Predict photos with one network, or with the average of several networks and views of each photo.

predict_items reads photos lazily, decodes them in threads, and yields their logits in order.
"""

import importlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, cast

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
from carvision.inference.model_file import LoadedClassifier, decode_on_device, probs_of
from carvision.system.machine import num_cores

log = logging.getLogger(__name__)

VIEWS = ("none", "flip", "crops", "flip_crops")
CROP = 0.875  # side of a view's crop, as a fraction of the image's; timm's usual crop_pct

# A path, a PIL image or a photo of a pack; its box: left, top, right, bottom in pixels, or None for the whole photo
Item = tuple[str | Image.Image | PackedPhoto, Sequence[float] | np.ndarray | None]


class Predictor(nn.Module):
    """Averages the probabilities of several models and views; with one model and one view it is that model.

    models: from carvision.load, with the same classes. tta: test-time augmentation, the views of each photo that are
    averaged: "none", "flip" (adds the mirror image), "crops" (adds the corners and the centre at 7/8 of the side),
    "flip_crops" (both, 12 views in all).

    Each model's probabilities use its own temperature. classes, class_ids, parents, labels, units, decode and probs are
    those of the first model, temperature too; it is 1 where probabilities are averaged. geometries: the distinct
    preprocessings (size, interpolation, resize) of the models.

    Raises InputError for models whose heads or classes differ; the order of the classes may differ.
    """

    models: Sequence[LoadedClassifier]
    normalise: Sequence[Normalise]
    labels: tuple[str, ...]
    classes: dict[str, list[str]]
    class_ids: dict[str, list[str]]
    parents: dict[str, tuple[str, Tensor]]
    temperature: dict[str, float]
    geometries: list[Preprocessing]

    def __init__(self, models: list[LoadedClassifier], tta: str = "none"):
        super().__init__()
        if tta not in VIEWS:
            raise InputError(f"--tta: {tta!r} is not one of {', '.join(VIEWS)}")
        first = models[0]
        self.models, self.tta = cast(Sequence[LoadedClassifier], nn.ModuleList(models)), tta
        self.labels, self.units = first.labels, first.units
        self.classes, self.class_ids, self.parents = first.classes, first.class_ids, first.parents
        self.crop_to_box, self.about = first.crop_to_box, first.about
        for number, model in enumerate(models, start=1):
            if bool(model.crop_to_box) != bool(first.crop_to_box):
                log.warning(
                    "model %d was trained on %s and the first on %s; both get the same images", number,
                    *("boxes" if each.crop_to_box else "whole photos" for each in (model, first)),
                )  # fmt: skip
        self.averages = len(models) > 1 or tta != "none"
        self.temperature = dict.fromkeys(self.classes, 1.0) if self.averages else dict(first.temperature)
        self.decode = partial(decode_on_device, parents=self.parents, rule=first.about["decoding"])
        self.orders = [_class_orders(first, model, number + 1) for number, model in enumerate(models)]
        shapes = [_geometry(model.preprocessing) for model in models]
        distinct = list(dict.fromkeys(shapes))
        self.geometries = [models[shapes.index(shape)].preprocessing for shape in distinct]
        self.geometry_of = [distinct.index(shape) for shape in shapes]
        steps = nn.ModuleList(Normalise(model.preprocessing) for model in models)
        self.normalise = cast(Sequence[Normalise], steps)
        self.eval()

    def probs(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return {head: probabilities float32 (B, C)} for the heads with classes."""
        return probs_of(logits, self.temperature)

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
                for name, values in (logits | probs_of(logits, model.temperature)).items():
                    sums[name] = sums.get(name, 0) + values
                number += 1
        tiny = torch.finfo(torch.float32).tiny
        means = {name: value / number for name, value in sums.items()}
        return {name: mean.clamp(min=tiny).log() if name in self.classes else mean for name, mean in means.items()}

    def _model_logits(self, index: int, images: Tensor) -> dict[str, Tensor]:
        logits = self.models[index](self.normalise[index](images))
        orders = self.orders[index]
        return {
            name: values.float()[:, orders[name]] if name in orders else values.float()
            for name, values in logits.items()
        }


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


def _class_orders(first: LoadedClassifier, model: LoadedClassifier, number: int) -> dict[str, Tensor]:
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


def _geometry(preprocessing: Preprocessing) -> tuple:
    return preprocessing.size_px, preprocessing.interpolation, preprocessing.resize


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


class PhotoBatch(NamedTuple):
    """A batch of photos for a PixelNetwork.

    images: uint8 (B, 3, size_px, size_px) for each geometry. items: as given. reasons: why a photo is unusable, else
    None; its image is then grey.
    """

    images: list[Tensor]
    items: list[Item]
    reasons: list[str | None]


class PhotoBatches:
    """Batches of Items, for Loader."""

    def __init__(self, geometries: list[Preprocessing]):
        self.geometries = geometries

    def __getitem__(self, items: list[Item]) -> PhotoBatch:
        batch = self.begin(items)
        self.read(batch, items, 0)
        return batch

    def begin(self, items: list[Item], pin_memory: bool = False) -> PhotoBatch:
        images = [empty_images(len(items), preprocessing.size_px, pin_memory) for preprocessing in self.geometries]
        return PhotoBatch(images, items, [None] * len(items))

    def read(self, batch: PhotoBatch, items: list[Item], start: int) -> None:
        for row, (photo, box) in enumerate(items, start):
            try:
                region = None if box is None else np.asarray(box, np.float32)
                data = photo if isinstance(photo, Image.Image) else read_file(photo)
                for preprocessing, images in zip(self.geometries, batch.images, strict=True):
                    if isinstance(data, Image.Image):
                        images[row] = decode_image(data, preprocessing, region)
                    else:
                        decode_into(data, preprocessing, images[row], region)
            except BadImage as error:
                batch.reasons[row] = str(error)
                for images in batch.images:
                    images[row] = BLANK


def predict_items(
    predictor: PixelNetwork,
    items: Iterable[Item],
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Yield the predictor's logits of the photos, batch by batch, in the order of `items`.

    items: read lazily, so there may be any number. num_workers: threads that decode; None: one fewer than there are
    cores, at most 16. device: "auto", or a torch device. Raises InputError for a device that isn't available.
    """
    torch_device = choose_device(device)
    predictor.to(torch_device)
    if torch_device.type == "cuda":
        predictor.to(memory_format=torch.channels_last)
    workers = max(1, min(16, num_cores() - 1)) if num_workers is None else num_workers
    photos, batches = PhotoBatches(predictor.geometries), batches_of(items, batch_size)
    for images, batch, reasons in Loader(photos, batches, batch_size, workers, torch_device.type == "cuda"):
        if torch_device.type == "xla":
            images = [_pad_batch(values, batch_size) for values in images]
        logits = predictor([values.to(torch_device, non_blocking=True) for values in images])
        yield Batch(batch, {name: values.cpu()[: len(batch)] for name, values in logits.items()}, reasons)


def _pad_batch(images: Tensor, batch_size: int) -> Tensor:
    """Pad with blank images to the full batch size, as torch-xla compiles one graph per size."""
    blank = torch.full((batch_size - len(images), *images.shape[1:]), BLANK, dtype=images.dtype)
    return torch.cat([images, blank])


def batches_of(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield lists of `batch_size` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, batch_size)):
        yield batch


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
