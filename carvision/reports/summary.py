"""What a person reads of a run: the network's parts (summary.txt) and the closing table."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from torch import nn

WHERE = """In the run's folder: model.safetensors and model.json (the network), metrics.json and results.txt (figures),
history.csv, loss.png, accuracy.png (epochs), checkpoints/, splits.csv, config.yaml, summary.txt, run.log"""
CLASS_FIGURES = ("top1", "top3", "top5", "precision", "recall", "f1", "balanced_accuracy")


def summarise_network(model: nn.Module) -> str:
    """Parts of the network with their parameters, and how many of those are trained."""
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


def closing_table(metrics: dict, labels: dict[str, dict]) -> RichTable:
    """Of the test split, or of validation where there is no test: a row a head.

    metrics: as in metrics.json. labels: as LitClassifier has them.
    """
    split = "test" if metrics.get("test") else "val"
    figures = metrics[split]
    table = RichTable(title=f"{split}, in % (precision, recall, F1: macro)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("head", no_wrap=True)
    for name in CLASS_FIGURES:
        table.add_column(name.replace("balanced_accuracy", "balanced"), justify="right")
    for head, label in labels.items():
        if "ids" in label:
            table.add_row(head, *(_percent(figures.get(f"{head}/{name}")) for name in CLASS_FIGURES))
        elif f"{head}/mae" in figures:
            unit = f" {label['unit']}" if label["unit"] else ""
            table.add_row(head, f"mean error {figures[f'{head}/mae']:.4g}{unit}")
    if sum("ids" in label for label in labels.values()) > 1:
        table.add_row("all heads right", _percent(figures.get("joint/top1")))
    if "joint/consistent" in figures:
        table.add_row("fit together", _percent(figures["joint/consistent"]))
    return table


def decoding_table(metrics: dict) -> RichTable:
    """Accuracy under each rule by which parent and child are read from the probabilities."""
    split = "test" if metrics.get("test") else "val"
    rules = metrics["decodings"][split]
    names = list(next(iter(rules.values())))
    table = RichTable(title=f"decoding, {split}, in % (model.decoding)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("rule")
    for name in names:
        table.add_column(
            name.replace("joint/top1", "all right").replace("joint/consistent", "fit together"), justify="right"
        )
    for rule, figures in rules.items():
        table.add_row(rule, *(_percent(figures.get(name)) for name in names))
    return table


def print_closing(metrics: dict, labels: dict[str, dict], folder: Path) -> None:
    """The tables on the terminal, and as text in results.txt."""
    tables = [closing_table(metrics, labels)] + ([decoding_table(metrics)] if metrics.get("decodings") else [])
    terminal = Console()
    if not terminal.is_terminal:
        terminal = Console(width=110)  # rich takes a file for 80 columns wide, and would wrap the tables
    terminal.print(*tables, sep="\n")
    terminal.print(WHERE, soft_wrap=True, highlight=False)
    with (folder / "results.txt").open("w") as file:
        Console(file=file, width=110).print(*tables, sep="\n")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
