"""Lists: lines of text, and tables with boxes, splits and true classes."""

import pandas as pd
import pytest

from carvision.data.paths import PhotoPaths
from carvision.errors import InputError
from carvision.inference import sources
from carvision.inference.sources import check_list, columns_of, has_boxes


def read_list(file, split, labels):
    """Without the files."""
    return [(path, *rest) for path, _, *rest in sources.read_list(file, split, labels, PhotoPaths(file.parent))]


TABLE = pd.DataFrame(
    {
        "model": ["9", None, " X5 "],
        "path": ["a b.jpg", "x/ü,1.jpg", "c.jpg"],
        "split": ["test", "valid", "TEST"],
        "left": [1.0, None, 0.0],
        "top": [2.0, None, 0.0],
        "right": [30.5, None, 9.0],
        "bottom": [40.0, None, 9.0],
        "other": [1, 2, 3],
    }
)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_the_same_rows_of_every_kind_of_table(tmp_path, suffix):
    file = tmp_path / f"list{suffix}"
    if suffix == ".parquet":
        TABLE.to_parquet(file)
    else:
        TABLE.to_csv(file, sep={".csv": ",", ".tsv": "\t"}[suffix], index=False, encoding="utf-8-sig")
    check_list(file, "test")
    assert columns_of(file) == list(TABLE.columns) and has_boxes(file)
    rows = list(read_list(file, None, ("make", "model")))
    assert rows == [
        ("a b.jpg", (1.0, 2.0, 30.5, 40.0), {"model": "9"}),
        ("x/ü,1.jpg", None, {}),
        ("c.jpg", (0.0, 0.0, 9.0, 9.0), {"model": "X5"}),
    ]
    assert [row[0] for row in read_list(file, "test", ())] == ["a b.jpg", "c.jpg"]
    assert [row[0] for row in read_list(file, "val", ())] == ["x/ü,1.jpg"]


def test_whole_numbers_that_empty_cells_made_floats_are_ids(tmp_path):
    file = tmp_path / "list.parquet"
    pd.DataFrame({"path": ["a.jpg", "b.jpg"], "make": [3.0, None]}).to_parquet(file)
    assert [row[2] for row in read_list(file, None, ("make",))] == [{"make": "3"}, {}]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_that_of_the_header(tmp_path, suffix, separator):
    """Excel writes semicolons where the comma is the decimal point."""
    file = tmp_path / f"list{suffix}"
    TABLE.replace("a b.jpg", "a,b;c.jpg").to_csv(file, sep=separator, index=False)
    check_list(file, "test")
    assert columns_of(file) == list(TABLE.columns) and has_boxes(file)
    rows = list(read_list(file, "test", ("model",)))
    assert rows[0] == ("a,b;c.jpg", (1.0, 2.0, 30.5, 40.0), {"model": "9"}) and rows[1][0] == "c.jpg"


def test_other_separators_within_cells_are_text(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path,a;b\nx;1.jpg,2\n")
    assert columns_of(file) == ["path", "a;b"] and [row[0] for row in read_list(file, None, ())] == ["x;1.jpg"]
    file.write_text("path\nx;1,2.jpg\n")
    assert [row[0] for row in read_list(file, None, ())] == ["x;1,2.jpg"]  # with one column, nothing separates


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("a.jpg,x,1", "b.jpg,y,2", "./a.jpg,z,1"), "model is 'x' of a.jpg in line 2, and 'z' of ./a.jpg in line 4"),
        (
            ("a.jpg,x,1", "sub\\..\\a.jpg,x,2", "b.jpg,x,1"),
            r"make is '1' of a.jpg in line 2, and '2' of sub\\..\\a.jpg in line 3",
        ),
        (
            ("{root}/a.jpg,x,1", "a.jpg,,1", "a.jpg,y,1"),
            "model is 'x' of /.*/a.jpg in line 2, and 'y' of a.jpg in line 4",
        ),
    ],
)
def test_one_photo_with_two_classes(tmp_path, rows, message):
    file = tmp_path / "list.csv"
    (tmp_path / "a.jpg").touch()
    file.write_text("path,model,make\n" + "".join(f"{row.format(root=tmp_path)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=f"^--list: .*list.csv: one photo has two classes: {message}; keep the right"):
        read_list(file, None, ("model", "make"))
    assert len(read_list(file, None, ())) == 3  # nobody asks


def test_one_photo_with_two_boxes_may_have_two_classes(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(
        "path,model,left,top,right,bottom\na.jpg,x,1,1,9,9\na.jpg,y,9,1,19,9\na.jpg,x,1,1,9,9\n", encoding="utf-8"
    )
    assert [row[2] for row in read_list(file, None, ("model",))] == [{"model": "x"}, {"model": "y"}, {"model": "x"}]


def test_lines_of_text(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffa b.jpg\r\n\n  \r\n ü,1.jpg\nlast.jpg".encode())
    check_list(file, None)
    assert columns_of(file) is None and not has_boxes(file)
    assert [row[0] for row in read_list(file, None, ())] == ["a b.jpg", " ü,1.jpg", "last.jpg"]
    file.write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(InputError, match=r"^--list: .*: 'caf\\xe9.jpg' is not in the encoding UTF-8; save the list"):
        read_list(file, None, ())
    (tmp_path / "caf\udce9.jpg").touch()
    assert [row[0] for row in read_list(file, None, ())] == ["caf\udce9.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"file;split\na.jpg;test\n", "has no column 'path'; its columns: file, split"),
        ("l.csv", b"path,left,top,right,bottom\na.jpg,1,2\n", "line 2: the box 1 2 - - is not four numbers"),
        ("l.csv", b"path\n\"" + b"a" * 200_000 + b"\"\n", "line 2 can't be read as CSV"),
        ("l.csv", "path\na.jpg\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("l.txt", "a.jpg\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("l.txt", b"a.jpg\n\0\n", "line 2 is not text"),
        ("l.parquet", b"no parquet", "can't be read as Parquet"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_list(file, None)
        list(read_list(file, None, ()))


def test_one_photo_with_two_classes_through_a_link(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    file = tmp_path / "list.csv"
    file.write_text("path,model\nphotos/a.jpg,x\nlink/a.jpg,y\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"one photo has two classes: model is 'x' of photos/a\.jpg in line 2, and"):
        read_list(file, None, ("model",))
