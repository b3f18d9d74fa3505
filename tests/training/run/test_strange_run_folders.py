"""Run folders with files that are damaged, links, or another program's: a logged fallback, or one line."""

import io
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from carvision.errors import InputError
from carvision.files import folders
from carvision.training.callbacks import read_history
from carvision.training.run.folder import is_finished
from carvision.training.run.resume import find_resume_point
from tests.small_runs import demo, train

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


@pytest.fixture(scope="module")
def ended(made, tmp_path_factory):
    """The folder of the run after both epochs."""
    overrides, folder = made
    return train(shutil.copytree(folder, tmp_path_factory.mktemp("ended") / "run"), *overrides)


def is_one_line(error: pytest.ExceptionInfo) -> bool:
    text = str(error.value)
    return "\n" not in text and "remove it" not in text and "delete" not in text


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_config_of_another_program_is_not_a_run(demo_photos, tmp_path):
    for content in ("database: prod\n", "trainer: {max_epochs: 3}\nmodel: {name: x}\ndata: {root: y}\noptimizer: {}\n"):
        folder = tmp_path / "project"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(content)
        with pytest.raises(InputError, match="project exists already and holds something else; give a folder") as error:
            train(folder, *demo(demo_photos))
        assert is_one_line(error) and names_in(folder) == ["config.yaml"]
        assert (folder / "config.yaml").read_text() == content


def test_an_early_error_removes_only_what_this_start_made(demo_photos, tmp_path):
    wrong = [*demo(demo_photos), "callbacks.monitor=val/nothing"]
    with pytest.raises(InputError, match="nothing"):
        train(tmp_path / "new", *wrong)
    assert not (tmp_path / "new").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(InputError, match="nothing"):
        train(mine, *wrong)
    assert names_in(mine) == []  # made by somebody else
    (mine / "notes.txt").write_text("mine")
    (mine / "tensorboard").mkdir()
    (mine / "tensorboard" / "notes.txt").write_text("mine")
    for name in ("config.yaml", "run.log", "tensorboard/events.out.tfevents.1.2.3"):
        (mine / name).write_text("ours")
    folders.remove_beginning(mine, made=True)
    assert sorted(path.name for path in mine.rglob("*")) == ["notes.txt", "notes.txt", "tensorboard"]


LINKED = (
    "config.yaml.partial", "history.csv", "history.csv.partial", "seconds.json", "environment.json",
    "checkpoints/new.ckpt", "checkpoints/best.ckpt.partial", "tensorboard/hparams.yaml", "model.safetensors",
    "model.safetensors.partial", "model.json", "metrics.json.partial",
)  # fmt: skip


def test_nothing_is_written_through_a_link(begun, tmp_path):
    overrides, folder = begun
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, name in enumerate(LINKED):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / str(number))
        if number % 2:  # the others lead nowhere
            (outside / str(number)).write_text("precious")
    (tmp_path / "link").symlink_to(folder)  # the folder itself and its parents may be links
    (tmp_path / "parent").symlink_to(tmp_path)
    train(tmp_path / "parent" / "link", *overrides)
    assert is_finished(folder) and not any((folder / name).is_symlink() for name in LINKED)
    assert {path.read_text() for path in outside.iterdir()} == {"precious"}
    assert len(names_in(outside)) == len(LINKED) // 2


@pytest.mark.parametrize("name", [".lock", "run.log"])
def test_files_that_are_locked_or_appended_to_must_not_be_links(name, begun, tmp_path):
    overrides, folder = begun
    (tmp_path / "outside").write_text("precious")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="is a symbolic link, and nothing is written through one") as error:
        train(folder, *overrides)
    assert is_one_line(error) and (tmp_path / "outside").read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_runs_folders_must_not_be_links_out_of_it(name, begun, tmp_path):
    overrides, folder = begun
    outside = shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(outside)
    for other in ("best.ckpt", "new.ckpt"):  # of somebody else
        (Path(outside) / other).write_bytes(b"precious")
    before = {file: file.read_bytes() for file in Path(outside).iterdir()}
    with pytest.raises(InputError, match=rf"{name} is a symbolic link to .*outside, outside of") as error:
        train(folder, *overrides)
    assert is_one_line(error) and {file: file.read_bytes() for file in Path(outside).iterdir()} == before


def test_files_have_the_permissions_of_the_umask(demo_photos, tmp_path):
    umask = 0o027
    before = os.umask(umask)
    try:
        folder = train(tmp_path / "run", *demo(demo_photos), *OVERRIDES, "trainer.max_epochs=1", pictures=True)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert {"model.safetensors", "last.ckpt", "history.csv", ".lock", "run.log"} <= {path.name for path in modes}
    wrong = {path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}
    assert not wrong


def test_a_lost_history_is_restored_and_damaged_seconds_are_reported(begun):
    overrides, folder = begun
    before = pd.read_csv(folder / "history.csv", dtype=str)
    (folder / "history.csv").unlink()
    (folder / "seconds.json").write_bytes(b"\xff")
    (folder / "environment.json").write_bytes(b"")
    train(folder, *overrides)
    after = pd.read_csv(folder / "history.csv", dtype=str)
    assert after["epoch"].tolist() == ["0", "1"]
    pd.testing.assert_frame_equal(after[:1], before)
    log = (folder / "run.log").read_text()
    assert "history.csv lacked 1 rows, from epoch 0 on: they are restored" in log and "seconds.json is damaged" in log


def test_a_damaged_history_has_no_rows(tmp_path):
    file = tmp_path / "history.csv"
    large = b"epoch\n99999999999999999999\n"
    for content in (b"", b"\xff\x00\xfe", b"a,b\n1,2\n", b"epoch\nx\n", b"epoch,lr\n", large):
        file.write_bytes(content)
        assert read_history(file) == []


