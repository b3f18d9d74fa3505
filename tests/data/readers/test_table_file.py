"""Tables as people write them: data=manifest, carvision.predict --list and data.split.file read them the same way."""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data.paths import PhotoPaths
from carvision.data.readers.manifest import read_manifest
from carvision.data.splits import read_splits, splits_in
from carvision.data.table import BOX, UNKNOWN
from carvision.errors import InputError
from carvision.inference.sources import check_list, read_list
from tests.data import layouts

NAMES = ["a/1.jpg", "a/2.jpg", "b/\u00fc 3.jpg", "b/4.jpg"]
PLAIN = "path,class,split,left,top,right,bottom\na/1.jpg,x,train,1,2,10.5,12\na/2.jpg,y,Validation,,,,\n"
COMMA = "path;class;split;left;top;right;bottom\na/1.jpg;x;train;1;2;10,5;12\na/2.jpg;y;Validation;;;;\n"


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        layouts.write_photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def manifest(root, file):
    table = read_manifest(root, file, ["class"])
    classes = [table.labels["class"].ids[code] if code >= 0 else "" for code in table.rows["class"]]
    boxes = table.rows[BOX].to_numpy().tolist() if table.has_boxes else [None] * len(table)
    boxes = [None if box is None or np.isnan(box).all() else tuple(box) for box in boxes]
    files = [table.photo(row) for row in range(len(table))]
    return list(zip(files, classes, boxes, strict=True)), table.rows["split"].tolist()


