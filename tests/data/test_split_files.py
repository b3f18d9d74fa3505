"""splits.csv, written and read again; and files of equal bytes, found without reading all of them."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data import splits
from carvision.data.splits import equal_bytes, file_split, write_splits
from carvision.data.table import UNKNOWN, Number, Table
from carvision.errors import InputError
from tests.data.test_splits import CODES, table_of


def test_file_split_repeats_what_write_splits_wrote(tmp_path):
    codes = np.where(np.arange(60) % 9, np.arange(60) % 3, UNKNOWN)
    table = table_of(tmp_path, codes, np.resize(["train", "val", "test", "train", ""], 60))
    rows = table.rows.assign(
        path=["NA", *(f'a, "b"/é {path}' for path in table.rows["path"][1:])], speed=np.float32(200)
    )
    table = Table("some", tmp_path, rows, {**table.labels, "speed": Number("km/h")}, "class")
    divided = table.select(rows["split"] != "")
    write_splits(divided, tmp_path / "splits.csv")
    again = file_split(table.with_split(["train"] * 60), tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(again.rows, divided.rows)

    written = pd.read_csv(tmp_path / "splits.csv", keep_default_na=False)
    assert list(written) == ["path", "split", "class"]
    assert written["path"].tolist() == divided.rows["path"].tolist()
    assert written["class"].tolist() == [f"id{i}" if i != UNKNOWN else "" for i in divided.rows["class"]]


def test_boxes_are_written_where_there_are_any(tmp_path):
    table = table_of(tmp_path, [0, 1], ["train", "test"])
    boxes = {"left": [1.0, 2.5], "top": [2, 3], "right": [30, 40], "bottom": [20, np.nan]}
    rows = table.rows.assign(**{side: np.float32(values) for side, values in boxes.items()})
    write_splits(Table("some", tmp_path, rows, table.labels, "class"), tmp_path / "splits.csv")
    written = pd.read_csv(tmp_path / "splits.csv")
    for side, values in boxes.items():
        np.testing.assert_array_equal(written[side], values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"splits\.csv does not exist; give the splits\.csv of a run"),
        ("", r"splits\.csv has no column 'path'; its columns: none"),
        ("path,split\n0001.jpg,train\n0002.jpg,val,7\n", r"splits\.csv, line 3 has 3 cells and the first line 2"),
        ("photo,split\n0001.jpg,train\n", r"has no column 'path'; its columns: photo, split"),
        ("path,split\n0001.jpg,training\n", r"line 2: split 'training' is not one of train, val, valid"),
        ("path,split\n0001.jpg,train\nx/y.jpg,val\n", r"1 photos of .* are not in some .*\(first: x/y\.jpg\)"),
        ("path,split\n0001.jpg,train\n0001.jpg,val\n", r"lists 0001\.jpg more than once"),
        ("path,split\n0001.jpg,train\n", r"the val split of some is empty"),
    ],
)
def test_split_files_that_do_not_fit(tmp_path, content, message):
    if content is not None:
        (tmp_path / "splits.csv").write_text(content)
    with pytest.raises(InputError, match=rf"data\.split.*{message}") as raised:
        file_split(table_of(tmp_path, CODES), tmp_path / "splits.csv")
    assert "\n" not in str(raised.value)


def test_equal_bytes_against_the_sha256_of_every_file(tmp_path):
    random = np.random.default_rng(0)
    long = random.bytes(20_000)
    middle = bytearray(long)
    middle[9_000] ^= 1
    contents = [
        b"", long, b"x", bytes(middle), long[:-1] + b"!", b"y", long, b"", b"x" * 4096, b"x" * 4097, long[1:],
        b"!" + long[1:], b"x" * 4096, bytes(middle), b"",
    ]  # fmt: skip
    contents += [bytes(random.integers(0, 2, random.integers(1, 4), np.uint8)) for _ in range(40)]
    found = equal_bytes(table_of(tmp_path, [0] * len(contents), contents=contents))
    # Empty files are no copies of each other
    digests = [hashlib.sha256(content).hexdigest() if content else i for i, content in enumerate(contents)]
    assert [[a == b for b in found] for a in found] == [[a == b for b in digests] for a in digests]
    assert len(set(found)) < len(contents) - 20


def test_files_of_another_size_or_another_end_are_not_read_whole(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(splits, "_digest", lambda path: read.append(Path(path).name) or Path(path).read_bytes())
    contents = [b"a" * 9000, b"a" * 9001, b"a" * 8999 + b"b", b"c" + b"a" * 9000]
    found = equal_bytes(table_of(tmp_path, [0] * 4, contents=contents))
    assert len(set(found)) == 4
    assert sorted(read) == ["0001.jpg", "0003.jpg"]  # the same size and the same last 4 kB
