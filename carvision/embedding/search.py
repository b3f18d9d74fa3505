"""Search queries in a gallery: the photos of both, their embeddings, and the nearest neighbours."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.table import UNKNOWN, Classes, Table
from carvision.embedding.embed import Source, open_source
from carvision.embedding.store import ABOUT, Embeddings, read_embeddings
from carvision.errors import InputError
from carvision.evaluation.select import notes_on_seen_photos, select_split
from carvision.inference.predictor import choose_device
from carvision.metrics.neighbours import concatenate_blocks, nearest, num_relevant, query_blocks, query_metrics, vote

log = logging.getLogger(__name__)

LISTED = 10  # neighbours of each query in neighbours.csv, and on the sheet
COPIED_KEYS = ("network", "weights", "layer", "unit_length", "crop_to_box")  # from embeddings.json to retrieval.json


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, and the gallery in which they are searched: embeddings of photos whose class of `label` is known.

    own: int (Q,), the query's own row of the gallery, which does not count as found; -1: none. about: description for
    retrieval.json, plain values.
    """

    queries: Embeddings
    gallery: Embeddings
    label: str
    own: np.ndarray
    about: dict

    @property
    def classes(self) -> Classes:
        return self.queries.table.class_labels[self.label]

    @property
    def query_codes(self) -> np.ndarray:
        return self.queries.table.rows[self.label].to_numpy()

    @property
    def gallery_codes(self) -> np.ndarray:
        return self.gallery.table.rows[self.label].to_numpy()


@dataclass(frozen=True)
class PhotoCollection:
    """The photos of the data, embedded on demand or read from saved embeddings.

    embed: returns the embeddings of some of them. source: None for saved embeddings. folder: of the model or the saved
    embeddings, below which results are written. about, notes: for the report. packed: the photos are in a pack, which
    saved embeddings can't open.
    """

    table: Table
    embed: Callable[[Table], Embeddings]
    source: Source | None
    folder: Path
    about: dict
    notes: list[str]
    packed: bool = False


def open_photos(options: argparse.Namespace) -> PhotoCollection:
    """Open the photos of a run, a backbone, or a folder that carvision.embed has written."""
    if options.run is not None and (options.run / ABOUT).is_file():
        layer = [] if options.layer == "auto" else [f"--layer {options.layer}"]
        unsupported = [*options.overrides, *(["--raw"] if options.raw else []), *layer]
        if unsupported or options.query:
            given = unsupported[0] if unsupported else "--query"
            raise InputError(f"{given}: {options.run} holds computed embeddings; give the run to compute others")
        saved, about = read_embeddings(options.run)
        about_saved = {"embeddings": str(options.run), **{key: about[key] for key in COPIED_KEYS if key in about}}

        def select(part: Table) -> Embeddings:
            return saved.select(saved.table.rows["path"].isin(part.rows["path"]).to_numpy())

        return PhotoCollection(saved.table, select, None, options.run, about_saved, [], about.get("packed", False))
    source = open_source(options)
    # the gallery needs the full split, not just test
    table = source.read_table(options.split if options.leave_one_out else "train")
    notes = []
    if not options.query:
        notes = notes_on_seen_photos(select_split(table, options.split), options.split, source.splits_files)
    return PhotoCollection(table, source.embed, source, source.folder or Path(), source.about, notes)


def embed_task(photos: PhotoCollection, options: argparse.Namespace) -> RetrievalTask:
    """Embed the queries and the gallery. options: of carvision.retrieve.

    Raises InputError for missing labels and photos.
    """
    label = photos.table.class_label(options.label, "--label")
    queries = with_known_class(select_split(photos.table, options.split), label)
    gallery = None if options.leave_one_out else gallery_of(photos.table, label, options.gallery)
    if gallery is not None and not set(queries.rows[label]) & set(gallery.rows[label]):
        log.warning("none of the queries' classes is among the gallery's: each is searched among the other queries")
        gallery = None
    about = {
        **photos.about, "data": {"name": photos.table.name, "root": str(photos.table.root)}, "label": label,
        "split": options.split, "gallery": "leave one out" if gallery is None else options.gallery or ["train"],
        "notes": photos.notes,
    }  # fmt: skip
    embedded = photos.embed(queries)
    among = embedded if gallery is None else photos.embed(gallery)
    own = pd.Index(among.table.rows["path"]).get_indexer(pd.Index(embedded.table.rows["path"]))
    return RetrievalTask(embedded, among, label, own, about)


