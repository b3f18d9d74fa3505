"""Class folders, and folders as they come: links, circles, names in other encodings, files that are not photos."""

import shutil

import pytest

from carvision.data.readers.folder import read_folder
from carvision.data.readers.walk import LeftOut, walk
from carvision.errors import InputError
from tests.data.layouts import write_class_folders, write_photo


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_with_split_folders(tmp_path, val):
    write_class_folders(tmp_path, {"train/oak": 2, "train/ash": 2, f"{val}/oak": 1, "test/ash": 1})
    rows = read_folder(tmp_path).rows.set_index("path")
    assert rows["split"].to_dict() == {
        "train/oak/0.jpg": "train", "train/oak/1.jpg": "train", "train/ash/0.jpg": "train", "train/ash/1.jpg": "train",
        f"{val}/oak/0.jpg": "val", "test/ash/0.jpg": "test",
    }  # fmt: skip
    assert rows.loc["test/ash/0.jpg", "class"] == rows.loc["train/ash/0.jpg", "class"]


def test_without_split_folders_photos_are_found_by_extension_in_any_case_and_depth(tmp_path, caplog):
    write_class_folders(tmp_path, {"10": 1, "2": 1, "1": 2})
    table = read_folder(tmp_path)
    assert table.rows["path"].tolist() == ["1/0.jpg", "1/1.jpg", "10/0.jpg", "2/0.jpg"]
    assert table.rows["class"].tolist() == [0, 0, 2, 1] and set(table.rows["split"]) == {""}
    assert table.labels["class"].ids == table.labels["class"].names == ("1", "2", "10")  # by number
    write_class_folders(tmp_path, {"1/near/trunk": 1})
    photos = ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF"]
    for name in (*photos, ".hidden.jpg", ".DS_Store", "notes.txt", "more.txt", "photo.mov"):
        (tmp_path / "1" / name).write_bytes(b"not decoded here")
    write_photo(tmp_path / "1" / ".cache" / "thumb.jpg")
    paths = read_folder(tmp_path).rows["path"].tolist()
    assert len(paths) == 4 + 1 + 8 and "1/near/trunk/0.jpg" in paths
    assert "3 files are no photos" in caplog.text and ".txt: 2, .mov: 1" in caplog.text


def test_class_folders_that_are_links(tmp_path):
    root = tmp_path / "root"
    write_class_folders(tmp_path / "elsewhere", {"oak": 2})
    write_class_folders(root, {"ash": 1})
    (root / "oak").symlink_to(tmp_path / "elsewhere" / "oak")
    (root / "ash" / "all").symlink_to("..")  # a link within the data never gives a photo another class
    (root / "beech").symlink_to("ash")
    assert read_folder(root).rows["path"].tolist() == ["ash/0.jpg", "oak/0.jpg", "oak/1.jpg"]
    (root / "elm").symlink_to(tmp_path / "elsewhere" / "oak")
    with pytest.raises(InputError, match=r"root/oak and .*root/elm are links to the same folder \(.*elsewhere/oak\)"):
        read_folder(root)
    for name in ("elm", "oak"):
        (root / name).unlink()
    (root / "oak").symlink_to("/unmounted/oak")
    with pytest.raises(InputError, match=r"hold no photos, or are dangling links \(first: oak\)"):
        read_folder(root)


def test_ambiguous_layouts_are_errors(tmp_path):
    for i, counts, message in (
        (1, {"bus": 1, "train": 1, "train/steam": 1}, "train in .* holds folders with photos, as a split does"),
        (2, {"train": 3, "val": 2}, "train in .* holds photos without a class folder"),
        (3, {"bus": 1, "test/bus": 1}, "has test but no folder train"),
    ):
        with pytest.raises(InputError, match=rf"^data\.root: .*{message}"):
            read_folder(write_class_folders(tmp_path / str(i), counts))


def test_class_folders_without_photos_and_classes_that_train_lacks(tmp_path, caplog):
    write_class_folders(tmp_path, {"train/oak": 2, "train/ash": 0, "val/oak": 1})
    with pytest.raises(InputError, match=r"1 class folders .*hold no photos, .*links \(first: train/ash\)"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, allow_missing=True).labels["class"].ids == ("oak",)
    assert "train/ash" in caplog.text
    (tmp_path / "train" / "ash").rmdir()
    write_class_folders(tmp_path, {"val/elm": 2})
    with pytest.raises(InputError, match=r"1 classes of val or test .*not in train \(first: elm, val/elm/0.jpg\)"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path, allow_missing=True)) == 3
    assert "their 2 photos are left out" in caplog.text


def test_class_folders_in_either_unicode_form_are_one_class(tmp_path):
    composed, decomposed = "Ros\u00e9", "Rose\u0301"
    write_class_folders(tmp_path, {f"train/{decomposed}": 2, f"val/{composed}": 1, "train/ash": 1})
    table = read_folder(tmp_path)
    assert table.labels["class"].ids == (composed, "ash") and len(table) == 4
    for value in (composed, decomposed):
        assert table.only_classes([value]).rows["path"].str.contains("/Ros").all()
    write_class_folders(tmp_path / "alone", {decomposed: 2, "ash": 1})
    assert read_folder(tmp_path / "alone").labels["class"].names == (decomposed, "ash")  # shown as it is on disk


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
    found = walk("photos", LeftOut())
    next(found)
    shutil.rmtree(tree / "photos" / "b")
    with pytest.raises(InputError, match="photos/b: the folder can't be read"):
        list(found)


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
