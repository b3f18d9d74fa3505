"""Which photos are meant, and in what order."""

import io
from types import SimpleNamespace

import pytest

from carvision.errors import InputError
from carvision.inference.sources import Photo, Sources, check_sources, count_photos, iterate_photos, require_photos


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "b/2.JPG",
        "b/10.jpeg",
        "b/c/1.png",
        "a.webp",
        "z.jpg",
        "b/notes.txt",
        "README",
        ".hidden.jpg",
        ".h/x.jpg",
    ):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sources_come_in_the_order_given(tree, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one.jpg\n\n/abs/two.jpg\r\nlast.jpg")))
    (tree / "list.txt").write_text("in list.jpg\n")
    sources = Sources(("photos/z.jpg", "-", "photos/b"), tree / "list.txt", root=tree / "photos")
    photos = list(iterate_photos(sources))
    assert [photo.path for photo in photos] == [
        "photos/z.jpg", "one.jpg", "/abs/two.jpg", "last.jpg",
        "photos/b/10.jpeg", "photos/b/2.JPG", "photos/b/c/1.png", "in list.jpg",
    ]  # fmt: skip
    assert photos[0].file == "photos/z.jpg"  # what is named on the command line is not relative to the root
    assert photos[1].file == str(tree / "photos" / "one.jpg") and photos[2].file == "/abs/two.jpg"
    assert photos[-1] == Photo("in list.jpg", str(tree / "photos" / "in list.jpg"))


def test_mistakes_are_told_before_any_photo_is_read(tree):
    (tree / "empty").mkdir()
    (tree / "boxes.csv").write_text("path,left\na.jpg,1\n")
    (tree / "t.csv").write_text("path,split\na.jpg,train\n")
    for sources, message in {
        Sources(): "no photos given",
        Sources(("nowhere.jpg",)): "nowhere.jpg does not exist",
        Sources(("-", "-")): "standard input is given twice",
        Sources(("empty",)): "no photos in empty",
        Sources(("photos",), root=tree): "--root: .* is for the relative paths of a list",
        Sources(("-",), root=tree / "no"): "--root: .* is not a folder",
        Sources(("photos",), split="test"): "--split: test chooses rows of a table",
        Sources(list_path=tree / "nolist"): "--list: .* does not exist",
        Sources(list_path=tree / "README.csv"): "does not exist",
        Sources(list_path=tree / "boxes.csv"): "has no column 'top', and a box needs",
        Sources(list_path=tree / "t.csv", split="test"): "no row of .* has the split 'test'",
    }.items():
        with pytest.raises(InputError, match=message):
            check_sources(sources)
    check_sources(Sources(("photos", "-"), tree / "t.csv", tree, "train"))


def test_standard_input_without_a_line_is_an_error_when_it_ends():
    with pytest.raises(InputError, match="no photos in -"):
        list(require_photos(iter(()), Sources(("-",))))
    assert list(require_photos(iter([Photo("a", "a")]), Sources(("-",)))) == [Photo("a", "a")]


def test_counting(tree):
    assert count_photos(Sources(("photos", "photos/z.jpg")), seconds=60) == 6
    assert count_photos(Sources(("photos", "-")), seconds=60) is None
    (tree / "long.txt").write_text("a.jpg\n" * 5000)
    assert count_photos(Sources(list_path=tree / "long.txt"), seconds=-1) is None
