"""Run carvision.verify, from the network's folder to the verification's: tables, files, and ROC curves."""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from carvision.embedding.embed import open_source
from carvision.embedding.options import METHODS
from carvision.embedding.pairs import choose_pairs
from carvision.embedding.scores import FAR_LEVELS, ScoredPairs, roc, score, tar_name
from carvision.evaluation.select import notes_on_seen_photos
from carvision.files.atomic import file_stems, write_csv, write_json
from carvision.files.folders import output_folder
from carvision.files.log import start_log
from carvision.reports.plots import COLOURS, FAINT, create_panels, draw_line, finish, label_axes
from carvision.reports.tables import TextTable, best_of_columns, percent, print_table, without_nan
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

NAMES = {"cosine": "cosine", "l2": "L2 distance", "svm": "linear SVM", "joint_bayes": "Joint Bayesian"}
DASHED = ("l2",)  # for embeddings of length 1 it covers the cosine's curve
X_LABEL = "different pairs accepted (FAR)"
LEAST_FAR = 1e-3  # left end of the logarithmic curves, if there are enough different pairs


def run(options: argparse.Namespace) -> Path:
    """Verify and return the folder written. options: of carvision.verify."""
    keep_freed_memory()
    start_log(None)
    source = open_source(options)
    task = choose_pairs(source, options)
    notes = notes_on_seen_photos(task.table.select(task.tested), options.split or "test", source.splits_files)
    for note in notes:
        log.warning("%s", note)
    needed = task.tested | task.train.photo_mask(len(task.table))
    if "joint_bayes" in options.methods:  # it learns from photos, the others from pairs
        needed |= task.learned
    log.info(
        "%s: %s photos, layer %s; %s training pairs",
        task.table.name, f"{needed.sum():,}", source.embedder.layer, f"{len(task.train):,}",
    )  # fmt: skip
    name = options.backbone or options.run.resolve().name
    about = {
        **source.about, "data": {"name": task.table.name, "root": str(task.table.root)}, "label": task.label,
        "seed": options.seed, "lists": task.lists, "notes": notes,
    }  # fmt: skip
    with output_folder(options.out, (source.folder or Path()) / "verifications", "verifications") as folder:
        scored, train = score(task, source.embed(task.table.select(needed)), options.methods)
        about["train"] = {"split": options.train_split, **train}
        write_verification(folder, f"{name} on {task.table.name}", about, scored)
    return folder


def write_verification(folder: Path, title: str, about: dict, scored: dict[str, ScoredPairs]) -> None:
    """Write verification.{json,csv}, pairs_<difficulty>.csv and roc.png into the folder, and print the tables.

    title: one line. about: further content of verification.json, plain values.
    """
    stems = file_stems(list(scored))
    for difficulty, pairs in scored.items():
        columns = {"path1": pairs.first, "path2": pairs.second, "same": pairs.same.astype(int)}
        write_csv(folder / f"pairs_{stems[difficulty]}.csv", pd.DataFrame(columns | pairs.scores), float_format="%.6g")
    counts = {name: {"pairs": len(pairs.same), "same": int(pairs.same.sum())} for name, pairs in scored.items()}
    rows = [
        {"difficulty": name, "method": method, **counts[name], **metrics}
        for name, pairs in scored.items()
        for method, metrics in pairs.metrics.items()
    ]
    write_csv(folder / "verification.csv", pd.DataFrame(rows))
    plot_roc(scored, f"{title}: ROC", folder / "roc.png")
    difficulties = {name: {**counts[name], "figures": without_nan(pairs.metrics)} for name, pairs in scored.items()}
    write_json(folder / "verification.json", {**about, "difficulties": difficulties})
    console = Console()
    console.print(Text(" ".join(f"{line.rstrip('.')}." for line in (title, *about["notes"]))))
    for table in (accuracy_table(scored), *curve_tables(scored)):
        print_table(table, console)


def accuracy_table(scored: dict[str, ScoredPairs]) -> TextTable:
    """Return the table of pair accuracy, as is usual in the field: one row per method, one column per difficulty."""
    wide = pd.DataFrame({name: pd.DataFrame(pairs.metrics).loc["accuracy"] for name, pairs in scored.items()})
    rows = [[NAMES[str(method)], *(percent(value) for value in values)] for method, values in wide.iterrows()]
    marks = [["", *marks] for marks in best_of_columns(wide.round(3))]
    counts = ", ".join(f"{name} {len(pairs.same):,}" for name, pairs in scored.items())
    return TextTable("Pair accuracy (%), at the threshold of the training pairs", ["method", *scored], rows, marks,
                 notes=[f"Pairs: {counts}."])  # fmt: skip


def curve_tables(scored: dict[str, ScoredPairs]) -> list[TextTable]:
    """Return the table of each difficulty: AUC, equal error rate, and true accept rates, which need no threshold."""
    titles = {"auc": "AUC", "eer": "EER %"} | {tar_name(far): f"TAR % at FAR {100 * far:g} %" for far in FAR_LEVELS}
    tables = []
    for difficulty, pairs in scored.items():
        frame = pd.DataFrame(pairs.metrics).T[list(titles)]
        rows = [[NAMES[str(method)], f"{row['auc']:.4f}".replace("nan", "–"), *(percent(value) for value in row[1:])]
                for method, row in frame.iterrows()]  # fmt: skip
        marks = [
            ["", *row]
            for row in best_of_columns(frame.round({"auc": 4} | dict.fromkeys(list(titles)[1:], 3)), lowest=["eer"])
        ]
        num_different = int((~pairs.same).sum())
        notes = [
            f"FAR {100 * far:g} % needs {round(1 / far):,} different pairs to measure; here are {num_different:,}."
            for far in FAR_LEVELS
            if num_different * far < 1
        ]
        tables.append(TextTable(difficulty, ["method", *titles.values()], rows, marks, notes=notes))
    return tables


def plot_roc(scored: dict[str, ScoredPairs], title: str, file: Path) -> None:
    """Write a PNG with one column per difficulty and one curve per method; linear FAR above, logarithmic below."""
    figure, panels = create_panels(2, len(scored), max(5.6, 3.7 * len(scored)), 6.6, sharey=True)
    methods = [method for method in METHODS if method in next(iter(scored.values())).scores]
    for (difficulty, pairs), (even, wide) in zip(scored.items(), panels.T, strict=True):
        num_different = int((~pairs.same).sum())
        least = max(LEAST_FAR, 1 / num_different) if num_different > 1 else LEAST_FAR
        for method in methods if 0 < num_different < len(pairs.same) else []:
            far, tar = roc(pairs.scores[method], pairs.same)
            look: dict = {"dashed": method in DASHED, "name": NAMES[method], "colour": COLOURS[METHODS.index(method)]}
            draw_line(even, far, tar, **look)
            begin = np.flatnonzero(far <= least)[-1]  # points further left would draw a line along the edge
            draw_line(wide, far[begin:].clip(min=least), tar[begin:], **look, drawstyle="steps-post")
        chance = np.geomspace(least, 1, 100)
        for axes in (even, wide):
            draw_line(axes, chance, chance, FAINT, "by chance", linewidth=1, linestyle=(0, (1, 2)))
        label_axes(even, f"{difficulty}: {len(pairs.same):,} pairs", X_LABEL, grid="both", percent="xy")
        label_axes(wide, x=X_LABEL, grid="both", log="x", percent="xy")
        even.set(xlim=(0, 1), ylim=(0, 1.01))
        wide.set_xlim(least, 1)
    for axes in panels[:, 0]:
        axes.set_ylabel("same pairs accepted (TAR)")
    finish(figure, title, file)