def gallery_of(table: Table, label: str, splits: list[str] | None) -> Table:
    """Return the photos of these splits (None: train), without photos that the data set itself leaves out.

    Raises InputError if there are none.
    """
    splits = splits or ["train"]
    part = table.select(table.rows["split"].isin(splits))
    if not len(part):
        raise InputError(
            f"--gallery: {table.name} has no {' or '.join(splits)} photos; choose others, or --leave-one-out"
        )
    return with_known_class(part, label)


def with_known_class(table: Table, label: str) -> Table:
    """Return the photos whose class is known, and log how many are left out. Raises InputError if there are none."""
    unknown = (table.rows[label] == UNKNOWN).to_numpy()
    if unknown.all():
        raise InputError(f"--label: no photo of {table.name} has a known {label}; choose another label")
    if unknown.any():
        log.warning("%s photos of unknown %s are left out", f"{unknown.sum():,}", label)
    return table.select(~unknown)


@dataclass(frozen=True)
class Found:
    """The results of a search.

    per_query: {metric: float (Q,)}, NaN for queries whose class has no other photo. predicted: {k: int (Q,)}, classes.
    rows int (Q, LISTED), scores float (Q, LISTED): of the nearest photos.
    """

    per_query: dict[str, np.ndarray]
    predicted: dict[int, np.ndarray]
    rows: np.ndarray
    scores: np.ndarray


def search(task: RetrievalTask, options: argparse.Namespace) -> Found:
    """Find the nearest photos of all queries, in blocks, so that only one block's neighbours are in memory.

    Values of --k and --recall-at for which the gallery is too small are left out. Raises InputError for a gallery of
    the query alone.
    """
    most = len(task.gallery) - int((task.own >= 0).any())
    if most < 1:
        raise InputError("--gallery: its only photo is the query itself; give more photos")
    ks, recall_at = _fitting_values(options.k, most, "--k"), _fitting_values(options.recall_at, most, "--recall-at")
    relevant = num_relevant(task.query_codes, task.gallery_codes, task.own)
    alone = int((relevant == 0).sum())
    if alone:
        log.warning(
            "%s of %s queries have no other photo of their %s in the gallery; they count for k-NN only",
            f"{alone:,}", f"{len(relevant):,}", task.label,
        )  # fmt: skip
    num = int(min(most, max(LISTED, relevant.max(), *ks, *recall_at)))
    num_classes, device = len(task.classes), choose_device(options.device)
    metrics, listed = [], []
    predicted: list[dict[int, np.ndarray]] = []
    for rows in query_blocks(np.arange(len(relevant)), num, num_classes):
        scores, found = nearest(
            task.queries.values[rows], task.gallery.values, num, options.distance, task.own[rows], device
        )
        codes = task.gallery_codes[found]
        distances = np.maximum(0, 1 - scores) if options.distance == "cosine" else scores
        predicted.append(vote(codes, distances, ks, options.votes, num_classes))
        block_metrics = query_metrics(codes == task.query_codes[rows, None], relevant[rows].clip(min=1), recall_at)
        metrics.append({name: np.where(relevant[rows] > 0, values, np.nan) for name, values in block_metrics.items()})
        listed.append({"rows": found[:, :LISTED], "scores": scores[:, :LISTED]})
    classes = {k: np.concatenate([block[k] for block in predicted]) for k in ks}
    return Found(concatenate_blocks(metrics), classes, **concatenate_blocks(listed))


def _fitting_values(wanted: list[int], most: int, option: str) -> list[int]:
    """Return the values that the gallery has enough photos for, ascending."""
    fitting = sorted({value for value in wanted if value <= most})
    if len(fitting) < len(set(wanted)):
        log.warning("%s: the gallery has %d other photos; larger values are left out", option, most)
    return fitting or [most]
