"""Run carvision.retrieve, and report it: tables on the terminal, files, a sheet of queries with their neighbours."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from carvision.data.packs.read import PackedPhoto
from carvision.data.table import BOX
from carvision.embedding.search import (
    LISTED,
    Found,
    PhotoCollection,
    RetrievalTask,
    embed_task,
    gallery_of,
    open_photos,
    search,
)
from carvision.embedding.store import Embeddings
from carvision.files.atomic import write_csv, write_json
from carvision.files.folders import output_folder
from carvision.files.log import start_log
from carvision.inference.predictor import choose_device
from carvision.metrics.neighbours import knn_metrics, nearest
from carvision.reports.photos import NOT_KNOWN, RIGHT, WRONG, Row, Tile, plot_sheet, wrap_label
from carvision.reports.plots import TEXT
from carvision.reports.tables import TextTable, best_of_columns, percent, print_table
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

TILE_PX = (150, 112)  # width, height: 4 : 3, as most photos are
APART_PX = 26  # between a query and its neighbours
SHOWN = 8  # neighbours on the sheet
MEASURES = {"cosine": "cosine", "l2": "distance"}
KNN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced", "precision": "precision", "recall": "recall", "f1": "F1",
}  # fmt: skip


def run(options: argparse.Namespace) -> Path:
    """Search and return the folder written. options: of carvision.retrieve."""
    keep_freed_memory()
    start_log(None)
    photos = open_photos(options)
    if options.query:
        return _answer_queries(photos, options)
    for note in photos.notes:
        log.warning("%s", note)
    with output_folder(options.out, photos.folder / "retrievals", "retrievals") as folder:
        _retrieve(photos, options, folder)
    return folder


def _retrieve(photos: PhotoCollection, options: argparse.Namespace, folder: Path) -> None:
    """Search the gallery for each query, write the files of a retrieval into the folder, and print its metrics."""
    task = embed_task(photos, options)
    log.info(
        "%s queries among %s photos, %d-dimensional",
        f"{len(task.queries):,}", f"{len(task.gallery):,}", task.queries.values.shape[1],
    )  # fmt: skip
    began = time.perf_counter()
    found = search(task, options)
    seconds = time.perf_counter() - began
    about = {**task.about, "distance": options.distance, "votes": options.votes}
    about |= {"num_queries": len(task.queries), "num_gallery": len(task.gallery), "search_seconds": round(seconds, 3)}
    num_classes = len(task.classes)
    knn = {k: knn_metrics(task.query_codes, codes, num_classes) for k, codes in found.predicted.items()}
    judged = np.isfinite(found.per_query["map_at_r"])
    means = {name: float(values[judged].mean()) for name, values in found.per_query.items() if judged.any()}
    write_csv(folder / "knn.csv", pd.DataFrame(knn).T.rename_axis("k").reset_index())
    write_csv(folder / "per_class.csv", _by_class(task, found))
    write_json(folder / "retrieval.json", {**about, "knn": {str(k): v for k, v in knn.items()}, "retrieval": means})
    write_csv(folder / "neighbours.csv", _neighbours(task, found), float_format="%.6g")
    if options.sheet and photos.packed:
        log.warning("no sheet is drawn: the photos are in a pack, which only the run itself can open")
    elif options.sheet:
        chosen = np.sort(np.random.default_rng(0).permutation(len(task.queries))[: options.sheet])
        draw_sheet(folder / "neighbours.png", task, chosen, found, options.distance)
    name = options.backbone or options.run.resolve().name
    print_metrics(f"{name} on {task.queries.table.name}", about, knn, means)


def _by_class(task: RetrievalTask, found: Found) -> pd.DataFrame:
    """Return a row for each class of the queries: id, name, queries, and the means of their metrics."""
    codes, classes = task.query_codes, np.unique(task.query_codes)
    each = pd.DataFrame(found.per_query).groupby(codes).mean().reindex(classes)
    each.insert(0, "queries", np.bincount(codes, minlength=len(task.classes))[classes])
    each.insert(0, "name", [task.classes.names[code] for code in classes])
    each.insert(0, "id", [task.classes.ids[code] for code in classes])
    return each


def _neighbours(task: RetrievalTask, found: Found) -> pd.DataFrame:
    """Return a row for each query and each of its nearest photos."""
    ids, (num, times) = np.array(task.classes.ids, dtype=object), found.rows.shape
    return pd.DataFrame(
        {
            "path": task.queries.table.rows["path"].to_numpy().repeat(times),
            task.label: ids[task.query_codes].repeat(times),
            "rank": np.tile(np.arange(1, times + 1), num),
            "neighbour": task.gallery.table.rows["path"].to_numpy()[found.rows].ravel(),
            f"neighbour_{task.label}": ids[task.gallery_codes[found.rows]].ravel(),
            "score": found.scores.ravel(),
        }
    )


def print_metrics(title: str, about: dict, knn: dict[int, dict], means: dict) -> None:
    """Print a table like R2's, k by metric, and the retrieval metrics in one line."""
    gallery = about["gallery"] if isinstance(about["gallery"], str) else f"gallery: {', '.join(about['gallery'])}"
    counts = f"{about['num_queries']:,} queries ({about['split']}), {about['num_gallery']:,} photos ({gallery})"
    console = Console()
    console.print(Text(". ".join([f"{title}: {counts}", *about["notes"]]) + "."), soft_wrap=True)
    shown = (100 * pd.DataFrame(knn).T[list(KNN)]).round(1)
    rows = [[str(k), *(f"{value:.1f}" for value in values)] for k, values in shown.iterrows()]
    marks = [["", *row] for row in best_of_columns(shown)]
    note = "Precision, recall and F1 are weighted by the size of the classes."
    title = f"k-nearest-neighbour classification of {about['label']}, %"
    print_table(TextTable(title, ["k", *KNN.values()], rows, marks, notes=[note]), console)
    titles = {"r_precision": "R-precision", "map_at_r": "MAP@R"}
    header = [titles.get(name, name.replace("recall_at_", "Recall@")) for name in means]
    row = [percent(value) for value in means.values()]
    if means:
        print_table(TextTable("Retrieval, %", ["", *header], [[about["label"], *row]]), console)


