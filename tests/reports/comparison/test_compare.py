"""carvision.compare as a command: what it writes, prints and refuses."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from carvision.compare import compare
from carvision.errors import InputError
from carvision.reports.comparison.report import write_comparison
from carvision.reports.comparison.tables import print_runs
from tests.reports.comparison.test_frame import compared, write_folds, write_run
from tests.reports.test_photos import texts_of


@pytest.fixture
def runs(tmp_path):
    """Runs with two heads, one head, unfinished, folds, with a cost and without; a name that is markup elsewhere."""
    folder = tmp_path / "runs"
    write_run(folder / "two_heads" / "2026-01-31_12-00-00", (0.2, 0.6), heads=("make", "model"), price=0.5)
    write_run(folder / "<b>$x|y" / "2026-01-31_12-00-00", (0.4, 0.5, 0.55), model__backbone="vgg16", price=0.25)
    write_run(folder / "cut_short", (0.1,), finished=False, data__batch_size=8)
    write_folds(folder / "folds", [(0.2, 0.5), (0.3, 0.7)], model__backbone="resnet50", data__batch_size=16, price=0.1)
    return folder


def test_a_folder_with_other_files_is_left_alone(runs, tmp_path):
    (out := tmp_path / "out").mkdir()
    (out / "compare.csv").write_text("drug,dose\n")
    with pytest.raises(InputError, match=r"--out: .*out holds something that this command did not write"):
        write_comparison([runs], out)
    assert [path.read_text() for path in out.iterdir()] == ["drug,dose\n"]
    (out / "compare.csv").unlink()
    for _ in range(2):  # it may replace its own
        write_comparison([runs], out)


def test_the_command_writes_all_files_and_imports_neither_torch_nor_hydra(run_module, runs, tmp_path):
    timed = {"PYTHONPROFILEIMPORTTIME": "1"}  # each import is a line of standard error
    done = run_module("carvision.compare", "runs", "--sort", "val/class/top1", check=0, env=timed)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"compare: compare/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", last), done.stdout
    folder = tmp_path / last.removeprefix("compare: ")
    assert {file.name for file in folder.iterdir()} == {
        "compare.csv", "compare.md", "compare.html", "loss.png", "accuracy.png", "against_time.png", "against_cost.png",
    }  # fmt: skip
    assert all(np.asarray(Image.open(picture)).std() > 5 for picture in folder.glob("*.png"))
    table = pd.read_csv(folder / "compare.csv")
    assert table["val/class/top1"].tolist()[:3] == [0.6, 0.55, 0.1] and table["val/model/top1"].iloc[3] == 0.55
    assert table["state"].tolist() == ["finished", "finished", "unfinished", "finished"]
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "pandas" in imported and not {"torch", "torchvision", "hydra", "pytorch_lightning"} & imported
    assert "Traceback" not in done.stderr and "Warning:" not in done.stderr
    page = (folder / "compare.html").read_text()
    assert "<b>" not in page and "://" not in page and "<img " not in page  # the run's name is no markup
    assert page.count('<svg class="wide"') == 7  # loss, accuracy of three heads and of all, against time and cost
    lines = (folder / "compare.md").read_text().split("\n## ")[1].splitlines()
    head, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", x)[1:-1]] for x in lines if x.startswith("|"))
    assert head[1:] == ["folds (2 folds)", r"\<b>\$x\|y", "cut_short (unfinished)", "two_heads"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["val class top-1, %"] == ["**60.0 ± 14.1**", "55.0", "10.0", ""]
    assert cells["best epoch"] == ["2", "3", "1", "2"] and cells["parameters"][1] == "1,234,567"
    assert cells["wall minutes"][2:] == ["0.17", "**0.47**"]  # unfinished: not the shortest


def test_folders_without_runs_and_wrong_options_are_one_line_and_write_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, message in (("nowhere", "is not a folder; give a run's folder, "), ("empty", ": no run in it ")):
        with pytest.raises(SystemExit, match=rf"^error: {folder} ?{message}[^\n]*$"):
            compare([folder])
    for options, message in (
        ({"names": ["a", "b"]}, "--names: 2 names for 4 runs"),
        ({"metric": "val/clas/top1"}, "--figure: 'val/clas/top1' is not a metric.*nearest: val/class/top1"),
        ({"matrix": ["model.backbon", "optimizer.name"]}, "--matrix: 'model.backbon' is not a key .*model.backbone"),
        ({"against": "model.backbone"}, "--against: model.backbone is .* must be a number"),
    ):
        with pytest.raises(InputError, match=f"{message}[^\\n]*$"):
            write_comparison([runs], tmp_path / "compare", **options)
    assert not (tmp_path / "compare").exists()


@pytest.mark.parametrize(("width", "count"), [(80, 1), (80, 9), (110, 3)])
def test_the_terminal_table_fits_and_marks_the_best(tmp_path, width, count, capsys):
    for i in range(count):
        many = {f"model__{key}": i for key in ("pool", "weights", "neck", "mean")}
        write_run(tmp_path / f"a_rather_long_name_of_experiment_{i}", (0.2, 0.3 + i / 100), ("make", "model"), **many)
    print_runs(compared(tmp_path)[0], "Runs", Console(width=width), ["val/model/top1"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    assert f"{100 * (0.3 + (count - 1) / 100) - 5:.1f}{'*' if count > 1 else ''}" in text
    assert count < 9 or all(f"a_rather_long_name_of_experiment_{i} " in text for i in range(9))
    assert ("more columns are in compare.html" in text) == (count == 9)


@pytest.mark.parametrize("num_sizes", [3, 9])  # few have a tick each in the plot
def test_matrix_and_study_are_written_in_all_forms(num_sizes, tmp_path, figures):
    sizes = [8 * 2**i for i in range(num_sizes)]
    for backbone in ("vgg16", "resnet50"):
        for i, size in enumerate(sizes):
            keys = {"model__backbone": backbone, "data__batch_size": size}
            write_run(tmp_path / "runs" / f"{backbone}_{size}", (0.3, 0.4 + i / 100), **keys)
    options = {"matrix": ["model.backbone", "data.batch_size"], "against": "data.batch_size"}
    write_comparison([tmp_path / "runs"], out := tmp_path / "out", **options)
    matrix, minutes = (pd.read_csv(out / f"{name}.csv", index_col=0) for name in ("matrix", "matrix_minutes"))
    assert matrix.loc["vgg16"].to_dict() == {str(size): round(0.4 + i / 100, 2) for i, size in enumerate(sizes)}
    assert minutes.to_numpy() == pytest.approx(28.5 / 60)
    study = pd.read_csv(out / "against.csv")
    assert study["data.batch_size"].tolist() == sizes * 2 and (study["best_after_s"] == 21).all()
    for text in ((out / name).read_text() for name in ("compare.md", "compare.html")):
        assert all(s in text for s in ("by model.backbone and data.batch_size", "By data.batch_size", "Slowest: "))
    assert all((out / f"{name}.png").is_file() for name in ("matrix", "matrix_minutes", "against"))
    texts = [text for figure in figures for text in texts_of(figure)]
    assert "Framed: the highest of each row; heavy frame: of all." in texts and f"{40 + num_sizes - 1:.1f}" in texts


def test_cells_of_a_grid_by_networks(tmp_path, figures):
    cells = {11: (0.1, 0.9), 4: (0.01, 0.5)}  # of other numbers than the trials, in a search for each network
    for i, backbone in enumerate(("vgg19", "mobilenet")):
        sweep = tmp_path / backbone / "r4_sgd"
        for trial, (lr, momentum) in enumerate(cells.values()):
            keys = {"model__backbone": backbone, "optimizer__lr": lr, "optimizer__momentum": momentum}
            write_run(sweep / "trials" / f"000{trial}", (0.2, 0.3 + (10 * i + trial) / 100), **keys)
        listed = {"trial": [0, 1], "cell": list(cells), "folder": ["trials/0000", "trials/0001"]}
        pd.DataFrame(listed).to_csv(sweep / "trials.csv", index=False)
    searches, keys = [*tmp_path.glob("*/r4_sgd")], "sweep.cells,optimizer.lr,optimizer.momentum"
    frame = write_comparison(searches, tmp_path / "out", matrix=[keys, "model.backbone"])
    matrix = pd.read_csv(tmp_path / "out" / "matrix.csv", index_col=0)
    assert matrix.index.tolist() == ["11, 0.1, 0.9", "4, 0.01, 0.5"]
    assert matrix["vgg19"].tolist() == [0.3, 0.31] and matrix["mobilenet"].tolist() == [0.4, 0.41]
    assert not any("sweep.cells" in name for name in frame.index)
    sheets = [figure for figure in figures if not figure.axes[0].axison]
    assert all(keys.replace(",", ", ") in texts_of(figure) for figure in sheets)  # longer than the matrix is high


def test_runs_on_one_data_set_with_different_losses_are_told_apart(tmp_path, capsys):
    for name, root, smoothing in (("a", "cars", 0.0), ("b", "birds", 0.1), ("c", "cars", 0.0), ("d", "cars", 0.1)):
        write_run(tmp_path / name, data__name="folder", data__root=root, loss__label_smoothing=smoothing)
    for names, is_noted in (("abc", False), ("abcd", True)):
        write_comparison([tmp_path / name for name in names], tmp_path / f"out_{names}")
        assert ("have different losses (loss.label_smoothing)" in capsys.readouterr().out) == is_noted


def test_names_and_order_are_those_given_and_runs_may_be_in_the_current_folder(runs, tmp_path, monkeypatch):
    frame = write_comparison([runs], tmp_path / "out", names=["a", "b", "c", "d"], sort="cost")
    assert frame.index.tolist() == ["c", "a", "d", "b"]
    assert frame["cost"].tolist()[:3] == [0.2, 0.25, 0.5]  # of two folds at 0.1 each
    table = pd.read_csv(tmp_path / "out" / "compare.csv", index_col="run", keep_default_na=False)
    assert table["model.backbone"].to_dict() == {"c": "resnet50", "a": "vgg16", "d": "null", "b": "null"}
    monkeypatch.chdir(runs / "cut_short")
    assert len(write_comparison([Path()], tmp_path / "bare")) == 1
