"""Report a retrieval: tables on the terminal, files, and a sheet of queries with their nearest photos."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rich.console import Console
from rich.text import Text

from carvision.data.packs.read import PackedPhoto
from carvision.data.table import BOX
from carvision.embedding.retrieval_task import RetrievalTask
from carvision.embedding.store import Embeddings
from carvision.files.atomic import write_csv, write_json
from carvision.reports.photos import (
    EDGE_PX,
    NOT_KNOWN,
    RIGHT,
    WRONG,
    create_sheet,
    draw_framed,
    draw_text,
    width_px,
    wrap_label,
)
from carvision.reports.plots import TEXT, save_figure
from carvision.reports.tables import BEST, TextTable, print_table

TILE_PX = (150, 112)  # width, height: 4 : 3, as most photos are
GAP_PX, BELOW_PX, HEAD_PX, LINE_PX = 12, 6, 40, 16
APART_PX = 26  # between a query and its neighbours
TEXT_SIZE = 8
SHOWN = 8  # neighbours on the sheet
MEASURES = {"cosine": "cosine", "l2": "distance"}
KNN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced", "precision": "precision", "recall": "recall", "f1": "F1",
}  # fmt: skip


class Tile(NamedTuple):
    """A photo on the sheet.

    photo: what images.open_image takes. box: the part of it to show, or None. name: of its class. score: similarity or
    distance to the query, None for a query. right: whether its class is the query's; None if unknown.
    """

    photo: str | Path | PackedPhoto
    box: np.ndarray | None
    name: str
    score: float | None = None
    right: bool | None = None


def write_metrics(
    folder: Path,
    task: RetrievalTask,
    about: dict,
    knn: dict[int, dict],
    means: dict,
    per_query: dict[str, np.ndarray],
) -> None:
    """Write retrieval.json, knn.csv and per_class.csv into the folder.

    knn {k: metrics}. means {metric: mean over the queries}. per_query {metric: float (Q,)}, NaN if undefined.
    """
    frame = pd.DataFrame(knn).T
    write_csv(folder / "knn.csv", frame.rename_axis("k").reset_index())
    codes, classes = task.query_codes, np.unique(task.query_codes)
    each = pd.DataFrame(per_query).groupby(codes).mean().reindex(classes)
    each.insert(0, "queries", np.bincount(codes, minlength=len(task.classes))[classes])
    each.insert(0, "name", [task.classes.names[code] for code in classes])
    each.insert(0, "id", [task.classes.ids[code] for code in classes])
    write_csv(folder / "per_class.csv", each)
    write_json(folder / "retrieval.json", {**about, "knn": {str(k): v for k, v in knn.items()}, "retrieval": means})


def print_metrics(title: str, about: dict, knn: dict[int, dict], means: dict) -> None:
    """Print a table like R2's, k by metric, and the retrieval metrics in one line."""
    gallery = about["gallery"] if isinstance(about["gallery"], str) else f"gallery: {', '.join(about['gallery'])}"
    counts = f"{about['num_queries']:,} queries ({about['split']}), {about['num_gallery']:,} photos ({gallery})"
    console = Console()
    console.print(Text(". ".join([f"{title}: {counts}", *about["notes"]]) + "."), soft_wrap=True)
    values = pd.DataFrame(knn).T
    shown = (100 * values).round(2)
    best = (shown == shown.max()) & (len(shown) > 1)
    rows = [[str(k), *(f"{shown.loc[k, name]:.2f}" for name in KNN)] for k in shown.index]
    marks = [["", *(BEST if best.loc[k, name] else "" for name in KNN)] for k in shown.index]
    note = "Precision, recall and F1 are weighted by the size of the classes."
    title = f"k-nearest-neighbour classification of {about['label']}, %"
    print_table(TextTable(title, ["k", *KNN.values()], rows, marks, notes=[note]), console)
    titles = {"r_precision": "R-precision", "map_at_r": "MAP@R"}
    header = [titles.get(name, name.replace("recall_at_", "Recall@")) for name in means]
    row = [f"{100 * value:.2f}" for value in means.values()]
    if means:
        print_table(TextTable("Retrieval, %", ["", *header], [[about["label"], *row]]), console)


def draw_sheet(
    file: Path, task: RetrievalTask, chosen: np.ndarray, rows: np.ndarray, scores: np.ndarray, distance: str
) -> None:
    """Draw the chosen queries, int (N,), with the first of their nearest photos; rows, scores (Q, K)."""
    cropped = task.about.get("crop_to_box", False)
    lines = []
    for query in chosen:
        tiles = [
            make_tile(task.gallery, task.label, row, cropped, score, task.gallery_codes[row] == task.query_codes[query])
            for row, score in zip(rows[query, :SHOWN], scores[query, :SHOWN], strict=True)
        ]
        lines.append((make_tile(task.queries, task.label, query, cropped), tiles))
    plot_neighbours(lines, MEASURES[distance], file)


