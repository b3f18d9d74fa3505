"""Write an evaluation: metrics with intervals, tables on the terminal and in files, plots."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from torch import Tensor

from carvision.evaluation.bootstrap import bootstrap_intervals, point_metrics
from carvision.evaluation.predictions import Predictions
from carvision.portable import parents_of
from carvision.reports.comparison.sheets import TextTable
from carvision.reports.comparison.tables import print_table, write_html, write_markdown
from carvision.reports.evaluation.curves import plot_coverage
from carvision.reports.evaluation.of_head import head_results, write_head
from carvision.reports.evaluation.tables import (
    calibration_tables,
    coverage_tables,
    decoding_table,
    metric_tables,
    pairs_table,
)
from carvision.whole_files import open_new

EXACT = ("auc", "auc_micro", "auc_keras")  # replace EpochMetrics' values, which come from histograms


def write_evaluation(
    predictions: Predictions,
    labels: dict[str, dict],
    folder: Path,
    *,
    metrics: dict[str, float],
    decodings: dict[str, dict[str, float]],
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    rule: str,
    title: str,
    notes: Sequence[str] = (),
    crop_to_box: bool = False,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict:
    """Write results.txt, evaluation.{md,html}, the tables and the plots into the folder, and print the tables.

    Returns the content of evaluation.json, plain values. labels: {head: {"ids", "names", "parent", "parent_codes"}} or
    {head: {"unit", "mean", "std"}}, as in model.json. metrics, decodings: of EpochMetrics, compute() and
    compute_rules(). losses {head: float (N,)}: of each photo, by the run's own loss. head_weights: of the heads in the
    summed loss. rule: the decoding rule of the metrics. title: one line, such as "stanford_cars_frozen on test". notes:
    shown below the title. crop_to_box: show photos as the network saw them. num_samples, seed: of the bootstrap; 0
    samples: no intervals.

    For each head with classes: per_class_<head>.csv, confusion_<head>.{csv,png}, confused_<head>.{csv,png},
    reliability_<head>.png; for all of them coverage.png. A head without any known class has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (predictions, labels, rule, losses, head_weights)
    points = point_metrics(*arguments) if predictions.valid.any() else {}
    metrics = metrics | {name: value for name, value in points.items() if name not in metrics or name.endswith(EXACT)}
    intervals = bootstrap_intervals(*arguments, num_samples, seed) if num_samples and points else {}
    results = head_results(predictions, labels, rule)
    pictures: dict[str, Path] = {}
    if results:
        pictures["Accuracy on the most confident photos"] = folder / "coverage.png"
        confidences = {head: (part.confidence, part.right) for head, part in results.items()}
        plot_coverage(confidences, f"{title}: accuracy on the most confident photos", folder / "coverage.png")
    for part in results.values():
        pictures |= write_head(predictions, labels, part, title, crop_to_box, folder)
    tables = metric_tables(metrics, intervals, labels)
    if parents_of(labels) and len(decodings) > 1:
        tables.append(decoding_table(decodings, rule))
    tables += calibration_tables(metrics, intervals, predictions.temperature, list(results))
    tables += coverage_tables({head: part.coverage for head, part in results.items()},
                              {head: part.aurc for head, part in results.items()})  # fmt: skip
    tables += [pairs_table(head, part.pairs, labels[head]["names"], part.note) for head, part in results.items()]
    _write_texts(folder, title, [_photos_line(predictions), *notes], tables, pictures)
    return _plain(
        {
            "photos": int(predictions.valid.sum()),
            "unreadable": int((~predictions.valid).sum()),
            "figures": metrics,
            "intervals": intervals,
            "bootstrap": {"samples": num_samples, "seed": seed, "level": 0.95},
            "decoding": rule,
            "decodings": decodings,
            "temperature": {head: predictions.temperature.get(head, 1.0) for head in results},
            "coverage": {h: {"rows": p.coverage.to_dict("records"), "aurc": p.aurc} for h, p in results.items()},
            "mistakes": {h: {"photos": p.mistakes, "within_parent": p.within_parent} for h, p in results.items()},
        }
    )


def _photos_line(predictions: Predictions) -> str:
    unreadable = int((~predictions.valid).sum())
    left_out = f"; {unreadable:,} more could not be read and are left out" if unreadable else ""
    return f"{int(predictions.valid.sum()):,} photos{left_out}."


def _write_texts(
    folder: Path, title: str, notes: Sequence[str], tables: Sequence[TextTable], pictures: dict[str, Path]
) -> None:
    """Write results.txt, evaluation.md and evaluation.html; print to the terminal."""
    about = " ".join(f"{note.rstrip('.')}." for note in notes)
    for write, file in ((write_markdown, "evaluation.md"), (write_html, "evaluation.html")):
        write(folder / file, title, about, tables, pictures)
    with open_new(folder / "results.txt", "w", encoding="utf-8") as file:
        for console in (Console(), Console(file=file, width=80)):
            console.print(Text(f"{title}. {about}"))
            for table in tables:
                print_table(table, console)


def _plain(value):
    """Replace NaN by None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value
