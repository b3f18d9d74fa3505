"""The photos to predict, their order and true classes: folders, standard input, lists of text, and tables."""

import io
from types import SimpleNamespace

import pandas as pd
import pytest

from carvision.data.paths import PhotoPaths
from carvision.errors import InputError
from carvision.inference import sources
from carvision.inference.known import TrueClasses
from carvision.inference.sources import Photo, Sources, check_list, check_sources, columns_of, iterate_photos

TABLE = pd.DataFrame(
    [["9", "a b.jpg", "test", 1.0, 2.0, 30.5, 40.0, 1], [None, "x/ü,1.jpg", "valid", *[None] * 4, 2],
     [" X5 ", "c.jpg", "TEST", 0.0, 0.0, 9.0, 9.0, 3]],
    columns=["model", "path", "split", "left", "top", "right", "bottom", "other"],
)  # fmt: skip
IDS = {"make": ["3", "7", "307"], "model": ["1", "2", "307", "9"]}
NAMES = {"make": ["Audi", "BMW", "Mazda"], "model": ["A4", "307", "X5", "X5"]}
PARENTS = {"model": ("make", [0, 1, 1, 2])}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    photos = ("b/2.JPG", "b/10.jpeg", "b/c/1.png", "a.webp", "z.jpg")
    for name in (*photos, "b/notes.txt", "README", ".hidden.jpg", ".h/x.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_list(file, split, labels):
    """Return the rows without their files."""
    return [(path, *rest) for path, _, *rest in sources.read_list(file, split, labels, PhotoPaths(file.parent))]


def paths_in(file, split=None) -> list[str]:
    return [row[0] for row in read_list(file, split, ())]


def test_sources_come_in_the_order_given(tree, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one.jpg\n\n/abs/two.jpg\r\nlast.jpg")))
    (tree / "list.txt").write_text("in list.jpg\n")
    photos = list(iterate_photos(Sources(("photos/z.jpg", "-", "photos/b"), tree / "list.txt", root=tree / "photos")))
    assert [photo.path for photo in photos] == [
        "photos/z.jpg", "one.jpg", "/abs/two.jpg", "last.jpg",
        "photos/b/10.jpeg", "photos/b/2.JPG", "photos/b/c/1.png", "in list.jpg",
    ]  # fmt: skip
    assert photos[0].file == "photos/z.jpg"  # photos on the command line are not relative to the root
    assert photos[1].file == str(tree / "photos" / "one.jpg") and photos[2].file == "/abs/two.jpg"
    assert photos[-1] == Photo("in list.jpg", str(tree / "photos" / "in list.jpg"))


def test_mistakes_are_reported_before_any_photo_is_read(tree):
    (tree / "empty").mkdir()
    (tree / "boxes.csv").write_text("path,left\na.jpg,1\n")
    (tree / "t.csv").write_text("path,split\na.jpg,train\n")
    for wrong, message in {
        Sources(): "no photos given",
        Sources(("nowhere.jpg",)): "nowhere.jpg does not exist",
        Sources(("empty",)): "no photos in empty",
        Sources(("-",), root=tree / "no"): "--root: .* is not a folder",
        Sources(("photos",), split="test"): "--split: test chooses rows of a table",
        Sources(list_path=tree / "boxes.csv"): "has no column 'top', and a box needs",
        Sources(list_path=tree / "t.csv", split="test"): "no row of .* has the split 'test'",
    }.items():
        with pytest.raises(InputError, match=message):
            check_sources(wrong)
    check_sources(Sources(("photos", "-"), tree / "t.csv", tree, "train"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_rows_of_a_table_and_of_its_splits(tmp_path, suffix):
    """The forms that a table can have: tests/data/readers/test_table_file.py."""
    file = tmp_path / f"list{suffix}"
    TABLE.to_parquet(file) if suffix == ".parquet" else TABLE.to_csv(file, index=False)
    check_list(file, "test")
    assert columns_of(file) == list(TABLE.columns)
    assert read_list(file, None, ("make", "model")) == [
        ("a b.jpg", (1.0, 2.0, 30.5, 40.0), {"model": "9"}),
        ("x/ü,1.jpg", None, {}),
        ("c.jpg", (0.0, 0.0, 9.0, 9.0), {"model": "X5"}),
    ]
    assert paths_in(file, "test") == ["a b.jpg", "c.jpg"] and paths_in(file, "val") == ["x/ü,1.jpg"]


def test_lines_of_text(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffa b.jpg\r\n\n  \r\n ü,1.jpg\nlast.jpg".encode())
    check_list(file, None)
    assert columns_of(file) is None
    assert paths_in(file) == ["a b.jpg", " ü,1.jpg", "last.jpg"]
    file.write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(InputError, match=r"^--list: .*: 'caf\\xe9.jpg' is not in the encoding UTF-8; save the list"):
        paths_in(file)
    (tmp_path / "caf\udce9.jpg").touch()
    assert paths_in(file) == ["caf\udce9.jpg"]
    for content, message in (("a.jpg\n".encode("utf-16"), "UTF-16 text; save it"), (b"a\n\0\n", "line 2 is not text")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            paths_in(file)


def test_one_photo_with_two_classes(tmp_path):
    file = tmp_path / "list.csv"
    (tmp_path / "a.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    file.write_text("path,model\na.jpg,x\nb.jpg,y\nlink/a.jpg,z\n", encoding="utf-8")
    message = "list.csv: one photo has two classes: model is 'x' of a.jpg in line 2, and 'z' of link/a.jpg in line 4"
    with pytest.raises(InputError, match=f"^--list: .*{message}"):
        read_list(file, None, ("model",))
    assert len(read_list(file, None, ())) == 3  # no label is asked for
    boxes = "a.jpg,x,1,1,9,9\na.jpg,y,9,1,19,9\na.jpg,x,1,1,9,9\n"  # of two boxes of it
    file.write_text(f"path,model,left,top,right,bottom\n{boxes}", encoding="utf-8")
    assert [row[2] for row in read_list(file, None, ("model",))] == [{"model": "x"}, {"model": "y"}, {"model": "x"}]


def codes(photo, heads=("model", "make"), from_folders=False):
    truths = TrueClasses(IDS, NAMES, PARENTS, list(heads), from_folders)
    return truths.codes(photo), {head: dict(counts) for head, counts in truths.unknown.items() if counts}


@pytest.mark.parametrize(("truth", "expected"), [
    ({"make": "7", "model": "2"}, {"make": 1, "model": 1}),
    ({"make": "BMW", "model": "307"}, {"make": 1, "model": 2}),  # the id, before the name of another
    ({"make": "BMW", "model": "X5"}, {"make": 1, "model": 2}),  # of the two of that name, BMW's
    ({"model": "A4"}, {"make": None, "model": 0}),
    ({"model": "X5"}, {"make": None, "model": None}),  # two classes of this name
    ({"make": "Audi", "model": "X5"}, {"make": 0, "model": None}),  # Audi has none of this name
])  # fmt: skip
def test_classes_of_a_list(truth, expected):
    found, unknown = codes(Photo("p", "p", None, truth))
    assert found == expected
    assert unknown == {head: {value: 1} for head, value in truth.items() if expected[head] is None}


@pytest.mark.parametrize(("path", "truth", "expected"), [
    ("data/BMW/X5/2014/a.jpg", {}, {"make": 1, "model": 2}),
    ("7/2/1/a.jpg", {}, {"make": 1, "model": 1}),  # 1 is a model, but not of BMW: a year or a part
    ("BMW/Audi/a.jpg", {}, {"make": 0, "model": None}),
    ("7/2/a.jpg", {"make": "3"}, {"make": 0, "model": None}),  # lists come first
])  # fmt: skip
def test_classes_of_the_nearest_folder_that_has_a_class_name(path, truth, expected):
    found, unknown = codes(Photo(path, "", None, truth), from_folders=True)
    assert found == expected
    folder = path.split("/")[-2]
    assert unknown == {head: {folder: 1} for head, code in expected.items() if code is None}


def test_folders_in_windows_paths_other_bytes_and_either_form_of_unicode():
    ids = {"make": ["Ros\u00e9", "Bl\\xfcte"]}
    truths = TrueClasses(ids, ids, {}, ["make"], True)
    assert truths.codes(Photo("Rose\u0301/1.jpg", "Rose\u0301/1.jpg"))["make"] == 0
    assert truths.codes(Photo("Rose\u0301\\1.jpg", "Rose\u0301/1.jpg"))["make"] == 0
    assert truths.codes(Photo("Bl\\xfcte/1.jpg", "Bl\udcfcte/1.jpg"))["make"] == 1
    assert truths.codes(Photo("a.jpg", "a.jpg", None, {"make": "Rose\u0301"}))["make"] == 0


def test_with_one_class_against_the_rest_all_others_are_the_rest():
    ids = {"make": ["7", "rest"]}
    truths = TrueClasses(ids, {"make": ["BMW", "rest"]}, {}, ["make"], True, {"make": 1})
    found = [truths.codes(Photo(path, path))["make"] for path in ("x/BMW/a.jpg", "x/Audi/a.jpg", "x/7/a.jpg")]
    assert found == [0, 1, 0] and not truths.unknown["make"]
    assert truths.codes(Photo("a.jpg", "a.jpg", None, {"make": "Audi"}))["make"] == 1
