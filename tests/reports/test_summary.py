"""The closing tables: their content, which 80 columns hold."""

import io

import pytest
from rich.console import Console

from carvision.reports.summary import closing_tables, print_closing, time_line

LABELS = {
    "make": {"ids": list("ab"), "parent": None},
    "model": {"ids": list("abc"), "parent": "make"},
    "speed": {"unit": "km/h"},
}
NAMES = ("top1", "top3", "top5", "balanced_accuracy", "auc", "precision", "recall", "f1")
AT50 = ("precision_at50", "recall_at50", "f1_at50")


def of_test() -> dict[str, float]:
    values = {f"make/{name}": 0.51 + i / 100 for i, name in enumerate(NAMES + AT50)}
    values |= {f"model/{name}": 1.0 for name in NAMES + AT50}
    return values | {"joint/top1": 0.402, "joint/consistent": 0.987, "speed/mae": 12.345, "speed/rmse": 20.5}


def metrics() -> dict:
    rule = {"make/top1": 0.61, "model/top1": 0.62, "joint/top1": 0.63, "joint/consistent": 0.64}
    rules = dict.fromkeys(("independent", "joint", "marginal"), rule)
    return {"test": of_test(), "val": {}, "decodings": {"test": rules}}


def text_of(tables: list, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(*tables, sep="\n")
    return console.file.getvalue()


def rows_of(text: str, first: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]]


def test_every_metric_is_in_its_row():
    text = text_of(closing_tables(metrics(), LABELS))
    accuracy, precision = rows_of(text, "make")
    assert accuracy == ["make", "51.0", "52.0", "53.0", "54.0", "55.0"]
    assert precision[-3:] == ["56.0", "57.0", "58.0"]
    keras = next(line for line in text.splitlines() if "Keras" in line)
    assert keras.split()[-3:] == ["59.0", "60.0", "61.0"]
    assert "all heads right                40.2" in text
    assert "parent and child consistent    98.7" in text
    assert rows_of(text, "speed") == [["speed", "12.35", "20.5", "km/h"]]
    assert rows_of(text, "model/top1") == [["model/top1", "62.0", "62.0", "62.0"]]


@pytest.mark.parametrize(
    "heads", [["make", "model", "speed"], ["a name that is longer than any terminal is wide " * 3]]
)
def test_nothing_is_cut_off_in_80_columns(heads):
    labels = {head: LABELS.get(head, LABELS["make"]) for head in heads}
    values = metrics()
    values["test"] |= {name.replace("make/", f"{heads[0]}/"): value for name, value in of_test().items()}
    narrow, wide = (text_of(closing_tables(values, labels), width) for width in (80, 200))
    assert "…" not in narrow
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    for heading in ("balanced", "AUC", "precision", "recall", "F1", "counted as"):
        assert heading in narrow
    assert sorted(narrow.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def test_unknown_values_are_a_dash():
    labels = {"class": {"ids": list("ab"), "parent": None}}
    text = text_of(closing_tables({"test": {}, "val": {"class/top1": 0.5, "class/recall": 0.25}}, labels))
    assert "val: accuracy" in text
    assert "AUC" not in text  # measured at the end only
    assert "Keras" not in text
    assert rows_of(text, "class")[0] == ["class", "50.0"]
    assert rows_of(text, "class")[1][-3:] == ["–", "25.0", "–"]
    assert "joint" not in text


def test_time_and_cost_are_one_line():
    assert time_line({"seconds": {"training": 3.0}}) == ""
    assert time_line({"seconds": {"total": 738.0, "cpu": 1206.0}}) == "12.3 min wall, 20.1 min CPU"
    known = {"seconds": {"total": 738.0, "cpu": 1206.0}, "cost": 0.19, "price_per_hour": 0.9}
    assert time_line(known) == "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)"


def test_the_tables_are_printed_and_written(tmp_path, capsys):
    print_closing({**metrics(), "seconds": {"total": 60.0, "cpu": 90.0}}, LABELS, tmp_path)
    printed = capsys.readouterr().out
    for text in (printed, (tmp_path / "results.txt").read_text()):
        assert "1.0 min wall, 1.5 min CPU" in text
        assert "precision" in text
    assert "history.csv" in printed
