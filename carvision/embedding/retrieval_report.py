"""Report a retrieval: tables on the terminal, files, and a sheet of queries with their nearest photos."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from carvision.data.packs.read import PackedPhoto
from carvision.data.table import BOX
from carvision.embedding.retrieval_task import RetrievalTask
from carvision.embedding.store import Embeddings
from carvision.files.atomic import write_csv, write_json
from carvision.reports.photos import NOT_KNOWN, RIGHT, WRONG, Row, Tile, plot_sheet, wrap_label
from carvision.reports.plots import TEXT
from carvision.reports.tables import BEST, TextTable, print_table

TILE_PX = (150, 112)  # width, height: 4 : 3, as most photos are
APART_PX = 26  # between a query and its neighbours
SHOWN = 8  # neighbours on the sheet
MEASURES = {"cosine": "cosine", "l2": "distance"}
KNN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced", "precision": "precision", "recall": "recall", "f1": "F1",
}  # fmt: skip


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
    return tile_of(table.photo(row), box, table.class_labels[label].names[table.rows[label].iloc[row]], score, right)


def tile_of(
    photo: str | Path | PackedPhoto,
    box: np.ndarray | None,
    name: str,
    score: float | None = None,
    right: bool | None = None,
) -> Tile:
    """Return the tile of a photo with its name and, of a neighbour, its score.

    box: the part to show. right: whether its class is the query's; None if unknown.
    """
    colour = NOT_KNOWN if right is None else RIGHT if right else WRONG
    lines = wrap_label(name, "", TILE_PX[0]) + ([] if score is None else [f"{score:.3f}"])
    return Tile(photo, [(line, TEXT if right is None else colour) for line in lines], colour, crop=box)


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
        sheet.append((tile_of(file, None if box is None else np.asarray(box), file.name), tiles))
    columns = ["path", "rank", "neighbour", f"neighbour_{label}", "name", "score"]
    write_csv(folder / "neighbours.csv", pd.DataFrame(listed, columns=columns), float_format="%.6g")
    if with_sheet:
        plot_neighbours(sheet, measure, folder / "neighbours.png")


def plot_neighbours(rows: list[tuple[Tile, list[Tile]]], measure: str, file: Path) -> None:
    """Write a PNG with one row per query and its neighbours, the nearest first. measure: name of their scores."""
    known = any(tile.frame != NOT_KNOWN for _, neighbours in rows for tile in neighbours)
    plot_sheet(
        [Row([query, *neighbours]) for query, neighbours in rows], file, tile_px=TILE_PX, apart_px={1: APART_PX},
        legend=[("same class", RIGHT), ("another class", WRONG)] if known else [],
        headings={0: "query", 1: f"nearest photos, with their {measure}"},
    )  # fmt: skip