def draw_sheet(file: Path, task: RetrievalTask, chosen: np.ndarray, found: Found, distance: str) -> None:
    """Draw the chosen queries, int (N,), with the first of their nearest photos."""
    cropped = task.about.get("crop_to_box", False)
    lines = []
    for query in chosen:
        tiles = [
            make_tile(task.gallery, task.label, row, cropped, score, task.gallery_codes[row] == task.query_codes[query])
            for row, score in zip(found.rows[query, :SHOWN], found.scores[query, :SHOWN], strict=True)
        ]
        lines.append((make_tile(task.queries, task.label, query, cropped), tiles))
    plot_neighbours(lines, MEASURES[distance], file)


def make_tile(
    photos: Embeddings, label: str, row: int, cropped: bool, score: float | None = None, right: bool | None = None
) -> Tile:
    """Return the tile of a photo, with its box if the network saw boxes; the arguments are otherwise tile_of's."""
    table = photos.table
    box = table.rows[BOX].iloc[row].to_numpy(np.float32) if cropped and table.has_boxes else None
    return tile_of(table.photo(row), box, table.class_labels[label].names[table.rows[label].iloc[row]], score, right)


def tile_of(
    photo: str | Path | PackedPhoto, box: np.ndarray | None, name: str,
    score: float | None = None, right: bool | None = None,
) -> Tile:  # fmt: skip
    """Return the tile of a photo with its name and, of a neighbour, its score.

    box: the part to show. right: whether its class is the query's; None if unknown.
    """
    colour = NOT_KNOWN if right is None else RIGHT if right else WRONG
    lines = wrap_label(name, "", TILE_PX[0]) + ([] if score is None else [f"{score:.3f}"])
    return Tile(photo, [(line, TEXT if right is None else colour) for line in lines], colour, crop=box)


def _answer_queries(photos: PhotoCollection, options: argparse.Namespace) -> Path:
    """Find the gallery photos nearest to the files of --query, print and draw them; return the folder written."""
    assert photos.source is not None  # open_photos refuses --query without a network
    label = photos.table.class_label(options.label, "--label")
    queries = photos.source.embed_files(options.query, options.box)
    gallery = photos.embed(gallery_of(photos.table, label, options.gallery))
    device, k = choose_device(options.device), min(LISTED, len(gallery))
    scores, rows = nearest(queries, gallery.values, k, options.distance, device=device)
    table, console, measure = gallery.table, Console(), MEASURES[options.distance]
    codes, paths, classes = table.rows[label].to_numpy(), table.rows["path"].to_numpy(), table.class_labels[label]
    box = None if options.box is None else np.asarray(options.box)
    sheet, listed = [], []
    for file, near, nearness in zip(options.query, rows, scores, strict=True):
        answers = [
            (rank, paths[row], classes.ids[codes[row]], classes.names[codes[row]], score)
            for rank, (row, score) in enumerate(zip(near, nearness, strict=True), start=1)
        ]
        cells = [[str(rank), f"{score:.4f}", name, path] for rank, path, _, name, score in answers]
        print_table(TextTable(f"Nearest to {file}", ["", measure, label, "photo"], cells), console)
        listed += [(str(file), *answer) for answer in answers]
        shown = zip(near[:SHOWN], nearness[:SHOWN], strict=True)
        tiles = [make_tile(gallery, label, row, photos.about["crop_to_box"], score) for row, score in shown]
        sheet.append((tile_of(file, box, file.name), tiles))
    columns = ["path", "rank", "neighbour", f"neighbour_{label}", "name", "score"]
    with output_folder(options.out, photos.folder / "retrievals", "retrievals") as folder:
        write_csv(folder / "neighbours.csv", pd.DataFrame(listed, columns=columns), float_format="%.6g")
        if options.sheet:
            plot_neighbours(sheet, measure, folder / "neighbours.png")
    return folder


def plot_neighbours(rows: list[tuple[Tile, list[Tile]]], measure: str, file: Path) -> None:
    """Write a PNG with one row per query and its neighbours, the nearest first. measure: name of their scores."""
    known = any(tile.frame != NOT_KNOWN for _, neighbours in rows for tile in neighbours)
    plot_sheet(
        [Row([query, *neighbours]) for query, neighbours in rows], file, tile_px=TILE_PX, apart_px={1: APART_PX},
        legend=[("same class", RIGHT), ("another class", WRONG)] if known else [],
        headings={0: "query", 1: f"nearest photos, with their {measure}"},
    )  # fmt: skip
