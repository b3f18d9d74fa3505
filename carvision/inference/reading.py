"""Photos to logits: read lazily, decoded by worker processes, returned in the order given."""

import importlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carvision.data.handover import handed_over
from carvision.data.images import BLANK, BadImage, Preprocessing, read_file
from carvision.data.shards import PackedPhoto
from carvision.data.squares import empty_squares, read_square, square_of
from carvision.errors import InputError
from carvision.inference.predictor import Predictor
from carvision.machine import FORK, num_cores

log = logging.getLogger(__name__)

# A path, a PIL image or a photo of a pack; its box: left, top, right, bottom in pixels, or None for the whole photo
Item = tuple[str | Image.Image | PackedPhoto, Sequence[float] | None]


class Batch(NamedTuple):
    """The logits of a batch of photos. items: as given. logits: {head: float32 (B, C)}, on the CPU. reasons: why a
    photo is unusable, else None; the logits of an unusable photo are meaningless."""

    items: list[Item]
    logits: dict[str, Tensor]
    reasons: list[str | None]


class PhotoBatches(Dataset):
    """Dataset indexed by lists of Items; returns ([uint8 (B, 3, size_px, size_px) per geometry], items, reasons)."""

    def __init__(self, geometries: list[Preprocessing]):
        self.geometries = geometries

    def __getitem__(self, items: list[Item]) -> tuple[list[Tensor], list[Item], list[str | None]]:
        images = [empty_squares(len(items), preprocessing.size_px) for preprocessing in self.geometries]
        reasons: list[str | None] = []
        for row, (photo, box) in enumerate(items):
            reason = None
            try:
                region = None if box is None else np.asarray(box, np.float32)
                data = photo if isinstance(photo, Image.Image) else read_file(photo)
                for preprocessing, batch in zip(self.geometries, images, strict=True):
                    if isinstance(data, bytes):
                        read_square(data, preprocessing, batch[row], region)
                    else:
                        batch[row] = square_of(data, preprocessing, region)
            except BadImage as error:
                reason = str(error)
                for batch in images:
                    batch[row] = BLANK
            reasons.append(reason)
        return images, items, reasons


def predict_items(
    predictor: Predictor,
    items: Iterable[Item],
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Yield the predictor's logits of the photos, batch by batch, in the order of `items`.

    items: read lazily, so there may be any number. num_workers: processes that decode; None: one fewer than there are
    cores, at most 16. device: "auto", or a torch device. Raises InputError for a device that isn't available.
    """
    torch_device = choose_device(device)
    predictor.to(torch_device)
    if torch_device.type == "cuda":
        predictor.to(memory_format=torch.channels_last)
    workers = max(1, min(16, num_cores() - 1)) if num_workers is None else num_workers
    num_bytes = batch_size * sum(3 * preprocessing.size_px**2 for preprocessing in predictor.geometries)
    loader = DataLoader(
        handed_over(PhotoBatches(predictor.geometries), workers, num_bytes),
        sampler=batches_of(items, batch_size),  # consumed only as far as the workers prefetch
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=FORK if workers else None,
        pin_memory=torch_device.type == "cuda",
    )
    for images, batch, reasons in loader:
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
        text = " ".join(str(error).split())[:120]
        raise InputError(f"--device: {name!r} is not auto, cpu or an available device ({text})") from None
