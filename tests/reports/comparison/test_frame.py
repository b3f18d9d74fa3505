"""Runs are found, read, named, put side by side and marked: on miniature folders in the layout that runs write."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from carvision.errors import InputError
from carvision.reports.comparison.frame import finest_metric, pareto_front, runs_frame
from carvision.reports.comparison.runs import find_runs, read_run
from carvision.reports.comparison.settings import SEVERAL, Matrix, data_sets_of, differing_keys, matrix_of, name_runs
from carvision.reports.comparison.tables import best_marks, matrix_marks, matrix_tables, shown_columns

NAN = float("nan")


def write_run(folder: Path, top1=(0.2, 0.5, 0.4), heads=("class",), finished=True, price=None, **config) -> Path:
    """Write a run with an epoch for each of `top1`, the validation accuracy; config: keys with "__" for "."."""
    folder.mkdir(parents=True)
    nested: dict = {"callbacks": {"monitor": "val/loss", "mode": "min"}, "run": {"dir": str(folder)}}
    for key, value in config.items():
        group, name = key.split("__")
        nested.setdefault(group, {})[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    columns = {"epoch": np.arange(len(top1)), "lr": 0.1, "seconds": 10.0 + np.arange(len(top1))}
    for split, values in (("train", np.array(top1) + 0.1), ("val", np.array(top1))):
        for i, head in enumerate(heads):
            columns |= {f"{split}/{head}/top1": values - 0.05 * i, f"{split}/{head}/loss": 2 - values}
        columns |= dict.fromkeys((f"{split}/loss", f"{split}/loss_total"), len(heads) * (2 - values))
        columns |= {f"{split}/joint/top1": values - 0.1} if len(heads) > 1 else {}
    pd.DataFrame(columns).to_csv(folder / "history.csv", index=False, float_format="%.6g")
    if finished:
        history = pd.read_csv(folder / "history.csv")
        best, training = history.loc[history["val/loss"].idxmin()], float(history["seconds"].sum())
        metrics: dict = {"best_epoch": int(best["epoch"])} | ({} if price is None else {"cost": price})
        for split in ("train", "val"):
            metrics[split] = {k.removeprefix(f"{split}/"): v for k, v in best.items() if k.startswith(f"{split}/")}
        metrics["test"] = {name: value * 0.9 for name, value in metrics["val"].items()}
        seconds = {"reading": 1.0, "building": 2.0, "training": training, "test": 3.0}
        metrics["seconds"] = seconds | {"total": training + 7.5, "cpu": 2 * training}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "summary.txt").write_text("part  parameters  trained\nall   1,234,567        8\n")
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def write_folds(folder: Path, tops, **config) -> Path:
    folds = [write_run(folder / f"fold_{i}", top1, **config) for i, top1 in enumerate(tops)]
    shutil.copy(folds[0] / "config.yaml", folder)
    tests = pd.DataFrame([metrics_of(fold)["test"] for fold in folds])
    summary = {"folds": len(tops), "test": tests.agg(["mean", "std"]).to_dict()}
    (folder / "metrics.json").write_text(json.dumps(summary))
    return folder


def compared(*folders: Path, **options):
    runs = [read_run(folder) for folder in find_runs(folders)]
    return runs_frame(runs, name_runs(runs), **options), runs


def test_all_values_are_those_of_the_files(tmp_path):
    two, one = write_run(tmp_path / "two", heads=("make", "model"), price=0.25), write_run(tmp_path / "one", (0.3, 0.6))
    frame, _ = compared(two, one)
    for (_, row), folder in zip(frame.iterrows(), (two, one), strict=True):
        metrics = metrics_of(folder)
        for split in ("train", "val", "test"):
            values = row.filter(like=f"{split}/").dropna()
            assert {name.removeprefix(f"{split}/"): value for name, value in values.items()} == metrics[split]
        seconds = metrics["seconds"]
        assert (row["best_epoch"], row["folder"], row["state"]) == (metrics["best_epoch"], str(folder), "finished")
        assert (row["wall_min"], row["cpu_min"]) == (seconds["total"] / 60, seconds["cpu"] / 60)
        assert (row["training_s"], row["parameters"]) == (seconds["training"], 1_234_567)
    assert frame["cost"].tolist() == pytest.approx([0.25, NAN], nan_ok=True)
    assert frame["epochs"].tolist() == [3, 2] and frame["best_after_s"].tolist() == [21, 21]
    frame, _ = compared(two, one, price_per_hour=0.9)
    assert frame["cost"].tolist() == pytest.approx([0.9 * 40.5 / 3600, 0.9 * 28.5 / 3600])
    del (metrics := metrics_of(two))["seconds"]["total"]  # as of earlier versions: the stages are added
    (two / "metrics.json").write_text(json.dumps(metrics))
    assert compared(two)[0]["wall_min"].iloc[0] == (1 + 2 + 33 + 3) / 60


def test_an_unfinished_run_has_the_best_epoch_of_its_monitor_or_the_last(tmp_path):
    for monitor, mode, epoch in (("val/loss", "min", 1), ("val/class/top1", "max", 1), ("gone", "max", 2)):
        keys = {"callbacks__monitor": monitor, "callbacks__mode": mode}
        folder = write_run(tmp_path / monitor, finished=False, **keys)
        frame, _ = compared(folder)
        row = frame.iloc[0]
        assert row["state"] == "unfinished" and row["best_epoch"] == epoch and "test/class/top1" not in frame
        assert row["val/class/top1"] == pd.read_csv(folder / "history.csv")["val/class/top1"][epoch]
        assert row["wall_min"] == pytest.approx(33 / 60)


def test_folds_are_one_run_with_mean_and_spread(tmp_path):
    parent = write_folds(tmp_path / "folds", [(0.2, 0.5), (0.3, 0.7), (0.4, 0.6, 0.5)])
    frame, [run] = compared(tmp_path)
    summary, row = metrics_of(parent)["test"]["class/top1"], frame.iloc[0]
    assert row["folds"] == 3 and row["state"] == "finished"
    assert (row["test/class/top1"], row["test/class/top1/std"]) == (summary["mean"], summary["std"])
    assert row["val/class/top1"] == pytest.approx(0.6) and row["val/class/top1/std"] == pytest.approx(0.1)
    assert row["wall_min"] == pytest.approx((21 + 21 + 33 + 3 * 7.5) / 60)
    assert run.history["epoch"].tolist() == [0, 1]  # the two epochs that all folds have
    assert run.history["val/class/top1"].tolist() == pytest.approx([0.3, 0.6])
    many = write_folds(tmp_path / "many", [(0.2, 0.5)] * 2, heads=tuple(f"head{i}" for i in range(60)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas' of fragmented frames
        assert compared(many)[1][0].history.shape == (2, 3 + 2 * (2 * 60 + 3))
    for fold in parent.glob("fold_*"):
        shutil.rmtree(fold)
    frame, runs = compared(parent)  # the summary is left
    assert frame["test/class/top1"].iloc[0] == summary["mean"] and frame["folds"].iloc[0] == 3
    assert finest_metric(frame, runs) == "test/class/top1" and np.isnan(frame["wall_min"].iloc[0])


def test_each_run_is_found_once_in_the_order_of_its_number(tmp_path, caplog):
    for name in ("a/size_16", "a/size_8", "b"):
        write_run(tmp_path / "many" / name)
    write_run(tmp_path / "many" / "b" / "copies" / "earlier")  # a run's folder is not searched
    found = find_runs([tmp_path / "many"])
    assert [str(run.relative_to(tmp_path / "many")) for run in found] == ["a/size_8", "a/size_16", "b"]
    parent = write_folds(tmp_path / "x" / "folds", [(0.2, 0.5), (0.3, 0.7)])
    single = write_run(tmp_path / "x" / "single")
    found = find_runs([parent / "fold_1", single, parent / ".."])
    assert [run.resolve() for run in found] == [single, parent]
    assert "is a part of" in caplog.text and "given twice" in caplog.text


def test_the_metrics_of_an_epoch_are_those_of_the_history(tmp_path, caplog):
    folders = [write_run(tmp_path / "long", run__price_per_hour=3.0), write_run(tmp_path / "short", (0.3,))]
    frame, _ = compared(*folders, epoch=2)
    history, row = pd.read_csv(folders[0] / "history.csv"), frame.iloc[0]
    assert [row[name] for name in ("val/class/top1", "train/loss")] == [0.5, history["train/loss"][1]]
    assert row["wall_min"] == 21 / 60 and row["cost"] == pytest.approx(3 * 21 / 3600)
    assert frame.iloc[1].filter(like="val/").isna().all() and "has no epoch 2" in caplog.text
    assert not any(name.startswith("test/") for name in frame)
    with pytest.raises(InputError, match="the longest has 3"):
        compared(*folders, epoch=4)


def test_tables_show_each_head_and_penalties_and_the_finest_head_has_the_most_classes_or_is_the_last(tmp_path):
    heads = ("make", "model", "doors")
    folder, several = write_run(tmp_path / "a"), write_run(tmp_path / "b", heads=heads)
    names = ["loss", *(f"{head}/loss" for head in heads), *(f"{head}/top1" for head in heads), "joint/top1"]
    assert shown_columns(compared(several)[0])[1] == [f"val/{name}" for name in names]
    metrics = metrics_of(folder)
    metrics["val"]["loss_total"] += 0.5
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert shown_columns(compared(folder)[0])[1] == ["val/loss", "val/loss_total", "val/class/top1"]
    assert finest_metric(*compared(several)) == "val/doors/top1"
    frame = compared(folder, several)[0]  # of one of them the other's heads have no values
    assert shown_columns(frame.iloc[:1])[1] == ["val/loss", "val/loss_total", "val/class/top1"]
    labels = {"make": {"ids": ["a", "b"]}, "model": {"ids": ["c", "d", "e"]}, "doors": {"ids": ["4"]}}
    (several / "model.json").write_text(json.dumps({"labels": labels}))
    assert finest_metric(*compared(several)) == "val/model/top1"


def test_names_are_those_of_the_folders_with_the_settings_that_differ_where_they_repeat(tmp_path):
    for name, optimizer, lr in (("a", "adam", 0.001), ("b", "sgd", 0.01), ("c", "sgd", 0.1)):
        keys = {"optimizer__name": optimizer, "optimizer__lr": lr, f"optimizer__{name}": 1}
        write_run(tmp_path / "few" / name, **keys)
        write_run(tmp_path / "search" / "trials" / name, **keys)
    assert name_runs(compared(tmp_path / "few")[1]) == ["a", "b", "c"]
    runs = compared(tmp_path / "search")[1]
    assert name_runs(runs) == ["optimizer=adam lr=0.001", "optimizer=sgd lr=0.01", "optimizer=sgd lr=0.1"]
    assert differing_keys(runs)[:2] == ["optimizer.name", "optimizer.lr"] and "run.dir" not in differing_keys(runs)
    for i, experiment in enumerate(("baseline", "focal")):  # if much differs
        many = {f"model__{key}": i for key in ("pool", "weights", "neck", "mean")}
        write_run(tmp_path / "much" / experiment / "2026-01-31_12-00-00", **many)
        write_run(tmp_path / "much" / experiment / "2026-01-31_12-00-00_2", **many, optimizer__lr=0.1)
    runs = compared(tmp_path / "much")[1]
    assert name_runs(runs) == ["baseline lr=null", "baseline lr=0.1", "focal lr=null", "focal lr=0.1"]
    assert name_runs(runs[::2]) == ["baseline", "focal"]
    equal = ("first", "x/2026-01-31_12-00-00", "p/same", "q/same")
    runs = [read_run(write_run(tmp_path / name, seed__x=1)) for name in equal]
    assert name_runs(runs[:2]) == ["first", "x"]
    names = name_runs(runs[2:])
    assert len(set(names)) == 2 and str(tmp_path / "p") in names[0]


def test_data_sets_are_told_apart_as_far_as_is_needed(tmp_path):
    photos = ({"root": "/a/cars"}, {"root": "/b/cars"}, {"root": "/b/birds"}, {"root": "/c/birds", "classes": [1, 2]})
    runs = [read_run(write_run(tmp_path / str(i), **{f"data__{key}": value for key, value in data.items()},
                     data__name="folder")) for i, data in enumerate(photos)]  # fmt: skip
    demos = [read_run(write_run(tmp_path / root, data__name="demo", data__root=root)) for root in ("x", "y")]
    names = ["folder /a/cars", "folder /b/cars", "folder birds", "folder birds classes=[1,2]", "demo", "demo"]
    assert data_sets_of([*runs, *demos]) == names and data_sets_of(runs[:1]) == ["folder cars"]


def test_a_run_needs_only_its_history_or_its_metrics_and_a_damaged_file_is_one_line(tmp_path, caplog):
    bare = write_run(tmp_path / "bare", finished=False)
    (bare / "config.yaml").unlink()
    closed = write_run(tmp_path / "closed")
    (closed / "history.csv").unlink()
    (started := tmp_path / "started").mkdir()
    (started / "config.yaml").write_text("seed: 0\n")
    frame, _ = compared(tmp_path)
    assert frame["state"].tolist() == ["unfinished", "finished"]
    assert frame["val/class/top1"].tolist() == [0.5, 0.5] and np.isnan(frame["epochs"].iloc[1])
    assert "has not finished its first epoch" in caplog.text
    for file, content, message in (("metrics.json", "{", "can't be read"), ("metrics.json", "[1]", "does not hold the"),
                                   ("history.csv", "name,x\na,1\n", "has no numeric column 'epoch'")):  # fmt: skip
        (bare / file).write_text(content)
        with pytest.raises(InputError, match=f"{file} {message}[^\n]*$"):
            read_run(bare)
        (bare / file).unlink()


def test_the_best_are_marked_as_they_are_shown_with_ties_and_no_times_of_unfinished_runs():
    columns = {"val/class/top1": [0.90001, 0.90002, 0.89], "val/class/loss": [0.5, NAN, NAN], "wall_min": [1, 0.5, 1]}
    frame = pd.DataFrame({**columns, "epochs": [1, 2, 3], "state": ["finished", "unfinished", "finished"]})
    apart = best_marks(frame.assign(data_set=["a", "b", "b"]))  # no best across data sets
    assert apart["val/class/top1"].tolist() == [False, True, False] and not apart["wall_min"].any()
    marks = best_marks(frame)
    assert marks["val/class/top1"].tolist() == [True, True, False] and marks["wall_min"].tolist() == [True, False, True]
    assert not marks[["val/class/loss", "epochs", "state"]].to_numpy().any()
    assert best_marks(pd.DataFrame({"val/loss": [0.5, 0.4]}))["val/loss"].tolist() == [False, True]


def test_the_pareto_front_is_that_of_the_definition():
    random = np.random.default_rng(0)
    for lower in (False, True):
        amounts, values = random.integers(0, 9, 60).astype(float), random.integers(0, 9, 60).astype(float)
        amounts[3], values[5] = NAN, NAN
        gain = values * (-1 if lower else 1)
        no_worse = (amounts <= amounts[:, None]) & (gain >= gain[:, None])
        better = (amounts < amounts[:, None]) | (gain > gain[:, None])
        front = np.flatnonzero(~(no_worse & better).any(axis=1) & ~np.isnan(amounts + values))
        found = pareto_front(amounts, values, lower)
        assert sorted(found) == front.tolist()
        assert (np.diff(amounts[found]) >= 0).all()


def test_the_matrix_has_the_best_run_of_each_cell(tmp_path, caplog):
    for i, (backbone, optimizer, top1) in enumerate(
        [("vgg", "sgd", [0.5]), ("vgg", "adam", [0.6]), ("vgg", "adam", [0.7, 0.7]), ("resnet", "adam", [0.65])]
    ):
        write_run(tmp_path / str(i), top1, model__backbone=backbone, optimizer__name=optimizer, data__batch_size=8 + i)
    write_run(tmp_path / "without")
    frame, runs = compared(tmp_path)
    matrix = matrix_of(frame, runs, "model.backbone", "optimizer.name", "val/class/top1")
    assert matrix.values.to_numpy().tolist() == pytest.approx(np.array([[0.5, 0.7], [NAN, 0.65]]), nan_ok=True)
    assert matrix.counts.to_numpy().tolist() == [[1, 2], [0, 1]]
    assert matrix.minutes.loc["vgg", "adam"] == pytest.approx((10 + 11 + 7.5) / 60)  # of the better run
    assert "has no model.backbone" in caplog.text
    values, minutes = matrix_tables(matrix)
    assert values.rows[0] == ["vgg", "50.0", "70.0 (of 2)"] and "Slowest" in minutes.notes[0]
    worst = matrix_of(frame, runs, "model.backbone", "optimizer.name", "val/loss")
    assert worst.values.loc["vgg", "adam"] == pytest.approx(2 - 0.7)  # the lower loss


def test_a_matrix_marks_the_best_within_a_data_set():
    frame = pd.DataFrame([[0.7, 0.9, NAN], [0.8, 0.8, 0.5], [0.9, NAN, NAN]])
    one = Matrix("", "", "", frame, frame, frame, frame.map(lambda value: "cars" if value > 0 else ""))
    assert matrix_marks(one, frame, "val/class/top1") == [
        ["", "overall", ""], ["best", "best", ""], ["overall", "", ""]
    ]  # fmt: skip
    assert matrix_marks(one, frame, "wall_min") == [["best", "", ""], ["", "", "overall"], ["", "", ""]]
    data_sets = pd.DataFrame([["cars", "pets", ""], ["cars", "pets", "pets"], [SEVERAL, "", ""]])
    two = Matrix("", "", "", frame, frame, frame, data_sets)
    assert matrix_marks(two, frame, "val/class/top1") == [["", "overall", ""], ["overall", "best", ""], ["", "", ""]]


def test_cells_of_a_matrix_know_their_data_sets(tmp_path):
    for i, (name, rate) in enumerate([("oxford102", 0.1), ("oxford102", 0.2), ("stanford_cars", 0.1)]):
        write_run(tmp_path / str(i), [0.5 + i / 10], data__name=name, optimizer__lr=rate, model__backbone="vgg")
    frame, runs = compared(tmp_path)
    matrix = matrix_of(frame, runs, "data.name", "optimizer.lr", "val/class/top1")
    assert matrix.data_sets.to_numpy().tolist() == [["oxford102", "oxford102"], ["stanford_cars", ""]]
    assert matrix_marks(matrix, matrix.values, "val/class/top1") == [["", "overall"], ["", ""]]
    matrix = matrix_of(frame, runs, "model.backbone", "optimizer.lr", "val/class/top1")
    assert matrix.data_sets.to_numpy().tolist() == [[SEVERAL, "oxford102"]]
    assert matrix_marks(matrix, matrix.values, "val/class/top1") == [["", ""]]
