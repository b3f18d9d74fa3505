"""Grad-CAM (Selvaraju et al. 2017): the parts of a photo that raise the logit of a class, for any backbone of timm.

The map is computed on the backbone's feature map, channels first or last, below the neck; or on its last patches.
Where there is a class token (vision transformers), it is computed on the patches that enter the last attention: after
it, only the class token matters to the logits, and the patches have no gradient.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from carvision.augment.pipeline import Normalise, to_float
from carvision.data.decode import decode_image
from carvision.data.images import BadImage, Preprocessing, reason_of
from carvision.errors import InputError
from carvision.inference.model_file import LoadedClassifier
from carvision.models.backbones import Backbone
from carvision.models.classifier import Classifier
from carvision.models.parts import has_channels_last

MIN_CELLS = 7  # height and width of a map below which the network gets a larger image
MAX_TRIES = 4  # larger sizes; the first is too small where sizes are rounded down in the network
OTHER_CLASS = "; at that size the network predicts another class"
NOTHING = "no part of the photo raises the score of this class"
ATTENTION = ("attn", "attn_out")  # names of its modules in timm
BATCH_SIZE = 8  # transformers keep the results of all their layers for the gradient


class CamMap(NamedTuple):
    """Where a photo raises the logit of a class.

    values: float32 (h, w) in 0..1, of equal parts of the crop that the network saw; 1 is the most, unless nothing in
    the photo raises the logit: then all are 0. size_px: the input size used. note: what to know when reading the map,
    or "".
    """

    values: np.ndarray
    size_px: int
    note: str


def class_activation_maps(
    model: LoadedClassifier,
    photos: Sequence[Image.Image],
    boxes: Sequence[Any] | None,
    head: str,
    codes: Sequence[int],
) -> list[CamMap]:
    """Return the Grad-CAM of a class for each photo: relu(sum over channels k of mean(d logit / d A_k) * A_k), divided
    by its maximum; A (K, h, w) are the activations.

    boxes: left, top, right, bottom in pixels for each photo, or None for the whole; None: the whole of all. codes: of
    the class for each photo, in the order of the head's logits; 0 for a head that estimates a number. A photo may be
    given several times, with several codes. A map of fewer than 7 x 7 cells is computed at a larger input, if the
    network takes one. Runs on the model's device. Raises BadImage for a photo that can't be decoded, InputError for a
    backbone that gives neither a feature map nor patches.
    """
    chosen = choose_input(model)
    device = next(model.parameters()).device
    boxes = [None] * len(photos) if boxes is None else boxes
    maps = []
    for start in range(0, len(photos), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        shown = [(_decoded(photo), box) for photo, box in zip(photos[batch], boxes[batch], strict=True)]
        images = [_stacked(shown, preprocessing).to(device) for preprocessing in chosen.geometries]
        maps += maps_of_images(model, chosen, images, head, codes[batch])
    return maps


def maps_of_images(
    model: LoadedClassifier, chosen: "MapInput", images: Sequence[Tensor], head: str, codes: Sequence[int]
) -> list[CamMap]:
    """Return the maps of class_activation_maps. images: uint8 (B, 3, size_px, size_px) on the model's device for each
    of chosen.geometries; chosen: from choose_input."""
    inputs = [
        Normalise(preprocessing).to(pixels.device)(to_float(pixels))
        for preprocessing, pixels in zip(chosen.geometries, images, strict=True)
    ]
    values, logits = grad_cam(chosen.model, inputs[0], head, torch.tensor(codes, device=inputs[0].device))
    notes = [chosen.note] * len(values)
    if chosen.is_resized and logits.shape[1] > 1:
        with torch.no_grad():
            usual = model(inputs[1])[head].argmax(dim=1)
        other = (logits.argmax(dim=1) != usual).tolist()
        notes = [f"{chosen.note}{OTHER_CLASS}" if is_other else chosen.note for is_other in other]
    maps = []
    for cam, note in zip(values.cpu().numpy(), notes, strict=True):
        note = note if cam.any() else "; ".join(filter(None, [NOTHING, note]))
        maps.append(CamMap(cam, chosen.geometries[0].size_px, note))
    return maps


def grad_cam(model: Classifier, images: Tensor, head: str, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps, float32 (B, h, w) in 0..1, and the head's logits (B, C).

    images: float (B, 3, H, W), normalised. codes: int64 (B,). The model must be in eval mode; its parameters get no
    gradient. Raises InputError as class_activation_maps does.
    """
    attention = last_attention(model.backbone, images[:1])
    with torch.enable_grad():
        if attention is None:
            with torch.no_grad():
                found = model.backbone.forward_features(images)
            if not torch.is_tensor(found):
                raise _no_map(model.backbone)
            leaf = found.detach().requires_grad_()
            logits = model.logits_of(leaf.clone())[head]  # a copy, as the layers above may write into their input
        else:
            with _replaced_input(attention) as leaves:
                logits = model(images)[head]
            [leaf] = leaves
        [gradient] = torch.autograd.grad(logits.gather(1, codes[:, None]).sum(), leaf)
    activations, gradients = (_as_grid(values, model.backbone).float() for values in (leaf.detach(), gradient))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * activations).sum(dim=1).relu()
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return maps / largest.where(largest > 0, 1), logits.detach()


