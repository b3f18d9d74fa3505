"""A model that is served: what the thread of the network computes for it, and the answers as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carvision.data.images import Preprocessing
from carvision.data.paths import nfc
from carvision.errors import InputError
from carvision.explanation.cam import CamMap, MapInput, choose_input, maps_of_images
from carvision.inference.description import OperatingPoint
from carvision.inference.model_file import LoadedClassifier
from carvision.inference.predictor import Predictor
from carvision.inference.rows import Layout, Row, rows_of
from carvision.serving.limits import ApiError
from carvision.serving.model.engine import Network, choose_network
from carvision.serving.model.neighbours import NeighbourIndex
from carvision.serving.photos import Seen

if TYPE_CHECKING:  # what only some requests need is imported by the first of them, as it imports pandas and more
    from carvision.embedding.embed import Embedder

WANTED_ACCURACY = 0.95  # of the answers that count as sure


class ServedModel:
    """One model, or several whose probabilities are averaged. Heat maps, embeddings, card and metrics are the first's.

    name: by which requests choose it. folders: of the runs. warm_up and run are called in the network's thread.
    """

    network: Network
    map_input: MapInput | None = None

    def __init__(self, name: str, folders: Sequence[Path], models: Sequence[LoadedClassifier], device: torch.device):
        self.name, self.folder, self.models, self.device = name, folders[0], list(models), device
        self.model = self.models[0]
        self.predictor = Predictor(self.models)
        self.index = NeighbourIndex(self.folder)
        self.embedders: dict[tuple[str, bool], Embedder] = {}
        self.parent_ids = {
            child: {id_: self.model.class_ids[parent][code] for id_, code in
                    zip(self.model.class_ids[child], codes.tolist(), strict=True)}
            for child, (parent, codes) in self.model.parents.items()
        }  # fmt: skip
        points = self.model.about.get("operating_points", {}) if len(self.models) == 1 else {}
        self.operating_points = {head: of_head for head, of_head in points.items() if head in self.model.classes}
        self.thresholds = {head: default_threshold(of_head) for head, of_head in self.operating_points.items()}
        self.described: dict[str, Any] | None = None

    @property
    def geometries(self) -> list[Preprocessing]:
        return self.predictor.geometries

    @property
    def embedding_width(self) -> int:
        layers = self.model.embedding if self.model.last_layer == "embedding" else self.model.trunk
        return layers.num_outputs

    def warm_up(self, engine: str) -> None:
        """Build the network in an engine, and compute its first batches. Raises InputError."""
        self.network = choose_network(self.models, self.device, engine)

    def run(self, kind: str, contents: Sequence[Any]) -> Sequence[Any]:
        """Compute jobs: their results, in order."""
        match kind:
            case "predict":
                return self._predict(contents)
            case "explain":
                return [self._explain(*content) for content in contents]
            case "map_input":
                return [self._choose_map_input() for _ in contents]
            case _:
                return self._embed(kind, contents)

    def _predict(self, contents: Sequence[tuple[list[Tensor], int]]) -> list[list[Row]]:
        """Return the rows of each (images for each geometry, top), with at least `top` classes a head."""
        logits = self.network([torch.cat(values) for values in zip(*(images for images, _ in contents), strict=True)])
        num = len(next(iter(logits.values())))
        layout = Layout({}, (), max(top for _, top in contents))
        rows = rows_of(self.predictor, layout, [""] * num, [{}] * num, logits, [None] * num)
        return split(rows, [len(images[0]) for images, _ in contents])

    def _explain(
        self, images: list[Tensor], map_images: list[Tensor], head: str, code: int | None
    ) -> tuple[CamMap, int]:
        """Return the map of a photo, and the code of its class: the given one, else the predicted one."""
        if code is None:
            logits = self.network(images)
            decoded = self.predictor.decode(logits)
            code = int(decoded[head][0]) if head in decoded else 0
        on_device = [values.to(self.device) for values in map_images]
        [cam] = maps_of_images(self.model, self._choose_map_input(), on_device, head, [code])
        return cam, code

    def _choose_map_input(self) -> MapInput:
        if self.map_input is None:
            self.map_input = choose_input(self.model)
        return self.map_input

    def _embed(self, kind: str, contents: Sequence[list[Tensor]]) -> list[np.ndarray]:
        """Return float32 (N, D) of each content. kind: "embed", or "neighbours" with the layer of the index."""
        from carvision.embedding.embed import Embedder

        layer, unit_length = "auto", True
        if kind == "neighbours":
            stored = self.index.load().about
            layer, unit_length = stored.get("layer", "auto"), stored.get("unit_length", True)
        if (layer, unit_length) not in self.embedders:
            embedder = Embedder(self.model, self.model.preprocessing, layer, unit_length)
            self.embedders[layer, unit_length] = embedder.to(self.device)
        geometry = self.predictor.geometry_of[0]
        pixels = torch.cat([images[geometry] for images in contents]).to(self.device)
        values = self.embedders[layer, unit_length]([pixels])["embeddings"].cpu().numpy()
        return split(values, [len(images[geometry]) for images in contents])

    def answer(self, seen: Seen, row: Row | None, top: int) -> dict[str, Any]:
        """Return the prediction of a photo; row: None for one that can't be used."""
        error = seen.error
        if row is not None and row.error:
            error = ApiError("unusable_photo", row.error)
        found: dict[str, Any] = {
            "width": seen.width, "height": seen.height, "box": seen.box, "part": seen.part, "heads": {},
            "consistent": None, "sure": {}, "error": None if error is None else error.as_dict(),
        }  # fmt: skip
        if row is None or error is not None:
            return found
        for head, value in row.labels.items():
            if isinstance(value, list):
                found["heads"][head] = value[:top]
                threshold = self.thresholds.get(head)
                found["sure"][head] = None if threshold is None else value[0]["prob"] >= threshold
            else:
                unit = self.model.about["labels"][head].get("unit", "")
                found["heads"][head] = {"value": value, "unit": unit}
        if self.parent_ids:
            found["consistent"] = all(
                parent_of[row.labels[child][0]["id"]] == row.labels[self.model.parents[child][0]][0]["id"]
                for child, parent_of in self.parent_ids.items()
            )
        return found

    def explanation(self, seen: Seen, head: str, cam: CamMap, code: int) -> dict[str, Any]:
        """Return a heat map; its values are of equal parts of seen.part, row by row."""
        rows, columns = cam.values.shape
        return {
            "model": self.name, "head": head, "class": self.class_of(head, code), "part": seen.part,
            "rows": rows, "columns": columns,
            "values": np.round(cam.values.astype(float), 4).tolist(), "note": cam.note,
        }  # fmt: skip

    def class_of(self, head: str, code: int) -> dict[str, str] | None:
        """Return {"id", "name"} of a class; None for a head that estimates a number."""
        if head not in self.model.classes:
            return None
        return {"id": self.model.class_ids[head][code], "name": self.model.classes[head][code]}

    def code_of(self, head: str, id_: str) -> int:
        """Return the code of the class with this id. Raises ApiError."""
        ids = [nfc(each) for each in self.model.class_ids.get(head, [])]
        if nfc(id_) not in ids:
            raise ApiError("invalid_value", f"class: {id_[:100]!r} is not the id of a class of {head}")
        return ids.index(nfc(id_))

    def head_of(self, head: str | None) -> str:
        """Return the head to explain: the wanted one, else the last with classes. Raises ApiError."""
        if head is None:
            return [*self.model.labels, *self.model.classes][-1]
        if head not in self.model.labels:
            raise ApiError("invalid_value", f"head: {head[:100]!r} is not one of {', '.join(self.model.labels)}")
        return head

    def describe(self) -> dict[str, Any]:
        """Return what GET /v1/model reports of this model."""
        from carvision.serving.model import about

        if self.described is None:
            splits, hint = self.folder / "splits.csv", None
            if self.index.folder is None:
                hint = f"carvision embed {self.name}"
            described = self.model.about.get("config", {}).get("data", {})
            self.described = {
                "name": self.name,
                "title": f"{described.get('name') or 'photos'}, {self.model.description['backbone']}",
                "backbone": self.model.description["backbone"],
                "input_px": self.model.preprocessing.size_px,
                "crop_to_box": self.model.crop_to_box,
                "decoding": self.model.about["decoding"],
                "engine": self.network.engine,
                "heads": about.heads_of(self.model),
                "metrics": about.metrics_of(self.model, splits),
                "operating_points": self.operating_points,
                "neighbours": {"available": hint is None, "hint": hint},
                "card": about.card_of(self.model, splits),
                "limits": about.LIMITS,
            }
        return self.described

    def classes(self, head: str, text: str, offset: int, limit: int) -> dict[str, Any]:
        """Return classes of a head, see about.find_classes. Raises ApiError."""
        from carvision.serving.model import about

        try:
            return about.find_classes(self.model, head, text, offset, limit)
        except InputError as error:
            raise ApiError("not_found", str(error)) from None


def split(values: Any, counts: Sequence[int]) -> list[Any]:
    """Return slices of these lengths, in order."""
    ends = np.cumsum(counts).tolist()
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def default_threshold(points: Sequence[OperatingPoint]) -> float | None:
    """Return the threshold of the operating point of WANTED_ACCURACY, else of the most accurate one below."""
    reached = [point for point in points if point["accuracy"] <= WANTED_ACCURACY]
    return max(reached, key=lambda point: point["accuracy"])["threshold"] if reached else None
