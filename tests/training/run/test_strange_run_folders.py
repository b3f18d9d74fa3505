"""Run folders with files that are damaged, links, or another program's: a logged fallback, or one line."""

import io
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from carvision.files import folders
from carvision.training.run.folder import is_finished
from carvision.training.run.resume import read_resume_point
from tests.small_runs import demo, refuse, train

OVERRIDES = ["optimizer.lr=0.01", "augment=none", "features.keep=false"]


@pytest.fixture(scope="module")
def made(demo_photos, tmp_path_factory):
    """(overrides, the folder of a run after one of its two epochs)"""
    overrides = [*demo(demo_photos), *OVERRIDES]
    folder = tmp_path_factory.mktemp("made") / "run"
    return overrides, train(folder, *overrides, "run.max_epochs_per_start=1")


@pytest.fixture
def begun(made, tmp_path):
    """A copy of `made` that a test may write to."""
    return made[0], shutil.copytree(made[1], tmp_path / "run")


def test_an_early_error_removes_only_what_this_start_made(demo_photos, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in (tmp_path / "new", mine):
        refuse("nothing", folder, *demo(demo_photos), "callbacks.monitor=val/nothing")
    assert not (tmp_path / "new").exists() and not [*mine.iterdir()]
    (mine / "tensorboard").mkdir()
    for name in ("notes.txt", "tensorboard/notes.txt", "config.yaml", "tensorboard/events.out.tfevents.1.2"):
        (mine / name).write_text("text")
    folders.remove_beginning(mine, made=True)
    assert sorted(path.name for path in mine.rglob("*")) == ["notes.txt", "notes.txt", "tensorboard"]


def test_nothing_is_written_through_a_link(begun, tmp_path):
    linked = (
        "config.yaml.partial", "history.csv", "history.csv.partial", "seconds.json", "metrics.json.partial",
        "checkpoints/last.ckpt.partial", "checkpoints/best.ckpt.partial", "tensorboard/hparams.yaml",
        "model.safetensors.partial",
    )  # fmt: skip
    overrides, folder = begun
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, name in enumerate(linked):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / str(number))
        if number % 2:  # the others lead nowhere
            (outside / str(number)).write_text("precious")
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be a link
    train(tmp_path / "link", *overrides)
    assert is_finished(folder) and not any((folder / name).is_symlink() for name in linked)
    assert {path.read_text() for path in outside.iterdir()} == {"precious"}
    assert len([*outside.iterdir()]) == len(linked) // 2


@pytest.mark.parametrize(("name", "line"), [
    ("checkpoints", "checkpoints is a symbolic link to .*outside/checkpoints, outside of"),
    ("run.log", "is a symbolic link, and nothing is written through one"),
])  # fmt: skip
def test_folders_and_files_that_are_locked_or_appended_to_must_not_be_links(name, line, begun, tmp_path):
    overrides, folder = begun
    outside = tmp_path / "outside"
    outside.mkdir()
    target = Path(shutil.move(folder / name, outside))
    (folder / name).symlink_to(target)
    for other in ("best.ckpt", "last.ckpt.partial") if target.is_dir() else ():  # of somebody else
        (target / other).write_bytes(b"precious")
    before = {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()}
    refuse(line, folder, *overrides)
    assert before and {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()} == before


def test_a_lost_history_is_restored_and_damaged_seconds_are_reported(begun):
    overrides, folder = begun
    before = pd.read_csv(folder / "history.csv", dtype=str)
    (folder / "history.csv").unlink()
    (folder / "seconds.json").write_bytes(b"\xff")
    (folder / "environment.json").write_bytes(b'{"a": 1}')
    train(folder, *overrides)
    after = pd.read_csv(folder / "history.csv", dtype=str)
    assert after["epoch"].tolist() == ["0", "1"] and after[:1].equals(before)
    log = (folder / "run.log").read_text()
    assert "seconds.json is damaged" in log and "its records of earlier starts are lost" in log


def garbage_zip() -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w") as file:
        file.writestr("archive/data.pkl", b"garbage")
    return made.getvalue()


def saved(content) -> bytes:
    torch.save(content, made := io.BytesIO())
    return made.getvalue()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(begun):
    overrides, folder = begun
    last = folder / "checkpoints" / "last.ckpt"
    content, state = last.read_bytes(), torch.load(last, weights_only=True)
    middle = len(content) // 2
    for damage in (
        content[:middle] + bytes(100) + content[middle + 100 :], garbage_zip(), saved([1]), saved(Bomb()),
        saved({**state, "epoch": -3}), saved({**state, "callbacks": None}), saved({**state, "optimizer_states": []}),
    ):  # fmt: skip
        last.unlink()
        last.write_bytes(damage)
        point, [problem] = read_resume_point(folder / "checkpoints")
        assert point.file == last.with_name("best.ckpt") and "last.ckpt is not a complete checkpoint" in problem
    last.with_name("best.ckpt").write_bytes(damage)
    refuse(r"last\.ckpt is not a complete checkpoint.*best\.ckpt is not.*use a new run\.dir", folder, *overrides)
    assert len(pd.read_csv(folder / "history.csv")) == 1


def test_a_checkpoint_of_another_network_is_refused_in_one_line(begun, demo_photos, tmp_path):
    overrides, folder = begun
    last = folder / "checkpoints" / "last.ckpt"
    other = train(tmp_path / "other", *overrides, "model.backbone=test_vit", "run.max_epochs_per_start=1")
    last.unlink()
    last.write_bytes((other / "checkpoints" / "last.ckpt").read_bytes())
    refuse(r"last\.ckpt does not fit .* is of another network", folder, *overrides)


def test_a_damaged_best_checkpoint_and_damaged_metrics_are_replaced(begun):
    """A zip file with the right checksums that torch can't read, or another network's weights."""
    overrides, folder = begun
    best = folder / "checkpoints" / "best.ckpt"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    train(folder, *overrides)
    for content in (garbage_zip(), saved({**state, "state_dict": {}})):
        (folder / "metrics.json").write_bytes(b"[]")
        best.unlink()
        best.write_bytes(content)
        assert is_finished(train(folder, *overrides))


def test_a_damaged_configuration_beside_checkpoints_is_refused_in_one_line(begun):
    overrides, folder = begun
    file = folder / "config.yaml"
    for content in (b"- a\n- b\n", b"a: [", None):
        file.unlink() if content is None else file.write_bytes(content)
        before = sorted(path.name for path in folder.rglob("*"))
        refuse(r"its config\.yaml is missing, damaged or another.*model\.weights=", folder, *overrides)
        assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_damaged_list_of_splits_is_refused_or_reported(begun):
    overrides, folder = begun
    (folder / "splits.csv").write_bytes(b"path\na\na\n")
    refuse(r"splits\.csv can't be read .*run\.allow_changes=true", folder, *overrides)
    train(folder, *overrides, "run.allow_changes=true", "run.max_epochs_per_start=1")
    assert "using the photos as they are now" in (folder / "run.log").read_text()


def test_files_instead_of_folders_and_the_reverse_are_refused(begun, tmp_path):
    overrides, run = begun
    for name in ("history.csv", "metrics.json", "tensorboard"):
        folder = shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns(name))
        (folder / name).mkdir() if "." in name else (folder / name).touch()
        refuse(rf"{name}.* can't be written" if "." in name else name, folder, *overrides)
