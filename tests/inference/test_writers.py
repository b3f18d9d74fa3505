"""Outputs: what they hold, and that a killed command's are continued."""

import csv
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from carvision.errors import InputError
from carvision.inference import writers
from carvision.inference.writers import open_output, partial_path, settings_path

COLUMNS = {"path": "text", "make": "text", "make_prob": "number", "make_probs": ("3", "7"), "error": "text"}
CLASSES = {"make": {"ids": ["3", "7"], "names": ["Audi", "BMW"]}}
ROWS = [
    {"path": "a.jpg", "make": "Audi", "make_prob": 0.7512345678, "make_probs": np.float32([0.7512345678, 1e-9])},
    {"path": 'odd "name",\n\tü.jpg', "error": "the file is empty"},
    {"path": "b.jpg", "make": "BMW", "make_prob": 1.0, "make_probs": np.float32([0, 1]), "not_a_column": 1},
    {"path": "c\r.jpg", "make": "B,W", "make_prob": 0.5, "make_probs": np.float32([0.5, 0.5])},
]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


def opened(file, settings=None, overwrite=False, batch_size=1):
    return open_output(file, COLUMNS, CLASSES, settings or {"--tta": "none"}, overwrite, batch_size)


def write(file, rows=ROWS, **kwargs):
    """The paths of the rows that were there, after the rest was written."""
    output = opened(file, **kwargs)
    there = [row["path"] for row in output.rows()]
    output.write(rows[len(there) : len(there) + 2])
    output.write(rows[len(there) + 2 :])
    output.finish()
    output.close()
    return there


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_the_file_holds(tmp_path, suffix):
    file = tmp_path / "new" / f"out{suffix}"
    assert write(file) == []
    assert sorted(file.parent.iterdir()) == [file]
    if suffix == ".parquet":
        table = pd.read_parquet(file)
        np.testing.assert_allclose(np.stack(table["make_probs"][[0, 2]]), [[0.75123456, 1e-9], [0, 1]], rtol=1e-6)
        assert table["make_probs"][1] is None and table["make_prob"].dtype == np.float32
        assert json.loads(pq.read_schema(file).metadata[b"carvision"]) == {"classes": CLASSES}
        errors = table["error"].tolist()
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
        assert rows[0] == {
            "path": "a.jpg", "make": "Audi", "make_prob": 0.751235, "make_probs": [0.751235, 1e-9], "error": None
        }  # fmt: skip
        assert list(rows[1].values()) == [ROWS[1]["path"], None, None, None, "the file is empty"]
        errors = [row["error"] for row in rows]
    else:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.reader(text, delimiter="," if suffix == ".csv" else "\t"))
        assert rows[0] == ["path", "make", "make_prob", "make_prob:3", "make_prob:7", "error"]
        assert rows[1] == ["a.jpg", "Audi", "0.751235", "0.751235", "1e-09", ""]
        assert rows[2] == [ROWS[1]["path"], "", "", "", "", "the file is empty"] and rows[4][0] == "c\r.jpg"
        errors = [row[-1] or None for row in rows[1:]]
    assert [error if isinstance(error, str) else None for error in errors] == [None, "the file is empty", None, None]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_torn_anywhere_a_text_file_is_continued_to_the_same_bytes(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    write(whole)
    content = whole.read_bytes()
    file = tmp_path / f"out{suffix}"
    for cut in range(len(content) + 1):
        output = opened(file)
        output.close()
        partial_path(file).write_bytes(content[:cut])
        there = write(file)
        assert there == [row["path"] for row in ROWS][: len(there)]
        assert file.read_bytes() == content, cut
        file.unlink()
    assert len(there) == len(ROWS)  # nothing was cut from the last


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_only_whole_batches_are_kept(tmp_path, suffix):
    """The numbers of a photo depend, in their last digits, on which photos are in its batch."""
    file = tmp_path / f"out{suffix}"
    for batch_size, num_kept in {2: 2, 3: 3, 4: 0}.items():
        output = opened(file, batch_size=4)
        assert list(output.rows()) == []
        output.write(ROWS[:3])
        output.close()
        output = opened(file, batch_size=batch_size)
        assert len(list(output.rows())) == num_kept
        output.write(ROWS[num_kept:])
        output.finish()
        assert [row["path"] for row in read_paths(file)] == [row["path"] for row in ROWS]
        file.unlink()


def read_paths(file):
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_parts_of_parquet_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "PART_ROWS", 2)
    file = tmp_path / "out.parquet"
    output = opened(file)
    assert list(output.rows()) == []
    output.write(ROWS[:2])
    output.write(ROWS[2:3])  # not yet in a part
    output.close()
    (partial_path(file) / "000000000002.unfinished").write_bytes(b"torn")
    assert not file.exists()
    output = opened(file)
    assert [row["path"] for row in output.rows()] == [row["path"] for row in ROWS[:2]]
    output.write(ROWS[2:])
    output.finish()
    whole = tmp_path / "whole.parquet"
    write(whole)
    assert pq.read_table(file).equals(pq.read_table(whole))
    assert pq.read_schema(file).equals(pq.read_schema(whole), check_metadata=True)
    assert sorted(tmp_path.iterdir()) == [file, whole]


