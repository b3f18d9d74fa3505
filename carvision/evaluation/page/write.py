"""What a page shows of each head (run_report shows the same), and the page of an evaluation, evaluation.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from carvision.data.table import LabelDescription
from carvision.evaluation.calibration import accuracy_above, accuracy_by_coverage, reliability
from carvision.evaluation.metrics import HeadResult, class_table
from carvision.evaluation.page.confusion import confusion_data
from carvision.evaluation.predict import Predictions
from carvision.reports.charts import Axis, Line, line_chart
from carvision.reports.page import write_template
from carvision.reports.tables import TextTable, percent

STEPS = 101  # of the slider
MAX_POINTS = 200  # of the line of selective accuracy


def write_evaluation_page(
    file: Path,
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    results: Mapping[str, HeadResult],
    tables: Mapping[str, Sequence[TextTable]],
    pictures: Mapping[str, tuple[TextTable, Path]],
    title: str,
    about: str,
) -> None:
    """Write evaluation.html.

    results: of the heads with classes. tables: {"metrics", "trust"}. pictures: {head: table of its confused pairs, PNG
    of their photos}. about: lines below the title.
    """
    write_template(
        file,
        "evaluation.html",
        title=title,
        about=about,
        heads=[head_values(predictions, labels, head, part) for head, part in results.items()],
        coverage=coverage_chart(results) if results else "",
        tables=tables,
        pictures=pictures,
    )


def head_values(predictions: Predictions, labels: dict[str, LabelDescription], head: str, part: HeadResult) -> dict:
    """Return what the parts of templates/macros.html show of a head: its classes, which are confused, its
    probabilities.

    The page may add a photo of each class ("sample", a data URI) and the "threshold" at which the slider begins.
    """
    table = class_table(predictions, head, labels, part.predicted)
    rows = [{**row, "sample": "", "wrong": row["photos"] - row["right"]} for row in table.to_dict("records")]
    known, temperature = predictions.known(head), predictions.temperature.get(head, 1.0)
    targets = predictions.targets[head][known]
    bins = {"these photos, in bins of probability": reliability(predictions.probs(head)[known], targets)}
    if temperature != 1:
        uncalibrated = predictions.probs(head, calibrated=False)[known]
        bins[f"the same without the temperature, {temperature:.3g}"] = reliability(uncalibrated, targets)
    return {
        "head": head,
        "classes": rows,
        "has_parent": bool((table["parent"] != "").any()),
        "sample_px": 0,
        "note": part.note,
        "confusion": confusion_data(predictions, labels, head, part),
        "steps": slider_steps(part.confidence, part.right),
        "threshold": None,
        "photos": len(part.right),
        "reliability": reliability_chart(bins, head),
    }


def slider_steps(confidence: np.ndarray, right: np.ndarray) -> list[list[float | None]]:
    """Return [accuracy or None, share of photos] for answers with a probability of at least 0.00, 0.01, ..., 1.00."""
    accuracy, num = accuracy_above(confidence, right, np.arange(STEPS) / (STEPS - 1))
    return [[float(a) if n else None, float(n / len(right))] for a, n in zip(accuracy, num, strict=True)]


def reliability_chart(diagrams: Mapping[str, pd.DataFrame], head: str) -> Markup:
    """Return the chart of accuracy by probability. diagrams: {name: bins of calibration.reliability}."""
    lines = [Line("as sure as right", [0, 1], [0, 1], 5, dashed=True)]
    for look, (name, bins) in enumerate(diagrams.items()):
        filled = bins[bins["photos"] > 0]
        texts = [
            f"{row['photos']:,} photos: mean probability {percent(row['confidence'])} %, "
            f"right {percent(row['accuracy'])} %"
            for row in filled.to_dict("records")
        ]
        lines.append(Line(name, filled["confidence"].tolist(), filled["accuracy"].tolist(), look, look > 0, texts))
    x = Axis("probability of the predicted class, %", percent=True, limits=(0, 1))
    return line_chart(lines, x, Axis("accuracy, %", percent=True, limits=(0, 1)), f"Probability and accuracy of {head}")


def coverage_chart(results: Mapping[str, HeadResult]) -> Markup:
    """Return the chart of the accuracy on the most confident photos, by their share, a line for each head."""
    lines = []
    for look, (head, part) in enumerate(results.items()):
        accuracy, threshold = accuracy_by_coverage(part.confidence, part.right)
        num = len(accuracy)
        shown = np.unique(np.linspace(0, num - 1, min(num, MAX_POINTS)).round().astype(int))
        texts = [
            f"{head}: {percent(accuracy[i])} % of {i + 1:,} photos are right, all with a probability of at least "
            f"{threshold[i]:.2f}"
            for i in shown
        ]
        lines.append(Line(head, ((shown + 1) / num).tolist(), accuracy[shown].tolist(), look, look > 0, texts))
    x = Axis("share of the photos, the most confident first, %", percent=True, limits=(0, 1))
    return line_chart(lines, x, Axis("accuracy, %", percent=True), "Accuracy on the most confident photos")
