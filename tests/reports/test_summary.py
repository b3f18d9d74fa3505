"""The closing tables of a run: their content, which 80 columns hold."""

import io

import pytest
from rich.console import Console

from carvision.reports.summary import closing_tables, print_closing, time_line
from carvision.reports.tables import print_table

CLASSES = {"make": {"ids": list("ab"), "parent": None}, "model": {"ids": list("abc"), "parent": "make"}}
LABELS = {**CLASSES, "speed": {"unit": "km/h"}}


def metrics(make: str = "make") -> dict:
    names = ("top1", "top3", "top5", "balanced_accuracy", "auc", "precision", "recall", "f1")
    values = {f"{make}/{name}": 0.51 + i / 100 for i, name in enumerate((*names, *(f"{n}_at50" for n in names[5:])))}
    values |= {name.replace(make, "model"): 1.0 for name in values}
    test = values | {"joint/top1": 0.402, "joint/consistent": 0.987, "speed/mae": 12.345, "speed/rmse": 20.5}
    rule = {"make/top1": 0.61, "model/top1": 0.62, "joint/top1": 0.63, "joint/consistent": 0.64}
    return {"test": test, "val": {}, "decodings": {"test": dict.fromkeys(("independent", "joint", "marginal"), rule)}}


def text_of(tables: list, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_every_metric_is_in_its_row_and_printed_with_time_and_cost(tmp_path, capsys):
    accuracy, precision, errors, rules = (table.rows for table in closing_tables(metrics(), LABELS))
    assert accuracy[0] == ["make", "51.0", "52.0", "53.0", "54.0", "55.0"]
    assert [row[:2] for row in accuracy[2:]] == [["all heads right", "40.2"], ["parent and child consistent", "98.7"]]
    assert [row[-3:] for row in precision[:2]] == [["56.0", "57.0", "58.0"], ["59.0", "60.0", "61.0"]]
    assert errors == [["speed", "12.35", "20.5", "km/h"]] and rules[1] == ["model/top1", "62.0", "62.0", "62.0"]
    known = {"seconds": {"total": 738.0, "cpu": 1206.0}, "cost": 0.19, "price_per_hour": 0.9}
    print_closing({**metrics(), **known}, LABELS, tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / "results.txt").read_text()):
        assert "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)" in text and "precision" in text
    assert time_line({"seconds": {"training": 3.0}}) == ""


@pytest.mark.parametrize("head", ["make", "a name that is longer than any terminal is wide " * 3])
def test_nothing_is_cut_off_in_80_columns(head):
    tables = closing_tables(metrics(head), LABELS if head == "make" else {head: LABELS["make"]})
    narrow, wide = (text_of(tables, width) for width in (80, 200))
    assert "…" not in narrow and max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    assert sorted(narrow.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def test_unknown_values_are_a_dash():
    labels = {"class": {"ids": list("ab"), "parent": None}}
    tables = closing_tables({"test": {}, "val": {"class/top1": 0.5, "class/recall": 0.25}}, labels)
    assert [table.rows for table in tables] == [[["class", "50.0"]],
                                                [["class", "mean of the classes", "–", "25.0", "–"]]]  # fmt: skip
