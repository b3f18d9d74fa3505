"""Choose the query photos and the gallery they are searched in.

Run carvision.retrieve.
"""

import argparse
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.table import UNKNOWN, Table
from carvision.embedding.embed import Source, open_source
from carvision.embedding.retrieval_report import draw_sheet, print_answers, print_metrics, write_metrics
from carvision.embedding.search import Engine, knn_metrics, vote
from carvision.embedding.store import Embeddings, is_folder_of_embeddings, read_embeddings
from carvision.errors import InputError
from carvision.evaluation.select import notes_on_seen_photos, select_split
from carvision.files.atomic import written_whole
from carvision.files.log import start_log
from carvision.files.output_folder import output_folder
from carvision.metrics.neighbours import (
    concatenate_blocks,
    num_relevant,
    queries_per_block,
    query_metrics,
    split_blocks,
)
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)


COPIED_KEYS = ("network", "weights", "layer", "unit_length", "crop_to_box")  # from embeddings.json to retrieval.json


@dataclass(frozen=True)
class RetrievalTask:
    """Queries and gallery: embeddings of photos whose class of `label` is known.

    own int (Q,): the query's own row of the gallery, which does not count as found; -1: none. about: description for
    retrieval.json, plain values.
    """

    queries: Embeddings
    gallery: Embeddings
    label: str
    own: np.ndarray
    about: dict

    @property
    def query_codes(self) -> np.ndarray:
        """Classes of the queries, int (Q,)."""
        return self.queries.table.rows[self.label].to_numpy()

    @property
    def gallery_codes(self) -> np.ndarray:
        """Classes of the gallery, int (G,)."""
        return self.gallery.table.rows[self.label].to_numpy()


@dataclass(frozen=True)
class PhotoCollection:
    """The photos of the data, embedded on demand or read from saved embeddings.

    source: None for saved embeddings. packed: the photos are in a pack, which saved embeddings can't open.
    """

    source: Source | None
    saved: Embeddings | None
    table: Table
    about: dict
    notes: list[str]
    packed: bool = False  # the photos are in a pack, which saved embeddings can't open

    def embed(self, table: Table) -> Embeddings:
        """Return the embeddings of `table`, a subset of the photos."""
        if self.saved is None:
            return self.source.embed(table)
        return self.saved.select(self.table.rows["path"].isin(table.rows["path"]).to_numpy())

    def require_network(self, options: argparse.Namespace) -> Source:
        """Return the source. Raises InputError for saved embeddings, which have no network."""
        if self.source is None:
            raise InputError(f"--query: {options.run} holds embeddings and no network; give the run that made them")
        return self.source


def open_photos(options: argparse.Namespace) -> PhotoCollection:
    """Open the photos of a run, a backbone, or a folder that carvision.embed has written."""
    split = options.split if options.leave_one_out else "train"  # the gallery needs the full split, not just test
    if options.run is not None and is_folder_of_embeddings(options.run):
        unsupported = options.overrides[:1] or (["--raw"] if options.raw else [])
        unsupported = unsupported or ([f"--layer {options.layer}"] if options.layer != "auto" else [])
        if unsupported:
            raise InputError(
                f"{unsupported[0]}: {options.run} holds computed embeddings; give the run to compute others"
            )
        saved, about = read_embeddings(options.run)
        about_saved = {"embeddings": str(options.run), **{key: about[key] for key in COPIED_KEYS if key in about}}
        return PhotoCollection(None, saved, saved.table, about_saved, [], about.get("packed", False))
    source = open_source(options)
    table = source.read_table(split)
    notes = [] if options.query else _notes(source, table, options.split)
    return PhotoCollection(source, None, table, source.about, notes)


def _notes(source: Source, table: Table, split: str) -> list[str]:
    return notes_on_seen_photos(select_split(table, split), split, source.splits_files)


def read_task(photos: PhotoCollection, options: argparse.Namespace) -> RetrievalTask:
    """Embed the queries and the gallery. options: of carvision.retrieve.

    Raises InputError for missing labels and photos.
    """
    label = photos.table.class_label(options.label, "--label")
    queries = known(select_split(photos.table, options.split), label)
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
    own = pd.Index(among.table.rows["path"]).get_indexer(embedded.table.rows["path"])
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
    return known(part, label)


def known(table: Table, label: str) -> Table:
    """Return the photos whose class is known, and log how many are left out. Raises InputError if there are none."""
    unknown = (table.rows[label] == UNKNOWN).to_numpy()
    if unknown.all():
        raise InputError(f"--label: no photo of {table.name} has a known {label}; choose another label")
    if unknown.any():
        log.warning("%s photos of unknown %s are left out", f"{unknown.sum():,}", label)
    return table.select(~unknown)


def name_of(options: argparse.Namespace) -> str:
    """Return the name of the network or folder, for titles."""
    return options.backbone or Path(options.run).resolve().name


LISTED = 10  # neighbours of each query in neighbours.csv, and on the sheet


@dataclass(frozen=True)
class Found:
    """Results of a search. per_query {metric: float (Q,)}: NaN for queries whose class has no other photo. predicted
    {k: int (Q,)}: classes. rows int (Q, LISTED), scores float (Q, LISTED): of the nearest photos."""

    per_query: dict[str, np.ndarray]
    predicted: dict[int, np.ndarray]
    rows: np.ndarray
    scores: np.ndarray


