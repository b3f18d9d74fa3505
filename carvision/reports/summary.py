"""Summarise a run: the network's parts (summary.txt) and the closing tables."""

import io
from pathlib import Path

from rich.console import Console
from torch import nn

from carvision.files.atomic import write_text
from carvision.reports.tables import JOINT, TextTable, has_rank, percent, print_table

ACCURACIES = {
    "top1": "top-1", "top3": "top-3", "top5": "top-5", "balanced_accuracy": "balanced", "auc": "AUC",
}  # fmt: skip
MEANS = {"precision": "precision", "recall": "recall", "f1": "F1"}
MEANS_NOTE = "Precision, recall, F1: mean of the classes."
AVERAGES = {"": "mean of the classes", "_at50": "all p > 0.5 (Keras)"}


def summarise_network(model: nn.Module) -> str:
    """Return a table of the network's parts with their parameters, and how many of those are trained."""
    rows = [("part", "parameters", "trained")]
    parts = dict(model.named_children())
    for name, part in parts.items():
        rows += [_counts(name, part)]
        if name == "backbone":
            rows += [_counts(f"  {child}", module) for child, module in part.named_children()]
    rows = [row for row in rows if row[1] != "0"] + [_counts("all", model)]
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {total:>13}  {trained:>13}" for name, total, trained in rows]
    buffers = sum(b.numel() for b in model.buffers())
    lines.append(f"\nbatch-norm statistics and other buffers: {buffers:,}")
    return "\n".join(lines)


def _counts(name: str, module: nn.Module) -> tuple[str, str, str]:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return name, f"{sum(n for n, _ in sizes):,}", f"{sum(n for n, trained in sizes if trained):,}"


def closing_tables(metrics: dict, labels: dict[str, dict], keras: bool = False, brief: bool = False) -> list[TextTable]:
    """Return the tables of the test split, or of validation if there is no test; none is wider than 80 columns.

    metrics: as in metrics.json. labels: as in LitClassifier. keras: with precision and recall as Keras counts them.
    brief: what is shown at the end of training, a line for each head, without the decoding rules.
    """
    split = "test" if metrics.get("test") else "val"
    values, rules = metrics[split], (metrics.get("decodings") or {}).get(split)
    classes = {head: len(label["ids"]) for head, label in labels.items() if "ids" in label}
    tables = []
    if classes and brief:
        columns = {name: title for name, title in (ACCURACIES | MEANS).items() if name != "balanced_accuracy"}
        tables.append(_accuracy_table(f"{split}, in %", values, classes, columns, ["joint/top1"]))
        tables[0].notes.append(MEANS_NOTE)
    elif classes:
        tables.append(_accuracy_table(f"{split}: accuracy in %", values, classes, ACCURACIES, list(JOINT)))
    if classes and (keras or not brief):
        tables.append(_precision_table(split, values, list(classes), keras))
    errors = [
        [head, *(f"{values[f'{head}/{name}']:.4g}" for name in ("mae", "rmse")), label["unit"]]
        for head, label in labels.items()
        if values.get(f"{head}/mae") is not None
    ]
    if errors:
        tables.append(TextTable(f"{split}: errors", ["head", "mean", "root mean square", "unit"], errors))
    if "embedding/map_at_r" in values:
        row = ["embedding", *(percent(values.get(f"embedding/{name}")) for name in ("recall_at_1", "map_at_r"))]
        tables.append(TextTable(f"{split}: nearest neighbours in %", ["metric on", "Recall@1", "MAP@R"], [row]))
    if rules and not brief:
        rows = [
            [JOINT.get(name, name), *(percent(of_rule.get(name)) for of_rule in rules.values())]
            for name in next(iter(rules.values()))
        ]
        tables.append(TextTable(f"{split}: accuracy in % by model.decoding", ["metric", *rules], rows))
    return tables


def _accuracy_table(
    title: str, metrics: dict, heads: dict[str, int], columns: dict[str, str], joint: list[str]
) -> TextTable:
    """Return a row per head, and one per metric of all heads. heads: {name: number of classes}. columns: {metric: its
    heading}, of which those without any value are left out. joint: the metrics of all heads."""

    def cell(head: str, name: str) -> str:
        known = f"{head}/{name}" in metrics and has_rank(name, heads[head])
        return percent(metrics[f"{head}/{name}"]) if known else "–" if name == "top1" else ""

    columns = {name: heading for name, heading in columns.items() if any(cell(head, name) for head in heads)}
    rows = [[head, *(cell(head, name) for name in columns)] for head in heads]
    shown = [name for name in joint if name in metrics or (name == "joint/top1" and len(heads) > 1)]
    rows += [[JOINT[name], percent(metrics.get(name)), *[""] * (len(columns) - 1)] for name in shown if len(heads) > 1]
    return TextTable(title, ["head", *columns.values()], rows)


def _precision_table(split: str, metrics: dict, heads: list[str], keras: bool) -> TextTable:
    rows = []
    for head in heads:
        for end, average in AVERAGES.items() if keras else [("", AVERAGES[""])]:
            values = [metrics.get(f"{head}/{name}{end}") for name in MEANS]
            if any(value is not None for value in values):
                rows.append(["" if end else head, average, *map(percent, values)])
    return TextTable(f"{split}: precision and recall in %", ["head", "counted as", *MEANS.values()], rows)


def time_line(metrics: dict) -> str:
    """Return time and cost as far as metrics.json has them: "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)"."""
    seconds = metrics.get("seconds", {})
    spent = [(seconds[key], name) for key, name in (("total", "wall"), ("cpu", "CPU")) if key in seconds]
    parts = [f"{value / 60:.1f} min {name}" if value >= 60 else f"{value:.0f} s {name}" for value, name in spent]
    if metrics.get("cost") is not None:
        price = f" ({metrics['price_per_hour']:.2f} an hour)" if metrics.get("price_per_hour") is not None else ""
        parts.append(f"{metrics['cost']:.2f}{price}")
    return ", ".join(parts)


def print_closing(metrics: dict, labels: dict[str, dict], folder: Path, keras: bool = False) -> None:
    """Print the most important metrics, and write all of closing_tables to results.txt."""
    text = io.StringIO()  # to which rich, in a notebook, would print nothing
    for console, brief in ((Console(), True), (Console(file=text, width=110, force_jupyter=False), False)):
        for table in closing_tables(metrics, labels, keras, brief):
            print_table(table, console)
        if spent := time_line(metrics):
            console.print(spent, highlight=False)
    write_text(folder / "results.txt", text.getvalue().lstrip("\n"))
