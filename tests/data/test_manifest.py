from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data.manifest import read_manifest
from carvision.data.table import BOX, UNKNOWN, Number
from carvision.errors import InputError
from tests.data import layouts

ROWS = [
    {"path": "a/1.jpg", "make": "Audi", "model": "A4", "split": "train", "price": "1.5", "note": "x"},
    {"path": "a/2.jpg", "make": "Audi", "model": "", "split": "Valid", "price": "", "note": ""},
    {"path": "b/3.jpg", "make": "NA", "model": "10", "split": "validation", "price": "3", "note": ""},
    {"path": "b/4.jpg", "make": "NA", "model": " 2 ", "split": "", "price": "4", "note": ""},
    {"path": "b/5.jpg", "make": "", "model": "", "split": "test", "price": "5", "note": ""},
]


@pytest.mark.parametrize(("name", "separator"), [("m.csv", ","), ("m.tsv", "\t"), ("M.CSV", ",")])
def test_text_files(tmp_path, name, separator):
    layouts.write_manifest(tmp_path / name, ROWS, separator)
    table = read_manifest(tmp_path, name, ["make", "model"], parents={"model": "make"}, numbers=["price"])
    assert table.finest == "model"
    assert table.rows["path"].tolist() == [row["path"] for row in ROWS]
    assert table.rows["split"].tolist() == ["train", "val", "val", "", "test"]
    assert table.labels["make"].ids == ("Audi", "NA")  # a class may be called NA
    assert table.rows["make"].tolist() == [0, 0, 1, 1, UNKNOWN]
    assert table.labels["model"].ids == ("10", "2", "A4")
    assert table.rows["model"].tolist() == [2, UNKNOWN, 0, 1, UNKNOWN]
    assert table.labels["model"].parent_codes == (1, 1, 0)
    assert table.labels["price"] == Number()
    np.testing.assert_equal(table.rows["price"].to_numpy(), np.float32([1.5, np.nan, 3, 4, 5]))
    assert "note" not in table.rows


def test_parquet_with_numbers_as_classes(tmp_path):
    layouts.write_manifest(tmp_path / "m.csv", ROWS)
    frame = pd.DataFrame({"path": [row["path"] for row in ROWS], "class": [3, 12, None, 3, 3]})
    frame["kind"] = pd.Categorical(["x", None, "y", "y", "y"])
    frame["price"] = [1, 2, 3, 4, 5]
    frame.to_parquet(tmp_path / "m.parquet")
    table = read_manifest(tmp_path, "m.parquet", ["class", "kind"], numbers=["price"])
    assert table.finest == "class"
    assert table.labels["class"].ids == ("3", "12")  # not "3.0", which the empty cell makes of it
    assert table.rows["class"].tolist() == [0, 1, UNKNOWN, 0, 0]
    assert table.rows["kind"].tolist() == [0, UNKNOWN, 1, 1, 1]
    assert table.rows["price"].dtype == np.float32
    assert set(table.rows["split"]) == {""}


def test_boxes_and_groups(tmp_path):
    boxes = [("1", "2", "10.5", "12"), ("", "", "", ""), ("5", "5", "3", "3")]
    rows = [
        {"path": f"{i}.jpg", "class": "x", "group": g} | dict(zip(BOX, box, strict=True))
        for i, (g, box) in enumerate(zip(["g1", "", "g1"], boxes, strict=True))
    ]
    layouts.write_manifest(tmp_path / "m.csv", rows)
    table = read_manifest(tmp_path, "m.csv", ["class"])
    assert table.has_boxes
    nan = np.nan
    np.testing.assert_equal(table.rows[BOX].to_numpy(), [[1, 2, 10.5, 12], [nan] * 4, [5, 5, 3, 3]])
    assert table.rows["group"].tolist() == ["g1", "", "g1"]
    rows = [{k: v for k, v in row.items() if k != "bottom"} for row in rows]
    layouts.write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(InputError, match="has no column 'bottom'"):
        read_manifest(tmp_path, "m.csv", ["class"])


