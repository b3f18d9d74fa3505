"""Predictor: one network, or the average of several and of several views of a photo, from pixels to probabilities."""

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from carvision.data.images import Preprocessing
from carvision.data.photo_paths import nfc
from carvision.data.transforms import Normalise, to_float
from carvision.errors import InputError
from carvision.models.classifier import Classifier
from carvision.portable import decode_on_device, probs_of

log = logging.getLogger(__name__)

VIEWS = ("none", "flip", "crops", "flip_crops")
CROP = 0.875  # side of a view's crop, as a share of the picture's; timm's usual crop_pct


class Predictor(nn.Module):
    """models: as carvision.load gives them, for the same classes. tta: which views of each photo are averaged, too:
    "flip" its mirror image, "crops" its corners and centre at 7/8 of the side, "flip_crops" both, 12 views in all.

    What is averaged are the probabilities, each model's by its own temperature. classes, class_ids, parents, labels,
    units, decode and probs are as of a model, temperature too; it is 1 where probabilities were averaged.
    geometries: the distinct ways in which the models want a photo cropped and scaled.

    Raises InputError for models whose heads or classes differ; the order of the classes may.
    """

    def __init__(self, models: list[Classifier], tta: str = "none"):
        super().__init__()
        if tta not in VIEWS:
            raise InputError(f"--tta: {tta!r} is not one of {', '.join(VIEWS)}")
        first = models[0]
        self.models, self.tta = nn.ModuleList(models), tta
        self.labels, self.units = first.labels, first.units
        self.classes, self.class_ids, self.parents = first.classes, first.class_ids, first.parents
        self.crop_to_box, self.about = first.crop_to_box, first.about
        for number, model in enumerate(models, start=1):
            if bool(model.crop_to_box) != bool(first.crop_to_box):
                log.warning(
                    "model %d was trained on %s and the first on %s; both get the same pictures", number,
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
        self.normalise = nn.ModuleList(Normalise(model.preprocessing) for model in models)
        self.eval()

    def probs(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """{head: float32 (B, C)} of the heads with classes."""
        return probs_of(logits, self.temperature)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        """images: uint8 (B, 3, size_px, size_px) for each of `geometries` -> {head: float32 logits (B, C)}.

        Of averaged probabilities p the logits are log p, whose softmax is p. (B, 1) in its unit for a number.
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
    """The pictures, float (B, 3, S, S), and what `tta` adds to them, of the same size."""
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


def _class_orders(first: Classifier, model: Classifier, number: int) -> dict[str, Tensor]:
    """{head: for each class of the first model its place in this one}, of the heads where they differ."""
    if set(model.labels) != set(first.labels):
        raise InputError(
            f"--ensemble: model {number} has the heads {', '.join(model.labels)}, the first {', '.join(first.labels)}"
        )
    orders = {}
    for name in first.class_ids:
        ids, other_ids = ([nfc(class_id) for class_id in each.class_ids.get(name, [])] for each in (first, model))
        odd = sorted(set(ids) ^ set(other_ids))
        if odd:
            raise InputError(
                f"--ensemble: model {number} tells other classes of {name} apart than the first (first difference: id "
                f"{odd[0]!r}); give runs that were trained on the same classes"
            )
        if other_ids != ids:
            index_of = {id_: i for i, id_ in enumerate(other_ids)}
            orders[name] = torch.tensor([index_of[id_] for id_ in ids])
    return orders


def _geometry(preprocessing: Preprocessing) -> tuple:
    return preprocessing.size_px, preprocessing.interpolation, preprocessing.resize