def test_rows_come_back_with_what_the_closing_lines_need(tmp_path):
    for suffix in SUFFIXES:
        file = tmp_path / f"out{suffix}"
        output = opened(file)
        list(output.rows())
        output.write(ROWS)
        output.close()
        if suffix == ".parquet":  # as if the part were full
            output._write_part()
        output = opened(file)
        rows = list(output.rows())
        output.close()
        assert [row["error"] or "" for row in rows] == ["", "the file is empty", "", ""]
        assert float(rows[0]["make_prob"]) == pytest.approx(0.751235, rel=1e-5) and rows[0]["make"] == "Audi"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_settings_are_refused(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    output = opened(file, {"--top": 1, "--tta": "none"})
    list(output.rows())
    output.write(ROWS[:1])
    output.close()
    with pytest.raises(InputError, match=r"out.*partial was begun with --tta none, not flip; give the same again"):
        opened(file, {"--top": 1, "--tta": "flip"})
    settings_path(file).write_text("torn")
    with pytest.raises(InputError, match=r"settings it was begun with are lost .*; give another --out"):
        opened(file)
    assert partial_path(file).exists() and settings_path(file).read_text() == "torn"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite_begins_an_unfinished_output_anew(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    output = opened(file, {"--top": 1, "--tta": "none"})
    list(output.rows())
    output.write(ROWS[:1])
    output.close()
    output = opened(file, {"--top": 1, "--tta": "flip"}, overwrite=True)
    assert list(output.rows()) == []
    output.close()


@pytest.mark.parametrize("name", ["out.csv.partial", "out.csv.partial.json"])
def test_unfinished_files_of_others_are_left_alone(tmp_path, name):
    strange = tmp_path / name
    strange.write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"out\.csv\.partial.* was not written by this.*give another --out"):
            opened(tmp_path / "out.csv", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name] and strange.read_text() == '{"mine": 1}'


def test_files_of_something_else_are_refused(tmp_path):
    for name, content in {
        "a.csv": b"x,y\n1,2\n",
        "b.jsonl": b"[1]\n",
        "c.jsonl": b"{\xff}\n",
        "d.tsv": b"path\n",
    }.items():
        file = tmp_path / name
        opened(file).close()
        partial_path(file).write_bytes(content)
        output = opened(file)
        with pytest.raises(InputError, match=r"was not written by this command .*give another --out"):
            list(output.rows())
        output.close()
        assert partial_path(file).read_bytes() == content
    file = tmp_path / "e.parquet"
    opened(file).close()
    (partial_path(file) / "000000000005.parquet").write_bytes(b"")
    output = opened(file)
    with pytest.raises(InputError, match=r"parts are not consecutive.*give another --out"):
        list(output.rows())


def test_existing_files_are_refused_unless_overwritten(tmp_path):
    file = tmp_path / "out.csv"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists; give another name, or replace it with --overwrite"):
        opened(file)
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "mine"
    write(file, overwrite=True)
    assert file.read_text().startswith("path,")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        opened(tmp_path / "folder.csv")
    with pytest.raises(InputError, match="can't be written"):
        opened(file / "below.csv")
    with pytest.raises(InputError, match=r"'out.txt' does not end in one of .csv, .tsv, .jsonl, .parquet"):
        opened(tmp_path / "out.txt")


def test_two_at_once_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    code = (
        "import sys, pathlib\n"
        "from carvision.errors import InputError\n"
        "from carvision.inference.writers import claim\n"
        "for file in sys.argv[1:]:\n"
        "    try: claim(pathlib.Path(file), {'--tta': 'none'}, False)\n"
        "    except InputError as error: print(error)\n"
    )
    files = [tmp_path / f"out{suffix}" for suffix in (".csv", ".parquet")]
    outputs = [opened(file) for file in files]
    for output in outputs:
        list(output.rows())
        output.write(ROWS)
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    assert done.stdout.count("another command is writing") == 2
    for output, file in zip(outputs, files, strict=True):
        output.finish()
        assert file.exists()
