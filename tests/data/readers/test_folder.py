import shutil
from pathlib import Path

import pytest

from carvision.data.readers import walk
from carvision.data.readers.folder import read_folder
from carvision.errors import InputError
from tests.data.layouts import real_data, write_class_folders, write_photo


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
    for name in ("a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF"):
        (tmp_path / "1" / name).write_bytes(b"not decoded here")
    for name in (".hidden.jpg", ".DS_Store", "notes.txt", "more.txt", "photo.mov"):
        (tmp_path / "1" / name).write_bytes(b"x")
    write_photo(tmp_path / "1" / ".cache" / "thumb.jpg")
    paths = read_folder(tmp_path).rows["path"].tolist()
    assert len(paths) == 4 + 1 + 8 and "1/near/trunk/0.jpg" in paths
    assert "3 files are no photos" in caplog.text and ".txt: 2, .mov: 1" in caplog.text


@pytest.mark.parametrize("relative", [False, True])
def test_links_within_the_data_never_give_a_photo_another_class(tmp_path, caplog, monkeypatch, relative):
    write_class_folders(tmp_path, {"ash": 2, "oak": 1})
    (tmp_path / "ash" / "all").symlink_to("..")
    (tmp_path / "elm").symlink_to("oak")
    monkeypatch.chdir(tmp_path)
    root = "." if relative else tmp_path
    table = read_folder(root)
    assert table.rows["path"].tolist() == ["ash/0.jpg", "ash/1.jpg", "oak/0.jpg"]
    assert table.labels["class"].ids == ("ash", "oak")
    assert f"2 links lead to folders that are read elsewhere (first: {root}/ash/all, which is {root}" in caplog.text


def test_class_folders_that_are_links(tmp_path):
    root = tmp_path / "root"
    write_class_folders(tmp_path / "elsewhere", {"oak": 2})
    write_class_folders(root, {"ash": 1})
    (root / "oak").symlink_to(tmp_path / "elsewhere" / "oak")
    assert read_folder(root).rows["path"].tolist() == ["ash/0.jpg", "oak/0.jpg", "oak/1.jpg"]
    (root / "elm").symlink_to(tmp_path / "elsewhere" / "oak")
    with pytest.raises(InputError, match=r"root/oak and .*root/elm are links to the same folder \(.*elsewhere/oak\)"):
        read_folder(root)
    (root / "elm").unlink()
    (root / "oak").unlink()
    (root / "oak").symlink_to("/unmounted/oak")
    with pytest.raises(InputError, match=r"hold no photos, or are dangling links \(first: oak\)"):
        read_folder(root)
    assert read_folder(root, allow_missing=True).labels["class"].ids == ("ash",)


def test_splits_made_of_links_to_folders_that_are_no_split(tmp_path):
    write_class_folders(tmp_path, {"all/oak": 2, "all/ash": 1, "train/elm": 1})
    (tmp_path / "train" / "oak").symlink_to("../all/oak")
    (tmp_path / "val").symlink_to("train")
    rows = read_folder(tmp_path).rows
    assert rows["path"].tolist() == ["train/elm/0.jpg", "train/oak/0.jpg", "train/oak/1.jpg"]
    assert set(rows["split"]) == {"train"}


@pytest.mark.parametrize("name", ["train", "Test", "val"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
    write_class_folders(tmp_path / "empty", {"bus": 1, "car": 2, name: 0})
    with pytest.raises(InputError, match=rf"1 class folders .* hold no photos, .*links \(first: {name}\)"):
        read_folder(tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty")
    write_class_folders(tmp_path, {"bus": 1, "car": 2, name: 2})
    table = read_folder(tmp_path)
    assert set(table.labels["class"].ids) == {"bus", "car", name} and len(table) == 5
    assert set(table.rows["split"]) == {""}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"bus": 1, "car": 1, "train": 1, "train/steam": 1}, "train in .* holds folders with photos, as a split does"),
        ({"bus": 1, "car": 1, "train/steam": 1, "train/diesel": 1}, "stands beside bus, car, with photos directly"),
        ({"train": 3, "val": 2}, "train in .* holds photos without a class folder"),
        ({"bus": 1, "test/bus": 1}, "has test but no folder train"),
        ({"val/oak": 1, "test/oak": 1}, "has test, val but no folder train"),
    ],
)
def test_ambiguous_layouts_are_errors(tmp_path, counts, message):
    write_class_folders(tmp_path, counts)
    with pytest.raises(InputError, match=rf"^data\.root: .*{message}"):
        read_folder(tmp_path)


def test_photos_and_folders_beside_the_class_folders_are_left_out_with_a_warning(tmp_path, caplog):
    write_class_folders(tmp_path, {"train/oak": 2, "train/ash": 1, "other/ash": 1, "test": 3})
    write_photo(tmp_path / "train" / "logo.png")
    assert set(read_folder(tmp_path).rows["split"]) == {"train"}  # the test photos have no labels
    assert "4 photos are in no class folder and are left out (first: test/0.jpg)" in caplog.text
    assert "other beside test, train" in caplog.text


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


def test_a_class_with_only_heic_photos_names_the_missing_extra(tmp_path, monkeypatch):
    plain = tuple(extension for extension in walk.PHOTO_EXTENSIONS if extension not in walk.HEIC_EXTENSIONS)
    monkeypatch.setattr(walk, "PHOTO_EXTENSIONS", plain)
    write_class_folders(tmp_path, {"ash": 1, "oak": 0})
    (tmp_path / "oak" / "IMG_1.HEIC").touch()
    with pytest.raises(InputError, match=r"first: oak\); left out: 1 HEIC photos .* need pip install 'carv"):
        read_folder(tmp_path)


def test_class_folders_in_either_unicode_form_are_one_class(tmp_path):
    composed, decomposed = "Ros\u00e9", "Rose\u0301"
    write_class_folders(tmp_path, {f"train/{decomposed}": 2, f"val/{composed}": 1, "train/ash": 1})
    table = read_folder(tmp_path)
    assert table.labels["class"].ids == (composed, "ash") and len(table) == 4
    for value in (composed, decomposed):
        assert table.only_classes([value]).rows["path"].str.contains("/Ros").all()
    write_class_folders(tmp_path / "alone", {decomposed: 2, "ash": 1})
    assert read_folder(tmp_path / "alone").labels["class"].names == (decomposed, "ash")  # shown as it is on disk


def test_names_that_are_not_utf8(tmp_path):
    write_class_folders(tmp_path, {"Bl\udcfcte": 2, "ash": 1})
    write_photo(tmp_path / "ash" / "K\udce4fer.jpg")
    table = read_folder(tmp_path)
    assert table.rows["path"].tolist() == ["Bl\\xfcte/0.jpg", "Bl\\xfcte/1.jpg", "ash/0.jpg", "ash/K\\xe4fer.jpg"]
    assert table.labels["class"].names == ("Bl\\xfcte", "ash")
    assert all(Path(table.photo(row)).is_file() for row in range(4))


def test_real_ten_classes():
    table = read_folder(real_data("imagenette"))
    assert table.rows["split"].value_counts().to_dict() == {"train": 1_200, "val": 500}
    assert len(table.labels["class"]) == 10
