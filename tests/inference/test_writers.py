"""Outputs: their content, and that an interrupted command's are resumed."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from carvision.errors import InputError
from carvision.inference import writers
from carvision.inference.writers import claim, open_output, partial_path, settings_path
from tests import forked

COLUMNS = {"path": "text", "make": "text", "make_prob": "number", "make_probs": ("3", "7"), "error": "text"}
CLASSES = {"make": {"ids": ["3", "7"], "names": ["Audi", "BMW"]}}
ROWS = [
    {"path": "a.jpg", "make": "Audi", "make_prob": 0.7512345678, "make_probs": np.float32([0.7512345678, 1e-9])},
    {"path": 'odd "name",\n\tü.jpg', "error": "the file is empty"},
    {"path": "b.jpg", "make": "BMW", "make_prob": 1.0, "make_probs": np.float32([0, 1]), "not_a_column": 1},
    {"path": "c\r.jpg", "make": "B,W", "make_prob": 0.5, "make_probs": np.float32([0.5, 0.5])},
]
PATHS = [row["path"] for row in ROWS]
every_suffix = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])


def opened(file, settings=None, overwrite=False, batch_size=1):
    return open_output(file, COLUMNS, CLASSES, settings or {"--tta": "none"}, overwrite, batch_size)


def write(file, **kwargs) -> list[str]:
    """Write all rows that are not there, and return the paths of those that were."""
    output = opened(file, **kwargs)
    there = [row["path"] for row in output.rows()]
    output.write(ROWS[len(there) : len(there) + 2])
    output.write(ROWS[len(there) + 2 :])
    output.finish()
    output.close()
    return there


def begin(file, num_rows: int, **kwargs) -> None:
    """Write some rows and stop."""
    output = opened(file, **kwargs)
    assert list(output.rows()) == []
    output.write(ROWS[:num_rows])
    output.close()


@every_suffix
def test_the_content_of_the_file(tmp_path, suffix):
    file = tmp_path / "new" / f"out{suffix}"
    assert write(file) == []
    assert sorted(file.parent.iterdir()) == [file]
    if suffix == ".parquet":
        table = pd.read_parquet(file)
        np.testing.assert_allclose(np.stack(table["make_probs"][[0, 2]]), [[0.75123456, 1e-9], [0, 1]], rtol=1e-6)
        assert table["make_probs"][1] is None and table["make_prob"].dtype == np.float32
        assert json.loads(pq.read_schema(file).metadata[b"carvision"]) == {"classes": CLASSES}
        errors = [error if isinstance(error, str) else None for error in table["error"]]
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
        probs = {"make_prob": 0.751235, "make_probs": [0.751235, 1e-9]}
        assert rows[0] == {"path": "a.jpg", "make": "Audi", **probs, "error": None}
        assert list(rows[1].values()) == [PATHS[1], None, None, None, "the file is empty"]
        errors = [row["error"] for row in rows]
    else:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.reader(text, delimiter="," if suffix == ".csv" else "\t"))
        assert rows[0] == ["path", "make", "make_prob", "make_prob:3", "make_prob:7", "error"]
        assert rows[1] == ["a.jpg", "Audi", "0.751235", "0.751235", "1e-09", ""]
        assert rows[2] == [PATHS[1], "", "", "", "", "the file is empty"] and rows[4][0] == "c\r.jpg"
        errors = [row[-1] or None for row in rows[1:]]
    assert errors == [None, "the file is empty", None, None]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_text_file_torn_anywhere_is_resumed_to_the_same_bytes(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # it waits for the disk
    whole, file = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    write(whole)
    content = whole.read_bytes()
    for cut in range(len(content) + 1):
        opened(file).close()
        partial_path(file).write_bytes(content[:cut])
        there = write(file)
        assert there == PATHS[: len(there)]
        assert file.read_bytes() == content, cut
        file.unlink()
    assert there == PATHS  # nothing was cut from the last


def test_only_whole_batches_are_kept(tmp_path):
    """The last digits of a photo's numbers depend on the photos in its batch."""
    file = tmp_path / "out.csv"
    for batch_size, num_kept in {2: 2, 3: 3, 4: 0}.items():
        begin(file, 3, batch_size=4)
        assert write(file, batch_size=batch_size) == PATHS[:num_kept]
        assert pd.read_csv(file)["path"].tolist() == PATHS
        file.unlink()


def test_parts_of_parquet_are_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "PART_ROWS", 2)
    file, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    output = opened(file)
    assert list(output.rows()) == []
    output.write(ROWS[:2])
    output.write(ROWS[2:3])  # not yet in a part
    output.close()
    (partial_path(file) / "000000000002.unfinished").write_bytes(b"torn")
    assert not file.exists()
    assert write(file) == PATHS[:2]
    write(whole)
    assert pq.read_table(file).equals(pq.read_table(whole))
    assert pq.read_schema(file).equals(pq.read_schema(whole), check_metadata=True)
    assert sorted(tmp_path.iterdir()) == [file, whole]


@every_suffix
def test_other_settings_are_refused_unless_overwritten(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    begin(file, 1, settings={"--top": 1, "--tta": "none"})
    with pytest.raises(InputError, match=r"out.*partial was begun with --tta none, not flip; give the same again"):
        opened(file, {"--top": 1, "--tta": "flip"})
    output = opened(file, {"--top": 1, "--tta": "flip"}, overwrite=True)
    assert list(output.rows()) == []
    output.close()
    settings_path(file).write_text("torn")
    with pytest.raises(InputError, match=r"settings it was begun with are lost .*; give another --out"):
        opened(file)
    assert partial_path(file).exists() and settings_path(file).read_text() == "torn"


@pytest.mark.parametrize("name", ["out.csv.partial", "out.csv.partial.json"])
def test_foreign_unfinished_files_are_left_alone(tmp_path, name):
    foreign = tmp_path / name
    foreign.write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"out\.csv\.partial.* was not written by this.*give another --out"):
            opened(tmp_path / "out.csv", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name] and foreign.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"x,y\n1,2\n"), ("b.jsonl", b"[1]\n"), ("c.jsonl", b"{\xff}\n"), ("e.parquet", b"")]
)
def test_foreign_content_is_refused(tmp_path, name, content):
    file = tmp_path / name
    opened(file).close()
    part = partial_path(file) / "000000000005.parquet" if file.suffix == ".parquet" else partial_path(file)
    part.write_bytes(content)
    output = opened(file)
    with pytest.raises(InputError, match=r"(was not written by this command|parts are not consecutive).*give another"):
        list(output.rows())
    output.close()
    assert part.read_bytes() == content


def test_existing_files_are_refused_unless_overwritten(tmp_path):
    file = tmp_path / "out.csv"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists; give another name, or replace it with --overwrite"):
        opened(file)
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "mine"
    write(file, overwrite=True)
    assert file.read_text(encoding="utf-8").startswith("path,")
    with pytest.raises(InputError, match="can't be written"):
        opened(file / "below.csv")


def claim_and_report(file, answers) -> None:
    try:
        claim(file, {"--tta": "none"}, False)
    except InputError as error:
        answers.put(str(error))


def test_two_commands_writing_the_same_file_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    for suffix in (".csv", ".parquet"):
        file, answers = tmp_path / f"out{suffix}", forked.CONTEXT.Queue()
        output = opened(file)
        list(output.rows())
        output.write(ROWS)
        other = forked.process(claim_and_report, file, answers)
        other.start()
        other.join()
        assert "another command is writing" in answers.get(timeout=10)
        output.finish()
        assert file.exists()
