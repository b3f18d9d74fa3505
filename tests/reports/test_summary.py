"""The closing tables: their content, which 80 columns hold."""

import io

import pytest
from rich.console import Console

from carvision.reports.summary import closing_tables, print_closing, time_line
from carvision.reports.tables import print_table

CLASSES = {"make": {"ids": list("ab"), "parent": None}, "model": {"ids": list("abc"), "parent": "make"}}
LABELS = {**CLASSES, "speed": {"unit": "km/h"}}


def of_test() -> dict[str, float]:
    names = ("top1", "top3", "top5", "balanced_accuracy", "auc", "precision", "recall", "f1")
    values = {f"make/{name}": 0.51 + i / 100 for i, name in enumerate((*names, *(f"{n}_at50" for n in names[5:])))}
    values |= {name.replace("make", "model"): 1.0 for name in values}
    return values | {"joint/top1": 0.402, "joint/consistent": 0.987, "speed/mae": 12.345, "speed/rmse": 20.5}


def metrics() -> dict:
    rule = {"make/top1": 0.61, "model/top1": 0.62, "joint/top1": 0.63, "joint/consistent": 0.64}
    rules = dict.fromkeys(("independent", "joint", "marginal"), rule)
    return {"test": of_test(), "val": {}, "decodings": {"test": rules}}


def text_of(tables: list, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def rows_of(text: str, first: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]]


def test_every_metric_is_in_its_row():
    text = text_of(closing_tables(metrics(), LABELS))
    accuracy, precision = rows_of(text, "make")
    assert accuracy == ["make", "51.0", "52.0", "53.0", "54.0", "55.0"] and precision[-3:] == ["56.0", "57.0", "58.0"]
    keras = next(line for line in text.splitlines() if "Keras" in line)
    assert keras.split()[-3:] == ["59.0", "60.0", "61.0"]
    assert "all heads right                40.2" in text and "parent and child consistent    98.7" in text
    assert rows_of(text, "speed") == [["speed", "12.35", "20.5", "km/h"]]
    assert rows_of(text, "model/top1") == [["model/top1", "62.0", "62.0", "62.0"]]


@pytest.mark.parametrize("head", ["make", "a name that is longer than any terminal is wide " * 3])
def test_nothing_is_cut_off_in_80_columns(head):
    values = metrics()
    values["test"] |= {name.replace("make/", f"{head}/"): value for name, value in of_test().items()}
    tables = closing_tables(values, LABELS if head == "make" else {head: LABELS["make"]})
    narrow, wide = (text_of(tables, width) for width in (80, 200))
    assert "…" not in narrow and max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    assert sorted(narrow.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def test_unknown_values_are_a_dash():
    labels = {"class": {"ids": list("ab"), "parent": None}}
    text = text_of(closing_tables({"test": {}, "val": {"class/top1": 0.5, "class/recall": 0.25}}, labels))
    assert "val: accuracy" in text and not any(word in text for word in ("AUC", "Keras", "joint"))
    assert [row[1:][-3:] for row in rows_of(text, "class")] == [["50.0"], ["–", "25.0", "–"]]


def test_the_tables_are_printed_and_written_with_time_and_cost(tmp_path, capsys):
    assert time_line({"seconds": {"training": 3.0}}) == ""
    known = {"seconds": {"total": 738.0, "cpu": 1206.0}, "cost": 0.19, "price_per_hour": 0.9}
    print_closing({**metrics(), **known}, LABELS, tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / "results.txt").read_text()):
        assert "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)" in text and "precision" in text
