"""Compare runs: read them, arrange them, write and print the tables, draw the plots."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from carvision.errors import InputError
from carvision.files.atomic import write_csv
from carvision.files.folders import refuse_foreign_folder
from carvision.reports.comparison.frame import DATA_SET, check_column, finest_metric, runs_frame, sort_by
from carvision.reports.comparison.page import against_charts, write_compare_page
from carvision.reports.comparison.plots import MAX_CURVES, draw_matrix, plot_against, plot_comparison, plot_trade_off
from carvision.reports.comparison.runs import Run, find_runs, read_run
from carvision.reports.comparison.settings import (
    against_of,
    data_sets_of,
    differing_keys,
    matrix_of,
    name_by_settings,
    name_runs,
    text_of,
)
from carvision.reports.comparison.tables import (
    against_table,
    by_data_set,
    matrix_tables,
    print_runs,
    runs_table,
    settings_table,
)
from carvision.reports.page import sections_of, write_markdown
from carvision.reports.tables import TextTable, print_table

log = logging.getLogger(__name__)

Pictures = dict[str, Path]  # {title: file}
WHOLE = ("folds", "seeds", "epochs", "best_epoch", "epoch", "parameters")  # stay integers if a run lacks the value


def write_comparison(
    given: Sequence[Path],
    folder: Path,
    names: Sequence[str] | None = None,
    epoch: int | None = None,
    metric: str | None = None,
    sort: str | None = None,
    matrix: Sequence[str] | None = None,
    against: str | None = None,
    price_per_hour: float | None = None,
) -> pd.DataFrame:
    """Write compare.{csv,md,html} and the plots into the folder, print the tables; return the frame.

    The arguments are the options of carvision.compare, documented by its --help. Raises InputError.
    """
    if price_per_hour is not None and not price_per_hour >= 0:
        raise InputError(f"--price-per-hour: {price_per_hour} is not 0 or more")
    runs = [read_run(path) for path in find_runs(given)]
    frame = runs_frame(runs, _check_names(names, runs), epoch, price_per_hour)
    frame.insert(1, DATA_SET, data_sets_of(runs))
    metric = check_column(frame, metric, "--figure") if metric else finest_metric(frame, runs)
    if sort:
        by_name = dict(zip(frame.index, runs, strict=True))
        frame = sort_by(frame, check_column(frame, sort, "--sort"))
        runs = [by_name[name] for name in frame.index]
    # Wrong settings are refused before anything is written
    arranged = matrix_of(frame, runs, matrix[0], matrix[1], metric) if matrix else None
    study = against_of(frame, runs, against, name_by_settings(runs, ignored=(against, "seed"))) if against else None
    refuse_foreign_folder(folder, "--out", _is_comparison)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} can't be made ({error.strerror}); choose another folder") from None
    tables = []
    pictures = _plot_runs(frame, runs, metric, folder)
    if arranged is not None:
        tables += matrix_tables(arranged)
        frames = {"matrix": arranged.values, "matrix_minutes": arranged.minutes}
        if (arranged.counts > 1).to_numpy().any():
            frames["matrix_runs"] = arranged.counts
        for name, values in frames.items():
            write_csv(folder / f"{name}.csv", values, index=True)
        for heading, name, minutes in (("Matrix", "matrix", False), ("Matrix of minutes", "matrix_minutes", True)):
            pictures[heading] = folder / f"{name}.png"
            draw_matrix(arranged, minutes, pictures[heading])
    if against and study is not None:
        tables.append(against_table(study, against, metric))
        columns = ["group", against, "epoch_s", "best_after_s", metric, "lowest_val_loss"]
        write_csv(folder / "against.csv", study[list(dict.fromkeys(columns))], index=True)
        pictures[f"By {against}"] = folder / "against.png"
        plot_against(study, against, metric, folder / "against.png")
    unfinished = list(frame.index[frame["state"] == "unfinished"])
    for table in tables if unfinished else []:
        table.notes.append(f"Unfinished runs count with their results so far: {', '.join(unfinished)}.")
    charts = {} if study is None or against is None else {tables[-1].title: against_charts(study, against, metric)}
    _write(frame, runs, metric, epoch, tables, pictures, folder, charts)
    return frame


def _check_names(names: Sequence[str] | None, runs: Sequence[Run]) -> list[str]:
    """Return the names given, or those that name_runs finds. Raises InputError unless each run has its own."""
    if names is None:
        return name_runs(runs)
    names = [name.strip() for name in names]
    if len(names) != len(runs):
        found = ", ".join(str(run.folder) for run in runs[:20])
        raise InputError(f"--names: {len(names)} names for {len(runs)} runs ({found}); give one for each")
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"--names: {','.join(names)!r} has a name twice or an empty one; give each run its own")
    return names


def _is_comparison(folder: Path) -> bool:
    try:
        with (folder / "compare.csv").open(encoding="utf-8") as file:
            return {"run", "state", "wall_min"} <= {*file.readline(10_000).rstrip().split(",")}
    except (OSError, ValueError):
        return False


def _write(
    frame: pd.DataFrame,
    runs: Sequence[Run],
    metric: str,
    epoch: int | None,
    studies: list[TextTable],
    pictures: Pictures,
    folder: Path,
    charts: dict[str, Markup],
) -> None:
    """Write compare.csv, compare.md and compare.html, and print the tables. charts: {title of a study: its chart}."""
    keys = differing_keys(runs)
    settings = {key: [text_of(run.config.get(key)) for run in runs] for key in keys}
    whole = [name for name in WHOLE if name in frame and (frame[name].dropna() % 1 == 0).all()]
    write_csv(folder / "compare.csv", frame.assign(**settings).astype(dict.fromkeys(whole, "Int64")), index=True)
    title = f"{len(runs)} runs compared" if len(runs) > 1 else f"One run: {frame.index[0]}"
    about = "Metrics of each run's best epoch, the test with the weights of that epoch."
    if epoch is not None:
        about = f"Metrics at the end of epoch {epoch}, wall minutes of training until then."
    parts, by_name = by_data_set(frame), dict(zip(frame.index, runs, strict=True))
    notes = {name: _notes(part, differing_keys([by_name[run] for run in part.index])) for name, part in parts.items()}
    several = len(parts) > 1
    tables = [
        runs_table(part, f"Metrics on {name}" if several else "Metrics", list(notes[name]))
        for name, part in parts.items()
    ]
    tables += studies
    if keys:
        tables.append(settings_table(runs, list(frame.index), keys))
    write_markdown(folder / "compare.md", title, about, sections_of(tables, pictures))
    shown = {table.title: [table] for table in tables[len(parts) :]}
    write_compare_page(folder / "compare.html", title, about, frame, runs, metric, notes, shown, charts)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # rich assumes 80 columns for a file
    if several:
        console.print(Text(f"{title}. {about}"))
    for name, part in parts.items():
        first = metric if part[metric].notna().any() else finest_metric(part.dropna(axis="columns", how="all"), [])
        ranked = [first, first.replace("val/", "test/"), "wall_min", "cost"]
        print_runs(part, name if several else f"{title}. {about}", console, ranked)
        for note in notes[name]:
            console.print(Text(note, "dim"))
    for table in studies:
        print_table(table, console)


def _notes(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the notes below the table: what can't be compared, and what the numbers count.

    keys: in which runs on the same data set differ.
    """
    notes = []
    losses = [key for key in keys if key.startswith("loss.")]
    if losses:
        notes.append(f"The runs have different losses ({', '.join(losses)}), so their values can't be compared.")
    photos = [key for key in keys if key.startswith("data.split.")]
    if photos:
        notes.append(f"The runs have different splits ({', '.join(photos)}).")
    for kind in ("folds", "seeds"):
        if frame[kind].notna().any():
            notes.append(f"\u00b1: standard deviation over the {kind}; minutes and cost are of all {kind} together.")
    if (frame["state"] == "unfinished").any():
        notes.append("Unfinished: metrics, time and cost so far; their time and cost are never marked.")
    return notes


