"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from carvision.whole_files import write_csv, write_json, write_text, written_whole


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_what_it_was_where_writing_it_fails(tmp_path):
    file = tmp_path / "history.csv"
    write_text(file, "before")
    with pytest.raises(ZeroDivisionError), written_whole(file) as place:
        place.write_text("half of")
        assert file.read_text() == "before"
        raise ZeroDivisionError
    assert file.read_text() == "before" and names(tmp_path) == ["history.csv"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / "a.json.partial").write_text('{"torn": ')
    write_json(tmp_path / "a.json", {"größe": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"größe": 1} and names(tmp_path) == ["a.json"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a machine that loses its power keeps the new name, and nothing in the file."""
    calls = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    opened = Path("/proc/self/fd")
    if not opened.is_dir():
        pytest.skip("this system does not tell which file is flushed")

    def fsync(number):
        calls.append(("fsync", (opened / str(number)).readlink().name))
        real["fsync"](number)

    def replace(source, target):
        calls.append(("rename", Path(source).name))
        real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1]}))
    assert calls == [("fsync", "t.csv.partial"), ("rename", "t.csv.partial"), ("fsync", tmp_path.name)]
    assert (tmp_path / "t.csv").read_text() == "a\n1\n"
