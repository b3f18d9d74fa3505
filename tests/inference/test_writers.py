"""Outputs: their content, and that an interrupted command's are resumed."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from carvision.errors import InputError
from carvision.inference import writers
from carvision.inference.rows import Layout, Row
from carvision.inference.writers import FileOutput, partial_path
from tests import forked

LAYOUT = Layout({"make": ["3", "7"]}, ("make", "speed"), probs=True, true_heads=("make",))
CLASSES = {"make": {"ids": ["3", "7"], "names": ["Audi", "B,W"]}}


def row(path: str, code: int, *probs: float) -> Row:
    vector = np.float32(probs)
    best = {"id": CLASSES["make"]["ids"][code], "name": CLASSES["make"]["names"][code], "prob": float(vector[code])}
    return Row(path, {"make": [best], "speed": 180.5}, None, {"make": "Audi"}, {"make": vector})


ROWS = [
    row("a.jpg", 0, 0.7512345678, 1e-9),
    Row('odd "name",\n\tü.jpg', {"make": [], "speed": None}, "the file is empty", {"make": None}),
    row("b.jpg", 1, 0, 1),
    row("c\r.jpg", 1, 0.5, 0.5),
]
PATHS = [row.path for row in ROWS]
every_suffix = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])


def opened(file, tta="none", overwrite=False, batch_size=1) -> FileOutput:
    return FileOutput(file, LAYOUT, CLASSES, {"--tta": tta}, overwrite, batch_size)


def write(file, batch_size=1, **kwargs) -> list[str]:
    """Write all rows that are not there, and return the paths of those that were."""
    output = opened(file, batch_size=batch_size, **kwargs)
    there = list(output.rows())
    assert there == [row._replace(probs={}) for row in ROWS[: len(there)]]
    for start in range(len(there), len(ROWS), batch_size):
        output.write(ROWS[start : start + batch_size])
    output.finish()
    output.close()
    return [row.path for row in there]


def begin(file, num_rows: int, **kwargs) -> None:
    """Write a batch of rows and stop."""
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
        known = {"path": "a.jpg", "make_true": "Audi", "make": "Audi", "make_id": "3"}
        assert rows[0] == {**known, **probs, "speed": 180.5, "error": None}
        assert list(rows[1].values()) == [PATHS[1], *[None] * 6, "the file is empty"]
        errors = [row["error"] for row in rows]
    else:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.reader(text, delimiter="," if suffix == ".csv" else "\t"))
        assert ",".join(rows[0]) == "path,make_true,make,make_id,make_prob,make_prob:3,make_prob:7,speed,error"
        assert rows[1] == ["a.jpg", "Audi", "Audi", "3", "0.751235", "0.751235", "1e-09", "180.5", ""]
        assert rows[2] == [PATHS[1], *[""] * 7, "the file is empty"] and rows[4][:3] == ["c\r.jpg", "Audi", "B,W"]
        errors = [row[-1] or None for row in rows[1:]]
    assert errors == [None, "the file is empty", None, None]


@every_suffix
def test_an_output_torn_anywhere_is_resumed_to_the_same_bytes(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # it waits for the disk
    monkeypatch.setattr(writers, "GROUP_ROWS", 2)
    whole, file = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    write(whole)
    output = opened(file)
    assert list(output.rows()) == []
    for one in ROWS:
        output.write([one])
    output.close()
    content, numbers = partial_path(file).read_bytes(), []
    for cut in (*range(0, len(content), 37), len(content)):
        partial_path(file).write_bytes(content[:cut])
        numbers.append(len(write(file)))
        assert file.read_bytes() == whole.read_bytes(), cut
        file.unlink()
    assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2, 3, 4}
    assert list(tmp_path.iterdir()) == [whole]


def test_only_whole_batches_are_kept(tmp_path):
    """The last digits of a photo's numbers depend on the photos in its batch."""
    file = tmp_path / "out.csv"
    for batch_size, num_kept in {3: 3, 4: 0}.items():
        begin(file, 3, batch_size=batch_size)
        assert write(file, batch_size=batch_size) == PATHS[:num_kept]
        assert pd.read_csv(file)["path"].tolist() == PATHS
        file.unlink()


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", b"\xff" * 99])
def test_a_foreign_unfinished_file_is_left_alone(tmp_path, content):
    foreign = tmp_path / "out.csv.partial"
    foreign.write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"out\.csv\.partial was not written by this.*give another --out"):
            opened(tmp_path / "out.csv", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [foreign] and foreign.read_bytes() == content


def test_existing_files_are_refused_unless_overwritten(tmp_path):
    file = tmp_path / "out.csv"
    begin(file, 1)
    file.write_text("mine")
    with pytest.raises(InputError, match="exists; give another name, or replace it with --overwrite"):
        opened(file)
    assert sorted(tmp_path.iterdir()) == [file, partial_path(file)] and file.read_text() == "mine"
    assert write(file, tta="flip", overwrite=True) == [] and list(tmp_path.iterdir()) == [file]  # begins anew
    assert file.read_text(encoding="utf-8").startswith("path,")
    with pytest.raises(InputError, match="can't be written"):
        opened(file / "below.csv")


def open_and_report(file, answers) -> None:
    try:
        opened(file)
    except InputError as error:
        answers.put(str(error))


def test_two_commands_writing_the_same_file_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    file, answers = tmp_path / "out.csv", forked.CONTEXT.Queue()
    output = opened(file)
    list(output.rows())
    output.write(ROWS)
    other = forked.process(open_and_report, file, answers)
    other.start()
    other.join()
    assert "another command is writing" in answers.get(timeout=10)
    output.finish()
    assert file.exists()
