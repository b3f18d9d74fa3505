"""Files appear complete or not at all, and nothing is written through a link."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from carvision.errors import InputError
from carvision.files import atomic
from carvision.files.atomic import atomic_file, create_folder, file_stems, open_kept, open_new, write_text


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_failed_write_changes_nothing_and_a_killed_one_is_overwritten(tmp_path):
    file = tmp_path / "history.csv"
    write_text(file, "before")
    with pytest.raises(ZeroDivisionError), atomic_file(file) as partial:
        partial.write_text("half of")
        assert file.read_text() == "before"
        raise ZeroDivisionError
    assert file.read_text() == "before" and names(tmp_path) == ["history.csv"]
    (tmp_path / "history.csv.partial").write_text('{"torn": ')
    atomic.write_json(file, {"größe": 1})
    assert json.loads(file.read_text()) == {"größe": 1} and names(tmp_path) == ["history.csv"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not tell which file is flushed")
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a machine that loses its power keeps the new name of an empty file."""
    calls, fsync, replace = [], os.fsync, os.replace
    link = Path("/proc/self/fd")
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", (link / str(fd)).readlink().name)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("rename", Path(a).name)), replace(a, b)))
    atomic.write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1]}))
    assert calls == [("fsync", "t.csv.partial"), ("rename", "t.csv.partial"), ("fsync", tmp_path.name)]
    assert (tmp_path / "t.csv").read_text() == "a\n1\n"


@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_a_link(dangling, tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    if not dangling:
        outside.write_text("precious")
    for name in ("a", "a.partial", "b", "kept"):
        (inside / name).symlink_to(outside)
    write_text(inside / "a", "new")
    with open_new(inside / "b", "w", encoding="utf-8") as file:
        file.write("new")
    with pytest.raises(InputError, match="kept is a symbolic link, and nothing is written through one"):
        open_kept(inside / "kept", "a")
    assert (inside / "a").read_text() == (inside / "b").read_text() == "new" and not (inside / "a").is_symlink()
    assert outside.exists() != dangling and (dangling or outside.read_text() == "precious")


def test_a_folder_may_be_a_link_that_stays_inside(tmp_path):
    (tmp_path / "run" / "real").mkdir(parents=True)
    for name, target in {"inner": tmp_path / "run" / "real", "outer": tmp_path, "loop": "loop"}.items():
        (tmp_path / "run" / name).symlink_to(target)
    (tmp_path / "run_2").symlink_to(tmp_path / "run")
    assert create_folder(tmp_path / "run_2" / "inner").is_dir() and create_folder(tmp_path / "run_2" / "new").is_dir()
    with pytest.raises(InputError, match=r"outer is a symbolic link to .*, outside of"):
        create_folder(tmp_path / "run_2" / "outer")
    with pytest.raises((InputError, OSError)):
        create_folder(tmp_path / "run" / "loop")
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match="No such device"):  # rather than waiting for a reader of the pipe
        open_kept(tmp_path / ".lock", "a")


def test_names_of_heads_become_different_file_names():
    assert file_stems(["a b", "a/b", "a_b", "A_B", "a_b_2"]) == {
        "a_b": "a_b", "A_B": "A_B_2", "a_b_2": "a_b_2_2", "a b": "a_b_3", "a/b": "a_b_4"
    }  # fmt: skip
    stems = file_stems(["x" * 300, "x" * 299 + "y", "ä" * 300])
    assert len({*stems.values()}) == 3 and all(len(stem.encode()) < 200 for stem in stems.values())