def _plot_runs(frame: pd.DataFrame, runs: Sequence[Run], metric: str, folder: Path) -> Pictures:
    pictures = {}
    histories = {name: run.history for name, run in zip(frame.index, runs, strict=True) if len(run.history)}
    shown = ""
    if len(histories) > MAX_CURVES:
        best = [name for name in sort_by(frame, metric).index if name in histories][:MAX_CURVES]
        shown = f", the best {MAX_CURVES} of {len(histories)} runs"
        log.warning("curves: %s by %s are drawn", shown.removeprefix(", "), metric)
        histories = {name: histories[name] for name in best}
    columns = dict.fromkeys(str(column) for history in histories.values() for column in history)
    heads = dict.fromkeys(c.split("/")[1] for c in columns if c.count("/") == 2 and c.endswith("/loss"))
    losses = ["loss", *(f"{head}/loss" for head in heads if len(heads) > 1)]
    accuracies = [f"{head}/top1" for head in (*heads, *(["joint"] if len(heads) > 1 else []))]
    for kind, names in {"Loss": losses, "Top-1 accuracy": accuracies}.items():
        drawn = [name for name in names if {f"val/{name}", f"train/{name}"} & set(columns)]
        if drawn:
            file = folder / f"{kind.removeprefix('Top-1 ').lower()}.png"
            plot_comparison(histories, drawn, f"{kind} by epoch{shown}", file)
            pictures[f"{kind} by epoch"] = file
    parts = by_data_set(frame)
    for number, (name, part) in enumerate(parts.items(), 1):
        of_part, suffix = (f" on {name}", f"_{number}") if len(parts) > 1 else ("", "")
        for amount, noun in {"training_s": "time", "cost": "cost"}.items():
            if len(part) > 1 and amount in part and part[[amount, metric]].notna().all(axis=1).sum() > 1:
                heading = f"{'Accuracy' if 'top' in metric else metric} against {noun}{of_part}"
                pictures[heading] = folder / f"against_{noun}{suffix}.png"
                plot_trade_off(part, amount, metric, pictures[heading])
    return pictures