def listed(root, file):
    check_list(file, None)
    rows = read_list(file, None, ("class",), PhotoPaths(root))
    return [(found, truth.get("class", ""), box) for _, found, box, truth in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_same_table_in_many_forms(root, suffix):
    file = root.parent / f"t{suffix}"
    wanted = [(f"{root}/a/1.jpg", "x", (1.0, 2.0, 10.5, 12.0)), (f"{root}/a/2.jpg", "y", None)]
    for content in (
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        COMMA.encode(),
        PLAIN.replace("path,class", " path , class ").replace("x,train", " x ,  train").encode(),
        ("\n" + PLAIN.replace("\na/2", "\n\n,,,,,,\n  \na/2") + "\n\n").encode(),
        PLAIN.replace("\n", ",\n").encode(),
        PLAIN.replace("a/1", ".\\a\\1").replace("a/2", "b/.././a//2").encode(),
        PLAIN.replace("a/1", "{root}/a/1").replace("a/2", "{root}/../photos/a/2").encode(),
    ):
        file.write_bytes(content.replace(b"{root}", str(root).encode()))
        assert manifest(root, file) == (wanted, ["train", "val"])
        assert listed(root, file) == wanted
        assert read_splits(file).tolist() == ["train", "val"]
        splits, absent = splits_in(file, read_manifest(root, file, ["class"]))
        assert splits.tolist() == ["train", "val"] and not absent


@pytest.mark.parametrize("form, on_disk", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_compared_after_unicode_normalisation(tmp_path, form, on_disk):
    name, wanted = (unicodedata.normalize(kind, "Bl\u00fcten/Gro\u00df \u00e9.jpg") for kind in (form, on_disk))
    layouts.write_photo(tmp_path / wanted)
    layouts.write_photo(tmp_path / "Bl\u00fcten" / "2.jpg")  # the folder in both forms
    file = tmp_path / "t.csv"
    file.write_text(f"path,class,split\n{name},x,train\n", encoding="utf-8")
    assert listed(tmp_path, file) == [(str(tmp_path / wanted), "x", None)]
    table = read_manifest(tmp_path, file, ["class"])
    assert table.rows["path"].tolist() == [wanted]
    assert splits_in(file, table)[0].tolist() == ["train"]


def test_file_names_of_any_bytes(tmp_path):
    """A "\\" is a slash unless the file has it in its name, and "\\xe4" a byte where there is such a file."""
    names = ["K\udce4fer.jpg", "a\\b.jpg", "volvo/xc90/1.jpg", "\u00fc\udcff.jpg", "K\\xe4fer.jpg"]
    for name in names:
        layouts.write_photo(tmp_path / name)
    file = tmp_path / "t.csv"
    cells = [b"K\xe4fer.jpg", b"a\\b.jpg", b"volvo\\xc90\\1.jpg", "\u00fc".encode() + b"\\xff.jpg", b"K\\x5cxe4fer.jpg"]
    file.write_bytes(b"path,class\n" + b"".join(cell + b",x\n" for cell in cells))
    assert [Path(row[0]).name for row in listed(tmp_path, file)] == [Path(name).name for name in names]
    table = read_manifest(tmp_path, file, ["class"])
    assert [table.photo(row) for row in range(5)] == [str(tmp_path / name) for name in names]
    assert table.rows["path"][0] == "K\\xe4fer.jpg" and table.rows["path"][4] == "K\\x5cxe4fer.jpg"


def test_parquet_as_text_and_numbers_as_classes(root):
    file = root.parent / "t.parquet"
    frame = pd.DataFrame({"path": ["a\\1.jpg", "./a/2.jpg", "b/4.jpg"], "class": [3.0, None, 12]})
    frame["kind"] = pd.Categorical(["x", None, "y"])
    frame.assign(split=["train", None, None], price=[1, 2, 3]).to_parquet(file)
    wanted = [(f"{root}/a/1.jpg", "3", None), (f"{root}/a/2.jpg", "", None), (f"{root}/b/4.jpg", "12", None)]
    assert manifest(root, file) == (wanted, ["train", "", ""]) and listed(root, file) == wanted
    assert read_splits(file).to_dict() == {"a\\1.jpg": "train"}
    table = read_manifest(root, file, ["class", "kind"], numbers=["price"])
    assert table.finest == "class" and table.labels["class"].ids == ("3", "12")  # not "3.0", as the empty cell makes it
    assert table.rows["class"].tolist() == [0, UNKNOWN, 1] and table.rows["kind"].tolist() == [0, UNKNOWN, 1]
    assert table.rows["price"].dtype == np.float32


def test_the_same_message_for_each_option(root):
    file = root.parent / "t.csv"
    for content, message in (
        (PLAIN.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("path,class\nb/\u00fc 3.jpg,x\n".encode("latin-1"), r"line 2: 'b/\\xfc 3.jpg' is not in the encoding UTF-8"),
        (b"path,class,class\na/1.jpg,x,y\n", "has two columns 'class'; rename one"),
        (b"path,class\na/1.jpg,x\n\n,y\n", "line 4 has no path"),
        (b'path,class\n"a/1.jpg,x\na/2.jpg,y\n', "can't be read as CSV"),
        (PLAIN.replace("10.5", "10.5px").encode(), "line 2: right is '10.5px', no number"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"^data.file: .*{message}") as error:
            manifest(root, file)
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match=f"^--list: .*{message}"):
            listed(root, file)


def test_a_photo_listed_twice_in_any_spelling(tmp_path):
    for name in ("a.jpg", "b.jpg", "Bl\u00fcte.jpg"):
        layouts.write_photo(tmp_path / name)
    for cells, message in (
        (("b.jpg,x", "a.jpg,x", "b.jpg,x", "{root}//a.jpg,y"), "of a.jpg in line 3, and 'y' of /.*//a.jpg in line 5"),
        (("Bl\u00fcte.jpg,x", "Blu\u0308te.jpg,y"), "one photo has two classes"),
        (("a.jpg,x", "./a.jpg,x"), r"1 photos are .* more than once \(first: a.jpg in line 2, as ./a.jpg in line 3\)"),
    ):
        text = "".join(f"{cell.format(root=tmp_path)}\n" for cell in cells)
        (tmp_path / "m.csv").write_text(f"path,class\n{text}", encoding="utf-8")
        with pytest.raises(InputError, match=rf"^data.file: .*m.csv: .*{message}"):
            read_manifest(tmp_path, "m.csv", ["class"])


def test_impossible_labels_and_manifests(tmp_path):
    layouts.write_manifest(tmp_path / "m.csv", layouts.MANIFEST)
    for labels, options, message in (
        (["brand"], {}, r"m.csv has no column 'brand'; its columns: path, make, model, split, price, note"),
        (["make"], {"parents": {"model": "make"}}, r"data.parents: 'model' is not one of data.labels"),
        (["make", "make_2"], {}, "'make_2' is a column of the predictions of 'make'"),
        (["make", "model"], {"parents": {"make": "model"}}, "make 'NA' has photos of more than one model"),
    ):
        with pytest.raises(InputError, match=message):
            read_manifest(tmp_path, "m.csv", labels, **options)
    for file, text, message in (
        ("n.csv", "path,make,split\na/1.jpg,x,dev\n", "split 'dev' is not one of train, val, valid, validation, test"),
        ("n.parquet", "PAR1 but no more", "n.parquet can't be read as Parquet"),
        ("n.xlsx", "", "'n.xlsx' does not end in one of .csv, .tsv, .parquet"),
    ):
        (tmp_path / file).write_text(text)
        with pytest.raises(InputError, match=message) as error:
            read_manifest(tmp_path, file, ["make"])
        assert "\n" not in str(error.value)