def garbage_zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("archive/data.pkl", b"garbage")
    return made.getvalue()


def saved(content) -> bytes:
    made = io.BytesIO()
    torch.save(content, made)
    return made.getvalue()


def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(begun):
    overrides, folder = begun
    last = folder / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    state = torch.load(last, weights_only=True)
    middle = len(content) // 2
    line = r"last\.ckpt is not a complete checkpoint.*model\.weights=.*best\.ckpt"
    for damage in (
        b"", content[:middle], content[:middle] + bytes(100) + content[middle + 100 :], garbage_zip(), saved({}),
        saved([1]), saved({"epoch": 1}), saved({**state, "epoch": "x"}), saved({**state, "epoch": -3}),
        saved({**state, "callbacks": {}}), saved({**state, "callbacks": None}), saved({**state, "batches_done": None}),
        saved({**state, "optimizer_states": []}), saved({**state, "loops": {}}),
    ):  # fmt: skip
        last.unlink()
        last.write_bytes(damage)
        with pytest.raises(InputError, match=line) as error:
            find_resume_point(folder / "checkpoints", repair=True)
        assert is_one_line(error)
    with pytest.raises(InputError, match=line):
        train(folder, *overrides)
    assert len(pd.read_csv(folder / "history.csv")) == 1


def test_a_checkpoint_of_another_network_or_epoch_is_refused_in_one_line(begun, demo_photos, tmp_path):
    overrides, folder = begun
    last = folder / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    other = train(tmp_path / "other", *overrides, "model.backbone=test_vit", "run.max_epochs_per_start=1")
    for content in ((other / "checkpoints" / "last.ckpt").read_bytes(), saved({**state, "optimizer_states": [{}]})):
        last.unlink()
        last.write_bytes(content)
        with pytest.raises(InputError, match=r"last\.ckpt does not fit .* is of another network") as error:
            train(folder, *overrides)
        assert is_one_line(error)
    last.write_bytes(saved({**state, "epoch": 7}))
    with pytest.raises(InputError, match=r"trainer\.max_epochs: the run has trained 8 epochs already") as error:
        train(folder, *overrides)


def test_a_damaged_best_checkpoint_and_damaged_metrics_are_replaced(made, ended, tmp_path):
    """A zip file with the right checksums that torch can't read, or another network's weights."""
    folder = shutil.copytree(ended, tmp_path / "run")
    best = folder / "checkpoints" / "best.ckpt"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for content in (garbage_zip(), saved({**state, "state_dict": {}})):
        for damaged in (b"[]", b"\xff\xfe", b"{", b"{}", b""):
            (folder / "metrics.json").write_bytes(damaged)
            assert not is_finished(folder)
        best.unlink()
        best.write_bytes(content)
        train(folder, *made[0])
        assert is_finished(folder)


def test_a_damaged_configuration_beside_checkpoints_is_refused_in_one_line(begun):
    overrides, folder = begun
    file = folder / "config.yaml"
    for content in (b"", b"- a\n- b\n", b"\xff\x00", b"a: [", b"database: prod\n", None):
        file.unlink() if content is None else file.write_bytes(content)
        before = sorted(path.name for path in folder.rglob("*"))
        line = r"its config\.yaml is missing, damaged or another.*model\.weights="
        with pytest.raises(InputError, match=line) as error:
            train(folder, *overrides)
        assert is_one_line(error) and sorted(path.name for path in folder.rglob("*")) == before


def test_a_damaged_list_of_splits_is_refused_or_reported(begun):
    overrides, folder = begun
    for content in (b"", b"\xff\x00", b"path\na\na\n", b"a,b\n1,2\n", b"[1, 2"):
        (folder / "splits.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"splits\.csv can't be read .*run\.allow_changes=true") as error:
            train(folder, *overrides)
        assert is_one_line(error)
    train(folder, *overrides, "run.allow_changes=true", "run.max_epochs_per_start=1")
    assert "using the photos as they are now" in (folder / "run.log").read_text()


def test_files_instead_of_folders_and_the_reverse_are_refused(begun, tmp_path):
    overrides, run = begun
    for name in ("tensorboard", "checkpoints"):
        folder = shutil.copytree(run, tmp_path / f"file_{name}")
        shutil.rmtree(folder / name)
        (folder / name).write_bytes(b"")
        with pytest.raises(InputError) as error:
            train(folder, *overrides)
        assert is_one_line(error)
    for name in ("history.csv", "seconds.json", "environment.json", "metrics.json"):
        folder = shutil.copytree(run, tmp_path / f"folder_{name}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        with pytest.raises(InputError, match=rf"{name}.* can't be written") as error:
            train(folder, *overrides)
        assert is_one_line(error)


def test_a_run_whose_checkpoints_are_lost_is_not_overwritten(made, ended, tmp_path):
    folder = shutil.copytree(ended, tmp_path / "run")
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(InputError, match="holds a history of 2 epochs, and its last checkpoint is gone") as error:
        train(folder, *made[0])
    assert is_one_line(error) and len(pd.read_csv(folder / "history.csv")) == 2


def test_a_name_that_is_too_long_is_one_line(demo_photos, tmp_path):
    for name in ("x" * 300, "/".join(["y" * 200] * 30)):
        with pytest.raises(InputError, match=r"run\.dir: .*File name too long") as error:
            train(tmp_path / name, *demo(demo_photos))
        assert is_one_line(error) and len(str(error.value)) < 500
    assert not Path(tmp_path / ("x" * 300)).parent.joinpath("config.yaml").exists()
