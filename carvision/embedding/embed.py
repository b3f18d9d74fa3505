"""Embed photos: open a network and its photos, compute embeddings, write them."""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from carvision.augment.pipeline import Normalise, to_float
from carvision.config.compose import compose_alone, plain_config
from carvision.data.images import Preprocessing, none_usable
from carvision.data.table import Table
from carvision.embedding.store import VALUES, Embeddings, write_index
from carvision.errors import InputError
from carvision.evaluation.predict import predict_rows, rank_and_world_size
from carvision.evaluation.select import DataChoice, compose_data, read_photos, select_split, split_data
from carvision.files.arrays import ArrayWriter
from carvision.files.folders import output_folder
from carvision.files.log import start_log
from carvision.inference import model_file
from carvision.inference.predictor import predict_items
from carvision.models.classifier import Classifier
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)


class Embedder(nn.Module):
    """Maps images to embeddings, as a Predictor maps them to logits; both are networks for predict_items.

    layer: as in Classifier.embed. unit_length: normalise embeddings to length 1, so that their product is the cosine.
    Raises InputError for a layer that the network lacks.
    """

    def __init__(self, model: Classifier, preprocessing: Preprocessing, layer: str = "auto", unit_length: bool = True):
        super().__init__()
        available = ["pooled", "trunk", *(["embedding"] if model.embedding.num_layers else [])]
        self.layer = model.last_layer if layer == "auto" else layer
        if self.layer not in available:
            raise InputError(f"--layer: the network has no {layer} layers; use one of {', '.join(available)}")
        self.model, self.geometries, self.unit_length = model, [preprocessing], unit_length
        self.normalise = Normalise(preprocessing)
        self.eval()

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Map [uint8 (B, 3, size_px, size_px)] to {"embeddings": float32 (B, D)}."""
        # torch-xla has no inference mode
        with torch.no_grad() if images[0].device.type == "xla" else torch.inference_mode():
            values = self.model.embed(self.normalise(to_float(images[0])), self.layer).float()
            return {"embeddings": nn.functional.normalize(values, dim=1) if self.unit_length else values}


@dataclass(frozen=True)
class Source:
    """A network and the data whose photos it embeds.

    chosen: the data group, and how it relates to the run's own. folder: the run's; None for a backbone without a run.
    about: description of network and data for the report, plain values.
    """

    embedder: Embedder
    chosen: DataChoice
    device: str
    folder: Path | None
    about: dict

    @property
    def splits_files(self) -> list[Path]:
        """The run's splits.csv, which lists its own training photos; it may be missing."""
        return [] if self.folder is None else [self.folder / "splits.csv"]

    def read_table(self, split: str) -> Table:
        """Return all photos of the data with all their labels, split as in the run if they are its own.

        Photos of a pack are ordered by shard, so that each shard is fetched once. split: the one required; "all" also
        accepts photos without a split, and data that can't be split.
        """
        table, as_run = read_photos(self.chosen, ["viewpoint"], split, (self.folder or Path()) / "splits.csv")
        if split == "all" and as_run is None:
            try:
                splits = split_data(table, self.chosen.data).rows.set_index("path")["split"]
                table = table.with_split(table.rows["path"].map(splits).fillna(""))
            except InputError as error:
                log.info("%s; so the photos are in no split", error)
        if table.packed is None:
            return table
        return replace(table, rows=table.rows.iloc[table.packed.shard_by_shard()].reset_index(drop=True))

    def embed(self, table: Table) -> Embeddings:
        """Embed the photos, in memory. Unreadable photos are left out if data.on_bad_image permits it."""
        blocks, good = [], []
        for block, readable in self.blocks(table):
            blocks.append(block[readable])
            good.append(readable)
        return Embeddings(np.concatenate(blocks), table.select(np.concatenate(good)))

    def blocks(self, table: Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (float32 (B, D), bool (B,): readable) for all photos in the table's order.

        Raises InputError for an unreadable photo if data.on_bad_image is "error", else only if none is readable; single
        ones are logged.
        """
        num_bad, first = 0, ("", "")
        rows, data = np.arange(len(table)), self.chosen.data
        for batch in predict_rows(self.embedder, table, rows, data, self.device, "embedding"):
            for (photo, _), reason in zip(batch.items, batch.reasons, strict=True):
                if reason:
                    num_bad += 1
                    first = first if num_bad > 1 else (str(photo), reason)
                    log.warning("%s: %s; left out", photo, reason)
            yield batch.logits["embeddings"].numpy(), np.array([reason is None for reason in batch.reasons])
        if num_bad == len(table):
            raise none_usable(" and ".join(filter(None, table.rows["split"].unique())) or "all", num_bad, *first)
        if num_bad:
            log.warning("%d of %s photos could not be read and are left out", num_bad, f"{len(table):,}")

    def embed_files(self, files: list[Path], box: list[float] | None = None) -> np.ndarray:
        """Embed whole photos, or the box (left, top, right, bottom in pixels) of each, as float32 (N, D).

        Raises InputError for an unreadable photo.
        """
        if self.chosen.data["crop_to_box"] and box is None:
            log.warning("the network was trained on the boxes of its photos, and here whole photos are used (--box)")
        values, items = [], ((str(file), box) for file in files)
        for batch in predict_items(self.embedder, items, self.device, self.chosen.data["batch_size"], num_workers=0):
            for (photo, _), reason in zip(batch.items, batch.reasons, strict=True):
                if reason:
                    raise InputError(f"--query: {photo}: {reason}")
            values.append(batch.logits["embeddings"].numpy())
        return np.concatenate(values)


def open_source(options: argparse.Namespace) -> Source:
    """Load the network and compose the data. options: of options.parse.

    Raises InputError for a network or data that don't exist or don't fit.
    """
    if rank_and_world_size()[1] > 1:
        raise InputError("torchrun: this command runs in one process; start it without torchrun")
    if options.run is not None:
        wrong = next((override for override in options.overrides if override.lstrip("+~").startswith("model")), None)
        if wrong:
            raise InputError(f"{wrong}: the network is the run's; model.<key> belongs to --backbone")
        model, folder = model_file.load(options.run), model_file.find_model(options.run)[0]
        chosen = compose_data(model.about, options.overrides)
        preprocessing, what = model.preprocessing, str(options.run)
    else:
        model, preprocessing, chosen = _load_backbone(options.backbone, options.weights, options.overrides)
        what, folder = options.backbone, None
    embedder = Embedder(model, preprocessing, options.layer, not options.raw)
    about = {"network": what, "weights": None if options.run else options.weights, "layer": embedder.layer}
    about |= {"unit_length": not options.raw, "crop_to_box": chosen.data["crop_to_box"]}
    return Source(embedder, chosen, options.device, folder, about)


def _load_backbone(name: str, weights: str, overrides: list[str]) -> tuple[Classifier, Preprocessing, DataChoice]:
    """Return the network without heads, its preprocessing, and the data, configured as for training."""
    from carvision.training.build import build_classifier, build_preprocessing  # which imports Lightning

    composed = compose_alone("train", overrides)
    composed.model.backbone, composed.model.weights = name, weights
    cfg = plain_config(composed)
    return build_classifier(cfg, {}).eval(), build_preprocessing(cfg), DataChoice(cfg["data"])


def run(options: argparse.Namespace) -> Path:
    """Embed the photos and return the folder written. options: of carvision.embed."""
    keep_freed_memory()
    start_log(None)
    source = open_source(options)
    table = select_split(source.read_table(options.split), options.split)
    log.info("%s: %s photos, layer %s", table.name, f"{len(table):,}", source.embedder.layer)
    readable = []
    with output_folder(options.out, (source.folder or Path()) / "embeddings", "embeddings") as folder:
        with ArrayWriter(folder / VALUES, options.dtype) as values:
            for block, good in source.blocks(table):
                values.append(block[good])
                readable.append(good)
            values.finish()
        write_index(folder, table.select(np.concatenate(readable)), {**source.about, "split": options.split})
    num, width = values.shape
    log.info("%s embeddings, %d-dimensional, %.1f MB", f"{num:,}", width, (folder / VALUES).stat().st_size / 1e6)
    return folder