def make_tile(
    photos: Embeddings, label: str, row: int, cropped: bool, score: float | None = None, right: bool | None = None
) -> Tile:
    """Return the tile of a photo, with its box if the network saw boxes."""
    table = photos.table
    box = table.rows[BOX].iloc[row].to_numpy(np.float32) if cropped and table.has_boxes else None
    code = table.rows[label].iloc[row]
    return Tile(
        table.photo(row), box, table.class_labels[label].names[code], score, None if right is None else bool(right)
    )


def print_answers(
    gallery: Embeddings,
    label: str,
    about: dict,
    queries: list[Path],
    box: list[float] | None,
    rows: np.ndarray,
    scores: np.ndarray,
    distance: str,
    folder: Path,
    with_sheet: bool = True,
) -> None:
    """Print the nearest photos of each query, and write neighbours.csv and neighbours.png.

    box: the part of the query that was embedded, left, top, right, bottom in pixels, or None. rows, scores: (queries,
    K), of the gallery.
    """
    table, console, measure = gallery.table, Console(), MEASURES[distance]
    codes, paths, classes = table.rows[label].to_numpy(), table.rows["path"].to_numpy(), table.class_labels[label]
    sheet, listed = [], []
    for file, near, nearness in zip(queries, rows, scores, strict=True):
        answers = [
            (rank, paths[row], classes.ids[codes[row]], classes.names[codes[row]], score)
            for rank, (row, score) in enumerate(zip(near, nearness, strict=True), start=1)
        ]
        cells = [[str(rank), f"{score:.4f}", name, path] for rank, path, _, name, score in answers]
        header = ["", measure, label, "photo"]
        print_table(TextTable(f"Nearest to {file}", header, cells), console)
        listed += [(str(file), *answer) for answer in answers]
        shown = zip(near[:SHOWN], nearness[:SHOWN], strict=True)
        tiles = [make_tile(gallery, label, row, about["crop_to_box"], score) for row, score in shown]
        sheet.append((Tile(file, None if box is None else np.asarray(box), file.name), tiles))
    columns = ["path", "rank", "neighbour", f"neighbour_{label}", "name", "score"]
    write_csv(folder / "neighbours.csv", pd.DataFrame(listed, columns=columns), float_format="%.6g")
    if with_sheet:
        plot_neighbours(sheet, measure, folder / "neighbours.png")


def plot_neighbours(rows: list[tuple[Tile, list[Tile]]], measure: str, file: Path) -> None:
    """Write a PNG with one row per query and its neighbours, the nearest first. measure: name of their scores."""
    most = max(len(neighbours) for _, neighbours in rows)
    pitch, row_height = TILE_PX[0] + GAP_PX, TILE_PX[1] + BELOW_PX + 3 * LINE_PX + GAP_PX
    width = max(2 * EDGE_PX + (1 + most) * pitch + APART_PX, 640)  # leaves room for the legend
    figure, axes = create_sheet(width, HEAD_PX + len(rows) * row_height)
    left = EDGE_PX
    known = any(tile.right is not None for _, neighbours in rows for tile in neighbours)
    parts = [("query", TEXT), (f"nearest photos, with their {measure}", TEXT)]
    parts += [("same class", RIGHT), ("another class", WRONG)] if known else []
    for text, colour in parts:
        draw_text(axes, left, HEAD_PX / 2 - 2, text, va="center", size=11, weight="bold", color=colour)
        left += max(width_px(text, 11, "bold") + 24, pitch + APART_PX if text == "query" else 0)
    for number, (query, neighbours) in enumerate(rows):
        top = HEAD_PX + number * row_height
        _draw_tile(axes, query, EDGE_PX, top)
        for rank, tile in enumerate(neighbours, start=1):
            _draw_tile(axes, tile, EDGE_PX + rank * pitch + APART_PX, top)
    save_figure(figure, file)


def _draw_tile(axes: Axes, tile: Tile, left: float, top: float) -> None:
    colour = {None: NOT_KNOWN, True: RIGHT, False: WRONG}[tile.right]
    draw_framed(axes, tile.photo, colour, left, top, TILE_PX, crop=tile.box)
    lines = wrap_label(tile.name, "", TILE_PX[0], TEXT_SIZE)
    lines += [f"{tile.score:.3f}"] if tile.score is not None else []
    for number, line in enumerate(lines):
        y = top + TILE_PX[1] + BELOW_PX + (number + 0.5) * LINE_PX
        draw_text(axes, left, y, line, va="center", size=TEXT_SIZE, color=TEXT if tile.right is None else colour)
