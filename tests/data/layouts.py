"""Each data set's layout in miniature, exactly as on disk: functions that write one into an empty folder."""

import itertools
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image

from carvision.data.packs.index import read_packed
from carvision.data.readers.compcars import read_compcars
from carvision.data.readers.compcars_other import read_compcars_parts, read_compcars_surveillance
from carvision.data.readers.folder import read_folder
from carvision.data.readers.manifest import read_manifest
from carvision.data.readers.oxford102 import read_oxford102
from carvision.data.readers.stanford_cars import read_stanford_cars
from carvision.data.table import Table
from tests import conftest

STANFORD_NAMES = [
    "AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Aston Martin V8 Vantage Coupe 2012",
    "Land Rover LR2 SUV 2012", "Ram C/V Cargo Van Minivan 2012",
]  # fmt: skip
# (split, file, x1, y1, x2, y2, class), the box and the class 1-based. Train and test files have the same names.
STANFORD_ROWS = [
    ("train", "00001.jpg", 1, 2, 16, 12, 3), ("train", "00002.jpg", 3, 1, 10, 9, 6),
    ("train", "00003.jpg", 1, 1, 16, 12, 1), ("train", "00004.jpg", 2, 2, 15, 11, 4),
    ("train", "00005.jpg", 2, 3, 15, 11, 5), ("test", "00001.jpg", 5, 4, 12, 8, 6),
    ("test", "00002.jpg", 1, 1, 8, 8, 2), ("test", "00003.jpg", 1, 1, 8, 8, 3),
]  # fmt: skip
CAR_TYPES = [
    "MPV", "SUV", "sedan", "hatchback", "minibus", "fastback", "estate", "pickup", "hardtop convertible", "sports",
    "crossover", "convertible",
]  # fmt: skip
# Folder -> photos: (14 hex digits, viewpoint, box), the box 1-based.
COMPCARS_PHOTOS = {
    "1/3/2012": [("3ac218c0c6c301", 1, (1, 2, 16, 12)), ("3ac218c0c6c302", 4, (3, 4, 10, 9))],
    "1/10/2012": [("3ac218c0c6c303", -1, (1, 1, 16, 12))],
    "1/10/2013": [("3ac218c0c6c304", 5, (9, 9, 3, 2)), ("3ac218c0c6c305", 3, (1, 1, 40, 30))],
    "2/11/unknown": [("3ac218c0c6c306", 2, (1, 1, 8, 8)), ("3ac218c0c6c307", 2, (2, 2, 8, 8))],
    "12/4/2014": [("3ac218c0c6c308", 1, (1, 1, 8, 8))],
}
COMPCARS_TRAIN = ["1/10/2012/3ac218c0c6c303.jpg", "1/3/2012/3ac218c0c6c301.jpg", "2/11/unknown/3ac218c0c6c306.jpg"]
COMPCARS_TEST = ["1/10/2013/3ac218c0c6c304.jpg", "1/3/2012/3ac218c0c6c302.jpg"]

# Of CompCars' surveillance photos: names by folder, 1-based, with the ids of the web-nature models; photos by split.
SURVEILLANCE_NAMES = [("Ford", "Kuga", 594), ("Audi", "Audi Q5", 5), ("Hyundai ", "i30", 955), ("Audi", "Audi A1", 19)]
SURVEILLANCE_PHOTOS = {
    "train": ["1/431e8997607101.jpg", "2/431e8997607102.jpg", "2/431e8997607103.jpg", "4/431e8997607104.jpg"],
    "test": ["2/431e8997607105.jpg", "1/431e8997607106.jpg"],
}
# Of CompCars' parts: make/model/year/part/photo -> its list, if any.
PART_PHOTOS = {
    "1/2/2012/1/5ac218c0c6c301.jpg": "train", "1/2/2012/3/5ac218c0c6c301.jpg": "test",
    "1/2/2013/1/5ac218c0c6c302.jpg": "test", "2/4/unknown/1/5ac218c0c6c303.jpg": "train",
    "2/4/unknown/8/5ac218c0c6c304.jpg": "train", "2/4/2014/8/5ac218c0c6c305.jpg": "",
}  # fmt: skip