def run(options: argparse.Namespace) -> Path:
    """Search and return the folder written. options: of carvision.retrieve."""
    keep_freed_memory()
    start_log(None)
    photos = open_photos(options)
    if options.query:
        return _answer_queries(photos, options)
    for note in photos.notes:
        log.warning("%s", note)
    with _claim(photos, options) as folder:
        _retrieve(photos, options, folder)
    return folder


def _retrieve(photos: PhotoCollection, options: argparse.Namespace, folder: Path) -> None:
    task = read_task(photos, options)
    log.info(
        "%s queries among %s photos, %d-dimensional, %s",
        f"{len(task.queries):,}", f"{len(task.gallery):,}", task.queries.values.shape[1], options.index,
    )  # fmt: skip
    began = time.perf_counter()
    engine = Engine(task.gallery.values, options.distance, options.index, options.device)
    found = search(task, engine, options)
    seconds = time.perf_counter() - began
    about = {**task.about, "distance": options.distance, "votes": options.votes, "index": options.index}
    about |= {"num_queries": len(task.queries), "num_gallery": len(task.gallery), "search_seconds": round(seconds, 3)}
    about |= engine.checked(task.queries.values, task.own)
    num_classes = len(task.queries.table.labels[task.label])
    knn = {k: knn_metrics(task.query_codes, codes, num_classes) for k, codes in found.predicted.items()}
    judged = np.isfinite(found.per_query["map_at_r"])
    means = {name: float(values[judged].mean()) for name, values in found.per_query.items() if judged.any()}
    write_metrics(folder, task, about, knn, means, found.per_query)
    _write_neighbours(folder / "neighbours.csv", task, found)
    if options.sheet and photos.packed:
        log.warning("no sheet is drawn: the photos are in a pack, which only the run itself can open")
    elif options.sheet:
        chosen = np.sort(np.random.default_rng(0).permutation(len(task.queries))[: options.sheet])
        draw_sheet(folder / "neighbours.png", task, chosen, found.rows, found.scores, options.distance)
    print_metrics(f"{name_of(options)} on {task.queries.table.name}", about, knn, means)


def search(task: RetrievalTask, engine: Engine, options: argparse.Namespace) -> Found:
    """Search in blocks of queries, so that only one block's neighbours are in memory."""
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
    num_classes = len(task.queries.table.labels[task.label])
    metrics, predicted, listed = [], [], []
    for rows in split_blocks(np.arange(len(relevant)), queries_per_block(num, num_classes)):
        scores, found = engine.nearest(task.queries.values[rows], num, task.own[rows])
        codes = task.gallery_codes[found]
        distances = np.maximum(0, 1 - scores) if options.distance == "cosine" else scores
        predicted.append(vote(codes, distances, ks, options.votes, num_classes))
        block_metrics = query_metrics(codes == task.query_codes[rows, None], relevant[rows].clip(min=1), recall_at)
        metrics.append({name: np.where(relevant[rows] > 0, values, np.nan) for name, values in block_metrics.items()})
        listed.append({"rows": found[:, :LISTED], "scores": scores[:, :LISTED]})
    nearest_ones = concatenate_blocks(listed)
    return Found(
        concatenate_blocks(metrics), concatenate_blocks(predicted), nearest_ones["rows"], nearest_ones["scores"]
    )


def _fitting_values(wanted: list[int], most: int, option: str) -> list[int]:
    """Return the values that the gallery has enough photos for, ascending."""
    fitting = sorted({value for value in wanted if value <= most})
    if len(fitting) < len(set(wanted)):
        log.warning("%s: the gallery has %d other photos; larger values are left out", option, most)
    return fitting or [most]


def _claim(photos: PhotoCollection, options: argparse.Namespace) -> AbstractContextManager[Path]:
    if photos.source is not None:
        return photos.source.claim_folder(options.out, "retrievals")
    return output_folder(options.out, options.run / "retrievals", "retrievals")


def _write_neighbours(file: Path, task: RetrievalTask, found: Found) -> None:
    """Write one line for each query and each of its nearest photos."""
    queries, gallery = task.queries.table.rows["path"].to_numpy(), task.gallery.table.rows["path"].to_numpy()
    ids = np.array(task.queries.table.labels[task.label].ids, dtype=object)
    with written_whole(file) as partial, partial.open("w", encoding="utf-8", newline="") as opened:
        for number, rows in enumerate(split_blocks(np.arange(len(queries)), queries_per_block(LISTED))):
            near, times = found.rows[rows], found.rows.shape[1]
            columns = {
                "path": np.repeat(queries[rows], times),
                task.label: np.repeat(ids[task.query_codes[rows]], times),
                "rank": np.tile(np.arange(1, times + 1), len(rows)),
                "neighbour": gallery[near].ravel(),
                f"neighbour_{task.label}": ids[task.gallery_codes[near]].ravel(),
                "score": found.scores[rows].ravel(),
            }
            pd.DataFrame(columns).to_csv(opened, index=False, header=number == 0, float_format="%.6g")


def _answer_queries(photos: PhotoCollection, options: argparse.Namespace) -> Path:
    """Find the gallery photos nearest to the files given with --query."""
    source = photos.require_network(options)
    label = photos.table.class_label(options.label, "--label")
    queries = source.embed_files(options.query, options.box)
    gallery = photos.embed(gallery_of(photos.table, label, options.gallery))
    engine = Engine(gallery.values, options.distance, options.index, options.device)
    scores, rows = engine.nearest(queries, min(LISTED, len(gallery)), None)
    with _claim(photos, options) as folder:
        sheet = bool(options.sheet)
        queries = [(file, options.box) for file in options.query]
        print_answers(gallery, label, photos.about, queries, rows, scores, options.distance, folder, sheet)
    return folder
