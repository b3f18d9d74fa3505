"""Summarise a run: the network's parts (summary.txt) and the closing tables."""

import io
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from torch import nn

from carvision.files.atomic import write_text
from carvision.reports.tables import JOINT, percent

WHERE = """In the run's folder: model.safetensors and model.json (the network), metrics.json and results.txt (metrics),
history.csv and loss, accuracy, metrics.png (epochs), checkpoints/, splits.csv, config.yaml, summary.txt, run.log"""
ACCURACIES = {
    "top1": "top1", "top3": "top3", "top5": "top5", "balanced_accuracy": "balanced", "auc": "AUC",
}  # fmt: skip
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


def closing_tables(metrics: dict, labels: dict[str, dict]) -> list[RichTable]:
    """Return the tables of the test split, or of validation if there is no test; none is wider than 80 columns.

    metrics: as in metrics.json. labels: as in LitClassifier.
    """
    split = "test" if metrics.get("test") else "val"
    classes = [head for head, label in labels.items() if "ids" in label]
    numbers = {head: label["unit"] for head, label in labels.items() if metrics[split].get(f"{head}/mae") is not None}
    tables = [_accuracy_table(split, metrics[split], classes), _precision_table(split, metrics[split], classes)]
    tables = tables if classes else []
    tables += [_error_table(split, metrics[split], numbers)] if numbers else []
    tables += [_embedding_table(split, metrics[split])] if "embedding/map_at_r" in metrics[split] else []
    return tables + ([_decoding_table(split, metrics["decodings"][split])] if metrics.get("decodings") else [])


def _accuracy_table(split: str, metrics: dict, heads: list[str]) -> RichTable:
    columns = {
        name: heading
        for name, heading in ACCURACIES.items()
        if name == "top1" or any(f"{head}/{name}" in metrics for head in heads)
    }
    table = _table(f"{split}: accuracy in %", "head", list(columns.values()))
    for head in heads:
        table.add_row(head, *(percent(metrics.get(f"{head}/{name}")) for name in columns))
    if len(heads) > 1:
        table.add_row(JOINT["joint/top1"], percent(metrics.get("joint/top1")))
    if "joint/consistent" in metrics:
        table.add_row(JOINT["joint/consistent"], percent(metrics["joint/consistent"]))
    return table


def _precision_table(split: str, metrics: dict, heads: list[str]) -> RichTable:
    """Tabulate precision and recall, one row per head and way of averaging."""
    table = _table(f"{split}: precision and recall in %", "head", ["counted as", "precision", "recall", "F1"])
    table.columns[1].justify = "left"
    for head in heads:
        for end, average in AVERAGES.items():
            values = [metrics.get(f"{head}/{name}{end}") for name in ("precision", "recall", "f1")]
            if any(value is not None for value in values):
                table.add_row("" if end else head, average, *map(percent, values))
    return table


def _error_table(split: str, metrics: dict, units: dict[str, str]) -> RichTable:
    table = _table(f"{split}: errors", "head", ["mean", "root mean square", "unit"])
    for head, unit in units.items():
        table.add_row(head, *(f"{metrics[f'{head}/{name}']:.4g}" for name in ("mae", "rmse")), unit)
    return table


def _embedding_table(split: str, metrics: dict) -> RichTable:
    """Tabulate the retrieval metrics of each photo's nearest neighbours among the others of the split."""
    table = _table(f"{split}: nearest neighbours in %", "metric on", ["Recall@1", "MAP@R"])
    names = ("recall_at_1", "map_at_r")
    table.add_row("embedding", *(percent(metrics.get(f"embedding/{name}")) for name in names))
    return table


def _decoding_table(split: str, rules: dict[str, dict]) -> RichTable:
    """Tabulate accuracy under each rule for decoding parent and child classes from the probabilities."""
    table = _table(f"{split}: accuracy in % by model.decoding", "metric", list(rules))
    for name in next(iter(rules.values())):
        table.add_row(JOINT.get(name, name), *(percent(metrics.get(name)) for metrics in rules.values()))
    return table


def _table(title: str, first: str, others: list[str]) -> RichTable:
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(first, overflow="fold")  # wraps long names instead of truncating headings
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def time_line(metrics: dict) -> str:
    """Return time and cost as far as metrics.json has them: "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)"."""
    seconds = metrics.get("seconds", {})
    parts = [
        f"{seconds[key] / 60:.1f} min {name}" for key, name in (("total", "wall"), ("cpu", "CPU")) if key in seconds
    ]
    if metrics.get("cost") is not None:
        price = f" ({metrics['price_per_hour']:.2f} an hour)" if metrics.get("price_per_hour") is not None else ""
        parts.append(f"{metrics['cost']:.2f}{price}")
    return ", ".join(parts)


def print_closing(metrics: dict, labels: dict[str, dict], folder: Path) -> None:
    """Print the closing tables, and write them to results.txt."""
    closing = [*closing_tables(metrics, labels), *filter(None, [time_line(metrics)])]
    terminal = Console()
    terminal.print(*closing, sep="\n", highlight=False)
    terminal.print(WHERE, soft_wrap=True, highlight=False)
    text = io.StringIO()
    Console(file=text, width=110).print(*closing, sep="\n", highlight=False)
    write_text(folder / "results.txt", text.getvalue())