def real_data(name: str) -> Path:
    """A folder of real photos; the test is skipped where it is absent."""
    folder = conftest.real_data() / name
    if not folder.is_dir():
        pytest.skip(f"real photos are not there: {folder} (CARVISION_REAL_DATA names their folder)")
    return folder


def write_photo(path: Path, size: tuple[int, int] = (16, 12)) -> Path:
    """A JPEG of a few hundred bytes whose colour, and so whose bytes, depend on the last four parts of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(os.fsencode("/".join(path.parts[-4:])))
    noise = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, quality=95)
    return path


def cells(texts: list[str]) -> np.ndarray:
    """A Matlab cell array of strings, one column."""
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = texts
    return array


def write_compcars(root: Path, nesting: str = "data") -> Path:
    """COMPCARS_PHOTOS with labels, misc and lists, below root/<nesting>; the folder that holds image/ is returned."""
    base = root / nesting
    for folder, photos in COMPCARS_PHOTOS.items():
        for name, viewpoint, box in photos:
            write_photo(base / "image" / folder / f"{name}.jpg")
            label = base / "label" / folder / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{viewpoint}\n1\n{' '.join(map(str, box))}\n")
    misc = base / "misc"
    misc.mkdir()
    (misc / "attributes.txt").write_text(
        "model_id maximum_speed displacement door_number seat_number type\n"
        "3 235 1.8 5 5 4\n4 0 0.0 0 0 0\n10 180 2.0 4 5 3\n11 0 1.6 2 0 12\n"
    )
    scipy.io.savemat(misc / "car_type.mat", {"types": cells(CAR_TYPES)})
    makes = ["Audi", "Benz", *[""] * 9, "Audi"]  # ids 1 and 12 have the same name
    models = ["", "", "A4", "", *[""] * 5, "A6L", " GLK"]  # id 4 has none
    scipy.io.savemat(misc / "make_model_name.mat", {"make_names": cells(makes), "model_names": cells(models)})
    lists = base / "train_test_split" / "classification"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(COMPCARS_TRAIN) + "\n")
    (lists / "test.txt").write_text("\n".join(COMPCARS_TEST) + "\n")
    pairs = base / "train_test_split" / "verification"
    pairs.mkdir()
    (pairs / "verification_train.txt").write_text("\n".join(COMPCARS_TRAIN) + "\n")
    for level in ("easy", "medium", "hard"):
        (pairs / f"verification_pairs_{level}.txt").write_text(
            f"{COMPCARS_TRAIN[1]} {COMPCARS_TEST[1]} 1\n{COMPCARS_TRAIN[0]} {COMPCARS_TEST[1]} 0\n"
        )
    return base


def write_compcars_surveillance(root: Path, nesting: str = "sv_data") -> Path:
    """SURVEILLANCE_PHOTOS with both lists and the names, below root/<nesting>, which is returned."""
    base = root / nesting
    for split, names in SURVEILLANCE_PHOTOS.items():
        for name in names:
            write_photo(base / "image" / name)
        (base / f"{split}_surveillance.txt").write_text("\n".join(names) + "\n")
    table = np.empty((len(SURVEILLANCE_NAMES), 3), dtype=object)
    table[:] = [(make, model, np.uint16([[number]])) for make, model, number in SURVEILLANCE_NAMES]
    scipy.io.savemat(base / "sv_make_model_name.mat", {"sv_make_model_name": table})
    return base


def write_compcars_parts(root: Path, nesting: str = "data") -> Path:
    """PART_PHOTOS with the lists of all parts and the names, below root/<nesting>, which is returned."""
    base = root / nesting
    lists = base / "train_test_split" / "part"
    lists.mkdir(parents=True)
    for name in PART_PHOTOS:
        write_photo(base / "part" / name)
    for split, part in itertools.product(("train", "test"), range(1, 9)):
        listed = [name for name, of in PART_PHOTOS.items() if of == split and name.split("/")[3] == str(part)]
        (lists / f"{split}_part_{part}.txt").write_text("".join(f"{name}\n" for name in listed))
    (base / "misc").mkdir()
    names = {"make_names": cells(["Audi", "Benz"]), "model_names": cells(["", "A4L", "", "GLK"])}
    scipy.io.savemat(base / "misc" / "make_model_name.mat", names)
    return base


def many_stanford_rows(num_train: int, num_test: int) -> list[tuple]:
    """Rows like STANFORD_ROWS: so many photos of each class."""
    counts = {"train": num_train, "test": num_test}
    numbers = [(split, i) for split, count in counts.items() for i in range(count * len(STANFORD_NAMES))]
    return [(split, f"{i + 1:05d}.jpg", 1, 2, 16, 11, i % len(STANFORD_NAMES) + 1) for split, i in numbers]


def write_stanford_mats(root: Path, test_labels: str | None = "", rows: list[tuple] = STANFORD_ROWS) -> Path:
    """The original layout. test_labels: folder of cars_test_annos_withlabels.mat below root, None for none."""
    for split, file, *_ in rows:
        write_photo(root / f"cars_{split}" / file)
    devkit = root / "devkit"
    devkit.mkdir()
    scipy.io.savemat(devkit / "cars_meta.mat", {"class_names": cells(STANFORD_NAMES).T})
    scipy.io.savemat(devkit / "cars_train_annos.mat", {"annotations": _annotations(rows, "train", True)})
    scipy.io.savemat(devkit / "cars_test_annos.mat", {"annotations": _annotations(rows, "test", False)})
    if test_labels is not None:
        file = root / test_labels / "cars_test_annos_withlabels.mat"
        scipy.io.savemat(file, {"annotations": _annotations(rows, "test", True)})
    return root


def _annotations(rows: list[tuple], split: str, with_class: bool) -> np.ndarray:
    names = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if with_class else []), "fname"]
    rows = [row for row in rows if row[0] == split]
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for i, (_, file, *box, number) in enumerate(rows):
        array[0, i] = (*map(np.uint16, box), *([np.uint8(number)] if with_class else []), file)
    return array


def write_stanford_kaggle(root: Path, header=True, photos: str = "car_data/car_data", ram: str = "Ram C-V") -> Path:
    """Class folders below root/<photos> and the CSVs in root: with header and CRLF, or without header and LF."""
    write_stanford_mirror(root / photos, ram)
    end = "\r\n" if header else "\n"
    for split in ("train", "test"):
        lines = [",".join(map(str, row[1:])) for row in STANFORD_ROWS if row[0] == split]
        lines = ["image_name,x_min,y_min,x_max,y_max,label", *lines] if header else lines
        (root / f"anno_{split}.csv").write_bytes((end.join(lines) + end).encode())
    numbered = ["class_id,class_name", *(f"{i},{name}" for i, name in enumerate(STANFORD_NAMES, 1))]
    names = numbered if header else STANFORD_NAMES
    (root / "names.csv").write_bytes((end.join(names) + end).encode())
    return root


def write_stanford_mirror(root: Path, ram: str = "Ram C-V") -> Path:
    """{train,test}/<class name>/*.jpg, and a training photo of the class that has none. ram: the name with the slash"""
    write_photo(root / "train" / STANFORD_NAMES[1] / "00009.jpg")
    for split, file, *_, number in STANFORD_ROWS:
        write_photo(root / split / STANFORD_NAMES[number - 1].replace("Ram C/V", ram) / file)
    return root


def write_oxford102(root: Path, repeats: int = 1) -> Path:
    """Ten photos of the species 1, 2 and 102; photos 1 to 4 test, 5 to 7 train, 8 to 10 validation. So often."""
    for number in range(1, 10 * repeats + 1):
        write_photo(root / "jpg" / f"image_{number:05d}.jpg")
    labels = np.array([[1, 2, 102, 1, 2, 102, 1, 2, 102, 1] * repeats], dtype=np.uint8)
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": [7, 5, 6], "valid": [8, 9, 10], "tstid": [4, 1, 2, 3]}
    for name, numbers in ids.items():
        ids[name] = np.array([[10 * r + number for r in range(repeats) for number in numbers]], dtype=np.uint16)
    scipy.io.savemat(root / "setid.mat", ids)
    return root


def write_oxford102_folders(root: Path) -> Path:
    """{train,valid,test}/<label>/image_*.jpg"""
    for number, (split, label) in enumerate(itertools.product(("train", "valid", "test"), ("1", "2", "102")), 1):
        write_photo(root / split / label / f"image_{number:05d}.jpg")
    return root


def write_class_folders(root: Path, counts: dict[str, int]) -> Path:
    """counts: class folder below root ("train/oak") -> number of photos."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write_photo(root / folder / f"{i}.jpg")
    return root


def write_manifest(file: Path, rows: list[dict]) -> Path:
    """A CSV with the keys of the first row as header, and the photos that its column path names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(file, index=False)
    for row in rows:
        write_photo(file.parent / row["path"])
    return file


MANIFEST = [
    {"path": "a/1.jpg", "make": "Audi", "model": "A4", "split": "train", "price": "1.5", "note": "x"},
    {"path": "a/2.jpg", "make": "Audi", "model": "", "split": "Valid", "price": "", "note": ""},
    {"path": "b/3.jpg", "make": "NA", "model": "10", "split": "validation", "price": "3", "note": ""},
    {"path": "b/4.jpg", "make": "NA", "model": " 2 ", "split": "", "price": "4", "note": ""},
    {"path": "b/5.jpg", "make": "", "model": "", "split": "test", "price": "5", "note": ""},
]


def write_pack(root: Path) -> Path:
    from tests.data.packs.small import pack_small, write_photos

    pack_small(write_photos(root / "photos"), root / "pack")
    return root / "pack"


@dataclass(frozen=True)
class Layout:
    """A data set in miniature, and what its reader makes of it."""

    data: str  # its name in conf/data
    write: Callable[[Path], Path]  # writes it into an empty folder and returns the folder that paths are relative to
    read: Callable[..., Table]
    splits: dict[str, int]
    ids: tuple[str, ...]  # of the finest label, with names and the ids of the parents
    names: tuple[str, ...]
    where: str  # how the messages say where to get the data
    empty: dict[str, str]  # what the message says of a folder that holds nothing but this folder
    parents: tuple[str, ...] = ()
    nestings: tuple[str, ...] = ()  # of `write`, for a root that may lie above the data
    absent: str = ""  # a photo that the official lists name
    ids_without_it: tuple[str, ...] = ()
    counts: dict | None = None  # `known` that fits
    counts_message: str = ""  # with the counts of the real data set
    overrides: tuple[str, ...] = ()  # of data=<name>


COMPCARS = Layout(
    "compcars", write_compcars, read_compcars, {"train": 3, "test": 2, "": 3},
    ("3", "4", "10", "11"), ("A4", "4", "A6L", "GLK"),  # model 4 has an empty cell
    "mmlab.ie.cuhk.edu.hk.*comp_cars", {"": "has a folder image", "image": "image holds no photos"},
    ("1", "12", "1", "2"), ("", "data", "data/data"), "image/2/11/unknown/3ac218c0c6c306.jpg", ("3", "4", "10", "11"),
    {"all": {"photos": 8, "make": 3, "model": 4}}, "8 photos instead of 136,726, 3 make classes instead of 163",
)  # fmt: skip
LISTED = replace(
    COMPCARS, read=partial(read_compcars, photos="listed"), splits={"train": 3, "test": 2}, ids=("3", "10", "11"),
    names=("A4", "A6L", "GLK"), parents=("1", "1", "2"), ids_without_it=("3", "10"), empty={},
    counts={"listed": {"train": 3, "test": 2, "make": 2, "model": 3}},
    counts_message="3 train photos instead of 16,016, 2 test photos instead of 14,939, 2 make",
)  # fmt: skip
MAKES = ("AM General", "Acura", "Acura", "Aston Martin", "Land Rover", "Ram")
STANFORD = Layout(
    "stanford_cars", write_stanford_mats, read_stanford_cars, {"train": 5, "test": 3}, tuple("123456"),
    tuple(STANFORD_NAMES), "Kaggle", {"": "has no devkit/cars_train_annos.mat"}, MAKES, (), "cars_test/00002.jpg",
    tuple("13456"), {"train": 5, "test": 3, "make": 5, "model": 6},
    "5 train photos instead of 8,144, 3 test photos instead of 8,041, 5 make",
)  # fmt: skip
OXFORD102 = Layout(
    "oxford102", write_oxford102, read_oxford102, {"test": 4, "train": 3, "val": 3}, ("1", "2", "102"),
    ("pink primrose", "hard-leaved pocket orchid", "blackberry lily"), "robots.ox.ac.uk.*data.download=true",
    {"": "has neither imagelabels.mat nor a folder train"}, (), (), "jpg/image_00003.jpg", ("1", "2", "102"),
    {"photos": 10, "train": 3, "val": 3, "test": 4, "class": 3}, "10 photos instead of 8,189, 3 train photos instead",
)  # fmt: skip
READERS = {
    "compcars": COMPCARS,
    "compcars_listed": LISTED,
    "compcars_verification": replace(
        LISTED, read=partial(read_compcars, photos="verification"), splits={"train": 1, "test": 3}, counts=None
    ),
    "compcars_surveillance": Layout(
        "compcars_surveillance", write_compcars_surveillance, read_compcars_surveillance, {"train": 4, "test": 2},
        ("1", "2", "4"), ("Ford Kuga", "Audi Q5", "Audi A1"), "mmlab.ie.cuhk.edu.hk.*comp_cars",
        {"": "has train_surveillance.txt"}, ("Ford", "Audi", "Audi"),
        ("", "sv_data", "data/sv_data", "data/data/sv_data"), "image/4/431e8997607104.jpg", ("1", "2"),
        {"train": 4, "test": 2, "make": 2, "model": 3}, "4 train photos instead of 31,148, 2 test photos instead of "
        "13,333, 2 make classes instead of 68, 3 model classes instead of 281",
    ),
    "compcars_parts": Layout(
        "compcars_parts", write_compcars_parts, read_compcars_parts, {"train": 3, "test": 2, "": 1}, ("2", "4"),
        ("A4L", "GLK"), "mmlab.ie.cuhk.edu.hk.*comp_cars", {"": "has a folder part", "part": "part holds no photos"},
        ("1", "2"), ("", "data", "data/data"), "part/1/2/2013/1/5ac218c0c6c302.jpg", ("2", "4"),
        {"photos": 6, "part": 3}, "6 photos instead of 27,618, 3 part classes instead of 8",
    ),
    "stanford_mats": STANFORD,
    "stanford_kaggle": replace(
        STANFORD, write=write_stanford_kaggle, absent="car_data/car_data/test/Acura RL Sedan 2012/00002.jpg"
    ),
    "stanford_folders": replace(
        STANFORD, write=write_stanford_mirror, splits={"train": 6, "test": 3}, ids=tuple(STANFORD_NAMES), absent="",
        counts={"train": 6, "test": 3, "make": 5, "model": 6}, counts_message="6 train photos instead of 8,144, 3 test",
    ),
    "oxford102": OXFORD102,
    "oxford102_folders": replace(
        OXFORD102, write=write_oxford102_folders, splits={"test": 3, "train": 3, "val": 3}, absent="",
        # their split differs from the official one: only photos and classes are counted
        counts={"photos": 9, "class": 3, "train": 1_020},
        counts_message="9 photos instead of 8,189, 3 class classes instead of 102",
    ),
    "folder": Layout(
        "folder", partial(write_class_folders, counts={"train/oak": 2, "train/ash": 1, "val/oak": 1}), read_folder,
        {"train": 3, "val": 1}, ("ash", "oak"), ("ash", "oak"), "Lay the photos out as",
        {"": "no folder in .* holds photos"},
    ),
    "manifest": Layout(
        "manifest", lambda root: write_manifest(root / "m.csv", MANIFEST).parent,
        partial(read_manifest, file="m.csv", labels=["make", "model"], parents={"model": "make"}),
        {"train": 1, "val": 2, "": 1, "test": 1}, ("10", "2", "A4"), ("10", "2", "A4"),
        "Give the folder that the paths of the manifest", {"": "m.csv does not exist"}, ("NA", "NA", "Audi"), (),
        "a/1.jpg", ("10", "2"),
        overrides=("data.file=m.csv", "data.labels=[make,model]", "data.parents={model:make}"),
    ),
    "packed": Layout(
        "packed", write_pack, read_packed, {"": 10, "train": 20, "test": 10}, ("7", "8", "9"), ("a", "b", "a"),
        "Give the folder that carvision pack has written", {"": "is no pack, as it has no pack.json"},
        ("Ä", "Ä", "B"),
    ),
}  # fmt: skip
