"""Which folders are the folds of a run."""

from carvision.run_report.folds import finished_folds


def test_finished_folds_come_by_number(tmp_path):
    for name in ("fold_10", "fold_9", "fold_1", "fold_2", "seed_0"):
        (tmp_path / name).mkdir()
        if name != "fold_2":  # which is unfinished
            (tmp_path / name / "model.json").write_text("{}")
    assert [part.name for part in finished_folds(tmp_path)] == ["fold_1", "fold_9", "fold_10"]
    assert finished_folds(tmp_path / "fold_1") == finished_folds(tmp_path / "nowhere") == []