def test_absolute_paths_backslashes_and_a_byte_order_mark(tmp_path):
    absolute = layouts.write_photo(tmp_path / "elsewhere" / "1.jpg")
    layouts.write_photo(tmp_path / "root" / "sub" / "2.jpg")
    file = tmp_path / "lists" / "m.csv"
    file.parent.mkdir()
    file.write_text(f"path,class\r\n{absolute},x\r\nsub\\2.jpg,y\r\n", encoding="utf-8-sig")
    table = read_manifest(tmp_path / "root", file, ["class"])
    assert table.rows["path"].tolist() == [str(absolute), "sub/2.jpg"]
    assert all(Path(table.photo(row)).is_file() for row in range(2))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ("a.jpg,x", "./a.jpg,y"),
            "one photo has two classes: class is 'x' of a.jpg in line 2, and 'y' of ./a.jpg in line 3",
        ),
        (("a.jpg,x", "sub\\..\\a.jpg,y"), "one photo has two classes: class is 'x'"),
        (
            ("b.jpg,x", "a.jpg,x", "b.jpg,x", "{root}//a.jpg,y"),
            "one .* of a.jpg in line 3, and 'y' of /.*//a.jpg in line 5",
        ),
        (("../o.jpg,x", "{root}/../o.jpg,y"), "one photo has two classes"),
        (("Bl\u00fcte.jpg,x", "Blu\u0308te.jpg,y"), "one photo has two classes"),
        (
            ("a.jpg,x", "./a.jpg,x"),
            r"1 photos are listed more than once \(first: a.jpg in line 2, as ./a.jpg in line 3\)",
        ),
    ],
)
def test_one_photo_in_two_spellings(tmp_path, cells, message):
    root = tmp_path / "root"
    for name in ("a.jpg", "b.jpg", "../o.jpg", "Bl\u00fcte.jpg", "sub/c.jpg"):
        layouts.write_photo(root / name)
    (root / "m.csv").write_text(
        "path,class\n" + "".join(f"{cell.format(root=root)}\n" for cell in cells), encoding="utf-8"
    )
    with pytest.raises(InputError, match=rf"^data.file: .*m.csv: {message}"):
        read_manifest(root, "m.csv", ["class"])


def test_an_absent_photo(tmp_path):
    layouts.write_manifest(tmp_path / "m.csv", ROWS)
    (tmp_path / "b/3.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 5 listed photos are not there .*b/3.jpg"):
        read_manifest(tmp_path, "m.csv", ["make"])
    assert len(read_manifest(tmp_path, "m.csv", ["make"], allow_missing=True)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["brand"]}, r"m.csv has no column 'brand'; its columns: path, make, model, split, price, note"),
        ({"labels": ["make"], "numbers": ["cost"]}, "has no column 'cost'"),
        ({"labels": []}, r"data.labels: \[\] names no column"),
        ({"labels": ["path"]}, "'path' is a column with a meaning of its own"),
        ({"labels": ["make", "make"]}, "'make' is given twice"),
        ({"labels": ["make"], "numbers": ["make"]}, "'make' is given twice"),
        ({"labels": ["make"], "parents": {"model": "make"}}, r"data.parents: 'model' is not one of data.labels"),
        ({"labels": ["make"], "numbers": ["note"]}, r"line 2: note is 'x', no number"),
        ({"labels": ["error"]}, "'error' is a column with a meaning"),
        ({"labels": ["make"], "numbers": ["joint"]}, "'joint' is a column with a meaning"),
        ({"labels": ["make", "make_2"]}, "'make_2' is a column of the predictions of 'make'"),
        ({"labels": ["make"], "numbers": ["make_id"]}, "'make_id' is a column of the predictions of 'make'"),
        ({"labels": ["make", "make_year"]}, "has no column 'make_year'"),
        ({"labels": ["split"]}, "'split' is a column with a meaning"),
        ({"labels": ["make", "model"], "parents": {"make": "model"}}, "make 'NA' has photos of more than one model"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    layouts.write_manifest(tmp_path / "m.csv", ROWS)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path, "m.csv", **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class,split\n1.jpg,x,dev\n", "split 'dev' is not one of train, val, valid, validation, test, or empty"),
        ("path,class\n1.jpg,x\n,y\n", "line 3 has no path"),
        ("path,class\n1.jpg,x\n1.jpg,x\n", "1 photos are listed more than once"),
        ("path,class\n", "no photos"),
        ("", "has no column 'path'; its columns: none"),
        ('path,class\n1.jpg,"x\n', "line 2 can't be read as CSV"),
        ("path|class\n1.jpg|x\n", "has no column 'path'; its columns: path|class"),
    ],
)
def test_wrong_content(tmp_path, text, message):
    layouts.write_photo(tmp_path / "1.jpg")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_manifest(tmp_path, "m.csv", ["class"])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"^data.root: .*/absent does not exist"):
        read_manifest(tmp_path / "absent", "m.csv", ["class"])
    with pytest.raises(InputError, match=r"m.csv does not exist"):
        read_manifest(tmp_path, "m.csv", ["class"])
    (tmp_path / "m.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match=r"m.parquet can't be read as Parquet"):
        read_manifest(tmp_path, "m.parquet", ["class"])
    (tmp_path / "m.csv").write_bytes(b"path,class\n1.jpg,caf\xe9\n")
    with pytest.raises(InputError, match=r"m.csv, line 2: 'caf\\xe9' is not in the encoding UTF-8"):
        read_manifest(tmp_path, "m.csv", ["class"])
    with pytest.raises(InputError, match=r"'m.xlsx' does not end in one of .csv, .tsv, .parquet"):
        read_manifest(tmp_path, "m.xlsx", ["class"])
