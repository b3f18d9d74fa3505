"""Folders as they come: links, circles, names in other encodings, files that are not photos."""

import shutil
from pathlib import Path

import pytest

from carvision.data.paths import file_of, path_of_text, text_of_path
from carvision.data.readers.walk import LeftOut, walk
from carvision.errors import InputError

FILES = ("b/2.JPG", "b/10.jpeg", "b/c/1.png", "a.webp", "z.jpg", "b/notes.txt", "README", ".hidden.jpg", ".h/x.jpg")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in FILES:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_walked_by_name_and_other_files_are_counted(tree):
    left_out = LeftOut()
    found = list(walk("photos", left_out))
    assert found == [f"photos/{name}" for name in ("a.webp", "b/10.jpeg", "b/2.JPG", "b/c/1.png", "z.jpg")]
    assert left_out.others == {".txt": 1, "no extension": 1}
    assert "2 files are no photos by their extension (no extension: 1, .txt: 1; first: photos/R" in left_out.line()


def test_each_real_folder_is_read_once(tree):
    photos = tree / "photos"
    (tree / "outside" / "in").mkdir(parents=True)
    for name in ("l.jpg", "in/m.jpg"):
        (tree / "outside" / name).touch()
    links = {
        "b/round": photos, "b/itself": photos / "b", "b/above": tree, "b/c/sibling": "../c", "0": photos / "b" / "c",
        "first": tree / "outside", "second": tree / "outside", "third": tree / "outside" / "in", "dot": photos / ".h",
    }  # fmt: skip
    for link, target in links.items():
        (photos / link).symlink_to(target)
    (tree / "outside" / "back").symlink_to(photos / "b")
    (tree / "link").symlink_to(photos)  # the folder itself may be a link
    (photos / "b" / "over").symlink_to(tree / "link")
    assert len(list(walk("link", LeftOut()))) == 8
    (photos / "b" / "over").unlink()
    left_out = LeftOut()
    found = list(walk("photos", left_out))
    wanted = "a.webp b/10.jpeg b/2.JPG b/c/1.png dot/x.jpg first/in/m.jpg first/l.jpg z.jpg"
    assert found == [f"photos/{name}" for name in wanted.split()]
    assert left_out.links == {
        "photos/0": "photos/b/c", "photos/b/above": "a folder above photos", "photos/b/c/sibling": "photos/b/c",
        "photos/b/itself": "photos/b", "photos/b/round": "photos", "photos/first/back": "photos/b",
        "photos/second": "photos/first", "photos/third": "photos/first/in",
    }  # fmt: skip
    assert "8 links lead to folders that are read elsewhere (first: photos/0, which is photos/b/c)" in left_out.line()


def test_an_unreadable_folder_is_an_error(tree):
    found = walk("photos", LeftOut())
    next(found)
    shutil.rmtree(tree / "photos" / "b")
    with pytest.raises(InputError, match="photos/b: the folder can't be read"):
        list(found)


def test_names_that_are_not_utf8_become_text_that_finds_the_file_again(tmp_path):
    assert text_of_path("caf\udce9.jpg") == "caf\\xe9.jpg"
    names = ["K\udce4fer", "K\\xe4fer", "K\\x5cxe4fer", "K\\x41", "a\\b", "日本 \udcff\udcfe", "Blüten", "x\\", "\\x5c"]
    texts = [text_of_path(name) for name in names]
    assert len(set(texts)) == len(names) and [path_of_text(text) for text in texts] == names
    for name, text in zip(names, texts, strict=True):
        (tmp_path / name).touch()
        assert Path(file_of(tmp_path, text.encode().decode())).is_file()
