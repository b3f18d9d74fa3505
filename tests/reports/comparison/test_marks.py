"""Marks of the best, the Pareto front, matrices, and studies of one setting."""

import numpy as np
import pandas as pd
import pytest

from carvision.errors import InputError
from carvision.reports.comparison.frame import pareto_front
from carvision.reports.comparison.settings import against_of, matrix_of
from carvision.reports.comparison.tables import best_marks, matrix_marks, matrix_tables
from tests.reports.comparison.test_frame import NAN, compared, write_run


def test_the_lowest_loss_and_time_and_the_highest_accuracy_are_best_with_ties(tmp_path):
    frame, _ = compared(
        write_run(tmp_path / "a", (0.2, 0.5)),
        write_run(tmp_path / "b", (0.2, 0.5)),
        write_run(tmp_path / "c", (0.4, 0.1, 0.2)),
        write_run(tmp_path / "d", (0.45,), finished=False),
    )
    marks = best_marks(frame)
    for column in ("val/loss", "val/class/top1", "wall_min", "cpu_min"):
        assert marks[column].tolist() == [True, True, False, False], column  # the unfinished d took the least time
    assert frame["wall_min"].idxmin() == frame.index[3]
    assert not marks[["epochs", "best_epoch", "parameters"]].to_numpy().any()


def test_values_shown_equal_are_marked_equal_and_a_single_one_is_not_marked():
    frame = pd.DataFrame({"val/class/top1": [0.90001, 0.90002, 0.89], "val/class/loss": [0.5, NAN, NAN]}, list("abc"))
    assert best_marks(frame).to_numpy().tolist() == [[True, False], [True, False], [False, False]]


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


@pytest.fixture
def grid(tmp_path):
    """vgg by two optimizers, one of them twice; resnet with one; a run without the key."""
    tops = {("vgg", "sgd"): [0.5], ("vgg", "adam"): [0.6, 0.7], ("resnet", "adam"): [0.65]}
    for (backbone, optimizer), values in tops.items():
        for i, top1 in enumerate(values):
            folder = tmp_path / f"{backbone}_{optimizer}_{i}"
            epochs = [top1] * (1 + i)
            write_run(folder, epochs, model__backbone=backbone, optimizer__name=optimizer, data__batch_size=8 * (i + 1))
    write_run(tmp_path / "without")
    return compared(tmp_path)


def test_the_matrix_has_the_best_run_of_each_cell(grid, caplog):
    frame, runs = grid
    matrix = matrix_of(frame, runs, "model.backbone", "optimizer.name", "val/class/top1")
    assert matrix.values.loc["vgg"].to_dict() == {"sgd": 0.5, "adam": 0.7}
    assert matrix.values.loc["resnet", "adam"] == 0.65 and np.isnan(matrix.values.loc["resnet", "sgd"])
    assert matrix.counts.loc["vgg", "adam"] == 2 and matrix.counts.loc["resnet", "sgd"] == 0
    assert matrix.minutes.loc["vgg", "adam"] == pytest.approx((10 + 11 + 7.5) / 60)  # of the better run
    assert "has no model.backbone" in caplog.text
    values, minutes = matrix_tables(matrix)
    cell = values.rows[1 - matrix.values.index.get_loc("resnet")][values.header.index("adam")]
    assert cell == "70.00 (of 2)" and "Slowest" in minutes.notes[0]
    worst = matrix_of(frame, runs, "model.backbone", "optimizer.name", "val/loss")
    assert worst.values.loc["vgg", "adam"] == pytest.approx(2 - 0.7)  # the lower loss


def test_marks_of_a_matrix():
    values = pd.DataFrame([[0.7, 0.9, NAN], [0.8, 0.8, 0.5], [0.9, NAN, NAN]], index=list("abc"))
    assert matrix_marks(values, "val/class/top1") == [["", "overall", ""], ["best", "best", ""], ["overall", "", ""]]
    assert matrix_marks(values, "wall_min") == [["best", "", ""], ["", "", "overall"], ["", "", ""]]


def test_a_study_is_sorted_by_group_and_number(grid):
    frame, runs = grid
    groups = [run.config.get("model.backbone", "none") for run in runs]
    table = against_of(frame, runs, "data.batch_size", groups)
    assert table["group"].tolist() == ["resnet", "vgg", "vgg", "vgg"]
    assert table["data.batch_size"].tolist() == [8, 8, 8, 16]
    with pytest.raises(InputError, match=r"--against: optimizer\.name is 'adam'.*must be a number"):
        against_of(frame, runs, "optimizer.name", groups)
    with pytest.raises(InputError, match=r"'data\.batchsize' is not a key .*nearest: data\.batch_size"):
        against_of(frame, runs, "data.batchsize", groups)