@torch.no_grad()
def last_attention(backbone: Backbone, images: Tensor) -> nn.Module | None:
    """Return the attention that is called last on tokens (B, N, C), if the backbone's output has a class token or no
    patches; None if it is a feature map, or patches alone, all of which matter to the logits."""
    calls: list[nn.Module] = []

    def note_call(module: nn.Module, inputs: tuple) -> None:
        if inputs and torch.is_tensor(inputs[0]) and inputs[0].ndim == 3:
            calls.append(module)

    modules = [module for name, module in backbone.named_modules() if name.rpartition(".")[2] in ATTENTION]
    hooks = [module.register_forward_pre_hook(note_call) for module in modules]
    try:
        features = backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    has_map = torch.is_tensor(features) and (features.ndim == 4 or _num_before_patches(features, backbone) == 0)
    return None if has_map or not calls else calls[-1]


@contextmanager
def _replaced_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Make the module's input a leaf of the graph, so that the gradient ends there. Yields a list that will hold it."""
    leaves: list[Tensor] = []

    def replace_input(_: nn.Module, inputs: tuple) -> tuple:
        leaves.append(inputs[0].detach().requires_grad_())
        return (leaves[-1], *inputs[1:])

    hook = module.register_forward_pre_hook(replace_input)
    try:
        yield leaves
    finally:
        hook.remove()


def _as_grid(values: Tensor, backbone: Backbone) -> Tensor:
    """Return a feature map, or the patches among tokens (B, N, C), as (B, C, h, w)."""
    if values.ndim == 4:
        return values.permute(0, 3, 1, 2) if has_channels_last(backbone) else values
    first = _num_before_patches(values, backbone)
    if first is not None:
        patches = values[:, first:].transpose(1, 2)
        return patches.unflatten(2, [math.isqrt(patches.shape[2])] * 2)
    raise _no_map(backbone)


def _num_before_patches(tokens: Tensor, backbone: Backbone) -> int | None:
    """Return the number of class tokens and registers before the patches; None if the others are no square."""
    if tokens.ndim != 3:
        return None
    others = tokens.shape[1] - math.isqrt(tokens.shape[1]) ** 2
    num = cast(int, getattr(backbone, "num_prefix_tokens", others))
    num_patches = tokens.shape[1] - num
    return num if num_patches > 1 and math.isqrt(num_patches) ** 2 == num_patches else None


def _no_map(backbone: Backbone) -> InputError:
    name = getattr(backbone, "pretrained_cfg", {}).get("architecture") or type(backbone).__name__
    return InputError(f"{name} gives neither a feature map nor square patches, so there is no heat map of it")


class MapInput(NamedTuple):
    """The network to compute maps with, and its images. is_resized: they are larger than in training.

    geometries: of the images for the map and, if they are larger, of those of training, for the usual prediction.
    """

    model: Classifier
    geometries: list[Preprocessing]
    note: str = ""

    @property
    def is_resized(self) -> bool:
        return len(self.geometries) > 1


def choose_input(model: LoadedClassifier) -> MapInput:
    """Return the model's own input size, or the smallest tried that gives a map of MIN_CELLS x MIN_CELLS."""
    size_px = model.preprocessing.size_px
    cells = _num_cells(model, size_px)
    if min(cells) >= MIN_CELLS:
        return MapInput(model, [model.preprocessing])
    coarse = f"{cells[0]} x {cells[1]} cells at {size_px} px"
    larger_px, found = size_px, cells
    for _ in range(MAX_TRIES):
        wanted_px = math.ceil(larger_px * MIN_CELLS / min(found))
        # A whole multiple where the network divides its images into even parts
        for larger_px in (wanted_px, size_px * math.ceil(wanted_px / size_px)):
            with suppress(RuntimeError, AssertionError, ValueError, TypeError):  # layers that are made for one size
                larger = _resized(model, larger_px)
                found = _num_cells(larger, larger_px)
                break
        else:
            break
        if min(found) >= MIN_CELLS:
            note = f"computed at {larger_px} px, as the map has {coarse}"
            return MapInput(larger, [replace(model.preprocessing, size_px=larger_px), model.preprocessing], note)
    return MapInput(model, [model.preprocessing], f"coarse: {coarse}, and the network takes no larger images")


def _num_cells(model: Classifier, size_px: int) -> tuple[int, int]:
    """Return height and width of the map of an image of this size; raises what the network does at a size that does
    not suit it."""
    blank = next(model.parameters()).new_zeros(1, 3, size_px, size_px)
    maps, _ = grad_cam(model, blank, model.labels[0], torch.zeros(1, dtype=torch.int64, device=blank.device))
    return maps.shape[1], maps.shape[2]


def _resized(model: Classifier, size_px: int) -> Classifier:
    """Return the model for images of another size: a copy with interpolated positions if the backbone has any."""
    if not hasattr(model.backbone, "set_input_size"):
        return model
    resized = copy.deepcopy(model)
    with warnings.catch_warnings(action="ignore"):  # of timm's interpolation
        resized.backbone.set_input_size(img_size=(size_px, size_px))  # pyrefly: ignore[not-callable]  timm's transformers
    return resized


def _decoded(photo: Image.Image) -> Image.Image:
    """Decode the whole photo, so that it may be read again: a JPEG that is still closed would be scaled down once."""
    try:
        photo.load()
    except Exception as error:  # each decoder raises its own kinds
        raise BadImage(f"can't be decoded ({reason_of(error)})") from None
    return photo


def _stacked(photos: Sequence[tuple[Image.Image, Any]], preprocessing: Preprocessing) -> Tensor:
    """Return the photos within their boxes, uint8 (B, 3, size_px, size_px)."""
    regions = [None if box is None else np.asarray(box, np.float32) for _, box in photos]
    return torch.stack(
        [decode_image(photo, preprocessing, box) for (photo, _), box in zip(photos, regions, strict=True)]
    )
