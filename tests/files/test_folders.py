"""Folders are complete or marked, and recognised as carvision's before anything there is replaced or removed."""

import os

import matplotlib.figure
import pytest
import yaml

from carvision.errors import InputError
from carvision.files import folders
from carvision.files.folders import MARK, claim_folder, find_run, is_run, output_folder, refuse_foreign_picture
from carvision.reports.plots import create_panels, save_figure

GROUPS = ("data", "loss", "augment", "optimizer", "schedule", "trainer", "callbacks")
OURS = {**{group: {} for group in GROUPS}, "model": {"backbone": "resnet50"}, "run": {"dir": None}}


def test_a_run_is_recognised_by_the_keys_of_its_configuration(tmp_path):
    file = tmp_path / "config.yaml"
    assert not is_run(tmp_path) and not is_run(tmp_path / ("x" * 300))
    file.write_text(yaml.safe_dump(OURS))
    assert is_run(tmp_path)
    missing = [{key: value for key, value in OURS.items() if key != group} for group in OURS]
    others = [*missing, [OURS], {**OURS, "data": "photos"}]
    damaged = (b"", b"\xff\x00", b"a: [", b"!!python/object:os.system {}")
    for content in (*damaged, *(yaml.safe_dump(other).encode() for other in others)):
        file.write_bytes(content)
        assert not is_run(tmp_path), content


def test_a_claimed_folder_is_new_or_empty(tmp_path):
    assert claim_folder(tmp_path / "new", tmp_path) == tmp_path / "new"
    assert claim_folder(tmp_path / "new", tmp_path) == tmp_path / "new"  # still empty
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="new exists already and holds something else; give a folder that is new or"):
        claim_folder(tmp_path / "new", tmp_path)
    with pytest.raises(InputError, match=r"x{100}.*\.\.\. can't be made \(File name too long\); choose another"):
        claim_folder(tmp_path / ("x" * 300), tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluations").symlink_to(tmp_path / "new")
    assert claim_folder(None, tmp_path / "run" / "evaluations").is_dir()  # of no run
    (tmp_path / "run" / "model.json").touch()
    with pytest.raises(InputError, match="evaluations is a symbolic link to"):
        claim_folder(None, tmp_path / "run" / "evaluations", "test_", "--out")


def test_a_picture_replaces_only_one_of_carvision(tmp_path):
    file = tmp_path / "sheet.png"
    for _ in range(2):
        refuse_foreign_picture(file, "out")
        save_figure(create_panels(1, 1, 1, 1)[0], file)
    matplotlib.figure.Figure(figsize=(1, 1)).savefig(file)
    for content in (file.read_bytes(), b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"out: .*sheet\.png exists and is no picture of carvision's"):
            refuse_foreign_picture(file, "out")
    (tmp_path / "other.png.partial").write_text("mine")
    for name, message in (("other.png", r"other\.png\.partial exists, .*give another name"),
                          ("x" * 250, "File name too long")):  # of the unfinished file alone  # fmt: skip
        with pytest.raises(InputError, match=message):
            refuse_foreign_picture(tmp_path / name, "out")


def test_only_checkpoints_are_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt", "mine.ckpt"):
        (folder / name).write_text("")
    folders.remove_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.ckpt"]
    (folder / "mine.ckpt").rename(folder / "best.ckpt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(folder)
    folders.remove_checkpoints(tmp_path / "run" / "checkpoints")
    assert (folder / "best.ckpt").exists()
    folders.remove_checkpoints(folder)
    assert not folder.exists()


def killed(folder, *names) -> None:
    """Leave the folder as a process does that is killed after it has written these files."""
    child = os.fork()
    if not child:
        with output_folder(folder, folder.parent, "embeddings"):
            for name in names:
                (folder / name).write_text("of the killed one")
            os._exit(9)
    assert os.waitpid(child, 0)[1] >> 8 == 9


def refused(folder, command="embeddings") -> None:
    with pytest.raises(InputError, match=r"--out: .* exists already"), output_folder(folder, folder, command):
        pass


def test_a_folder_is_complete_or_marked(tmp_path):
    with output_folder(None, tmp_path / "all", "embeddings", "test_") as folder:
        assert folder.parent == tmp_path / "all" and folder.name.startswith("test_") and (folder / MARK).exists()
        (folder / "embeddings.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["embeddings.json"]
    refused(folder)


def test_the_same_command_starts_over_after_a_kill_and_leaves_other_files_alone(tmp_path):
    folder, names = tmp_path / "out", ("embeddings.npy.partial", "index.csv")
    killed(folder, *names)
    refused(folder, "evaluate")
    assert {path.name for path in folder.iterdir()} >= {MARK, *names}
    (folder / "history.csv").write_text("mine")
    with output_folder(folder, tmp_path, "embeddings"):
        assert not {path.name for path in folder.iterdir()} & set(names)
    assert [path.name for path in folder.iterdir()] == ["history.csv"]
    refused(folder)
    assert [path.name for path in folder.iterdir()] == ["history.csv"]


@pytest.mark.parametrize("name", ["", "index.csv"])
def test_after_an_error_before_anything_was_written_the_folder_is_removed(name, tmp_path):
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", tmp_path, "embeddings") as folder:
        if name:
            (folder / name).write_text("")
        raise KeyboardInterrupt
    assert folder.exists() == bool(name)
    with output_folder(folder, tmp_path, "embeddings"):
        assert not (folder / "index.csv").exists()


def test_two_commands_do_not_write_into_one_folder(tmp_path):
    killed(tmp_path / "out")
    with output_folder(tmp_path / "out", tmp_path, "embeddings"):
        child = os.fork()
        if not child:
            try:
                with output_folder(tmp_path / "out", tmp_path, "embeddings"):
                    os._exit(1)
            except InputError as error:
                os._exit(0 if "another command is writing into" in str(error) else 2)
        assert os.waitpid(child, 0)[1] == 0


def test_a_run_is_found_by_its_path_as_the_newest_of_a_folder_and_as_latest(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"latest: there is no finished run below .*runs; give a run's folder"):
        find_run("latest")
    for age, name in enumerate(["runs/demo/b", "runs/demo/a", "runs/folder/c", "runs/folder/seeds/seed_1"]):
        folder = tmp_path / name
        (folder / "export" / "hub").mkdir(parents=True)
        for file in (folder / "model.json", folder / "export" / "hub" / "model.json"):
            file.touch()
        os.utime(folder / "model.json", (1000 - age, 1000 - age))
    (tmp_path / "runs" / "demo" / "unfinished").mkdir()
    (tmp_path / "runs" / "demo" / "unfinished" / "config.yaml").write_text(yaml.safe_dump(OURS))
    assert [str(find_run(text)) for text in ("latest", "runs", "runs/folder/")] == [
        "runs/demo/b", "runs/demo/b", "runs/folder/c"
    ]  # fmt: skip
    assert caplog.messages[0] == "latest: runs/demo/b is the newest run" and len(caplog.messages) == 3
    # As they are: a run, finished or not, a model file, embeddings, what is no run or does not exist
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "embeddings.json").touch()
    others = ["runs/demo/a", "runs/demo/unfinished", "runs/demo/a/model.safetensors", "embeddings", "none", "x" * 300]
    assert [str(find_run(text)) for text in others] == others and len(caplog.messages) == 3
    (tmp_path / "latest").mkdir()
    assert str(find_run("latest")) == "latest"
