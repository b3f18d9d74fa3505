"""Run carvision.retrieve: search the queries in the gallery, or answer photos of one's own, and report it."""

import argparse
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.embedding.retrieval_report import draw_sheet, print_answers, print_metrics, write_metrics
from carvision.embedding.retrieval_task import PhotoCollection, RetrievalTask, gallery_of, open_photos, read_task
from carvision.embedding.search import Engine, knn_metrics, vote
from carvision.errors import InputError
from carvision.files.atomic import atomic_file
from carvision.files.log import start_log
from carvision.files.output_folder import output_folder
from carvision.metrics.exact_search import split_blocks
from carvision.metrics.neighbours import concatenate_blocks, num_relevant, queries_per_block, query_metrics
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

LISTED = 10  # neighbours of each query in neighbours.csv, and on the sheet


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


def run(options: argparse.Namespace) -> Path:
    """Search and return the folder written. options: of carvision.retrieve."""
    keep_freed_memory()
    start_log(None)
    photos = open_photos(options)
    if options.query:
        return _answer_queries(photos, options)
    for note in photos.notes:
        log.warning("%s", note)
    with _claim_folder(photos, options) as folder:
        _retrieve(photos, options, folder)
    return folder


def _answer_queries(photos: PhotoCollection, options: argparse.Namespace) -> Path:
    """Find the gallery photos nearest to the files given with --query; return the folder written."""
    source = photos.require_network(options)
    label = photos.table.class_label(options.label, "--label")
    queries = source.embed_files(options.query, options.box)
    gallery = photos.embed(gallery_of(photos.table, label, options.gallery))
    engine = Engine(gallery.values, options.distance, options.index, options.device)
    scores, rows = engine.nearest(queries, min(LISTED, len(gallery)), None)
    with _claim_folder(photos, options) as folder:
        print_answers(
            gallery, label, photos.about, options.query, options.box, rows, scores, options.distance, folder,
            with_sheet=bool(options.sheet),
        )  # fmt: skip
    return folder


def _retrieve(photos: PhotoCollection, options: argparse.Namespace, folder: Path) -> None:
    """Search the gallery for each query, write the files of a retrieval into the folder, and print its metrics."""
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
    num_classes = len(task.classes)
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
    name = options.backbone or Path(options.run).resolve().name
    print_metrics(f"{name} on {task.queries.table.name}", about, knn, means)


def search(task: RetrievalTask, engine: Engine, options: argparse.Namespace) -> Found:
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
    num_classes = len(task.classes)
    metrics, listed = [], []
    predicted: list[dict[int, np.ndarray]] = []
    for rows in split_blocks(np.arange(len(relevant)), queries_per_block(num, num_classes)):
        scores, found = engine.nearest(task.queries.values[rows], num, task.own[rows])
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


def _claim_folder(photos: PhotoCollection, options: argparse.Namespace) -> AbstractContextManager[Path]:
    if photos.source is not None:
        return photos.source.claim_folder(options.out, "retrievals")
    return output_folder(options.out, options.run / "retrievals", "retrievals")


def _write_neighbours(file: Path, task: RetrievalTask, found: Found) -> None:
    """Write one line for each query and each of its nearest photos, block by block."""
    queries, gallery = task.queries.table.rows["path"].to_numpy(), task.gallery.table.rows["path"].to_numpy()
    ids = np.array(task.classes.ids, dtype=object)
    with atomic_file(file) as partial, partial.open("w", encoding="utf-8", newline="") as opened:
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
