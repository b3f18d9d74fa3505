"""CompCars, web-nature photos: 163 makes, 1,716 models. Linjie Yang et al., CVPR 2015.

On disk, below data.root, data.root/data or data.root/data/data:
    image/<make id>/<model id>/<year or "unknown">/<14 hex digits>.jpg
    label/<the same path>.txt          viewpoint; number of boxes (1); x1 y1 x2 y2 in 1-based pixels
    misc/attributes.txt                model_id maximum_speed displacement door_number seat_number type; 0 = unknown
    misc/car_type.mat                  types: 12 names, 1-based
    misc/make_model_name.mat           make_names, model_names: by 1-based id; some cells are empty, names repeat
    train_test_split/classification/{train,test}.txt    lines like 78/1/2014/3ac218c0c6c378.jpg
    train_test_split/verification/verification_train.txt                        the same
    train_test_split/verification/verification_pairs_{easy,medium,hard}.txt     path1 path2 label, 1 = same model
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.disk import cell_texts, existing_root, find_photos, read_mat, read_text
from carvision.data.table import (
    BOX,
    Classes,
    Number,
    Table,
    check_counts,
    encode,
    validate,
    with_parent,
    without_missing_files,
)
from carvision.errors import InputError

log = logging.getLogger(__name__)

KNOWN = {
    "all": {"photos": 136_726, "make": 163, "model": 1_716},
    "listed": {"train": 16_016, "test": 14_939, "make": 75, "model": 431},
    "parts_1_and_2": {"train": 16_016, "test": 14_939},
}
PHOTOS = ("all", "listed", "verification", "parts_1_and_2")
# The authors' lists name a few photos that no copy has, and copies differ by a few: one had 136,732. A lost model
# folder is larger than this, or a class less.
A_FEW = 50
PATH = "make/model/year/photo.jpg"  # the lines of lists
PAIR = f"{PATH} {PATH} label"
VIEWPOINTS = {"1": "front", "2": "rear", "3": "side", "4": "front-side", "5": "rear-side"}
WHERE = (
    "CompCars is given out by its authors on request (form on mmlab.ie.cuhk.edu.hk/datasets/comp_cars); unpack it so "
    "that <data.root>/data/image/<make>/<model>/<year>/*.jpg exists, with label, misc and train_test_split beside image"
)
# Threads for the label files: 2.5 times as fast where the files are not cached, no slower where they are.
READERS = 8


def read_compcars(
    root: Path | str | None,
    *,
    allow_missing: bool = False,
    photos: str = "all",
    annotations: bool = True,
    known: Mapping[str, Mapping[str, int]] | None = KNOWN,
) -> Table:
    """Labels make, model (finest, parent make), type, doors, seats, viewpoint; Numbers speed (km/h), displacement (l).

    photos: "all" walks image/ (the official lists give their photos a split, the others have ""); "listed" takes
        the photos of the official classification lists (Part-I of the authors' paper) alone and never walks;
        "parts_1_and_2" also those of verification_train.txt that are in no other list, as val; "verification" those of
        the verification lists alone: verification_train.txt is train, and what a list of pairs names is test.
    annotations: read label/: viewpoint and box. It is one small file a photo.
    known: the counts to assert, as KNOWN; None for data in this layout that is not CompCars itself.
    group is make/model/year, the finest clue to photos of one car; "" where the year is unknown.
    """
    if photos not in PHOTOS:
        raise InputError(f"photos of CompCars: {photos!r} is not one of {', '.join(PHOTOS)}")
    base = _base(existing_root(root, WHERE))
    listed = _read_verification_lists(base) if photos == "verification" else _read_lists(base, photos != "all")
    if photos == "parts_1_and_2" and verification_train(base).is_file():
        more = _read_verification_lists(base)
        more = more[(more == "train") & ~more.index.isin(listed.index)]
        listed = pd.concat([listed, pd.Series("val", more.index, dtype=object)])
    paths = _walk(base) if photos == "all" else listed.index.to_numpy(object)
    table = _table(base, paths, listed.reindex(paths).fillna(""), annotations)
    tolerated = A_FEW if known else 0
    table = check_counts(table, known.get(photos, {}) if known else {}, allow_missing, tolerated)
    if photos != "all":
        table = without_missing_files(table, allow_missing, tolerated)
    else:
        check_absent(base, listed.index.difference(pd.Index(paths)), allow_missing, tolerated)
    return validate(table)


def _base(root: Path) -> Path:
    for base in (root, root / "data", root / "data" / "data"):
        if (base / "image").is_dir():
            return base
    raise InputError(f"data.root: neither {root} nor data or data/data in it has a folder image. {WHERE}")


def _read_lists(base: Path, required: bool) -> pd.Series:
    """path -> "train" or "test"."""
    folder = base / "train_test_split" / "classification"
    splits = {}
    for split in ("train", "test"):
        file = folder / f"{split}.txt"
        if not required and not file.is_file():
            log.warning("compcars: %s does not exist; no photo is in the official split %s", file, split)
            continue
        for number, (path,) in _read_list(file):
            if path in splits:
                text = path.removeprefix("image/")
                raise InputError(f"{file}, line {number}: {text} is listed before; list each photo once")
            splits[path] = split
    return pd.Series(splits, dtype=object)


def pair_lists(base: Path) -> dict[str, Path]:
    """{"easy": file, "medium": ..., "hard": ...} of the official pairs; base: the table's root. They need not exist."""
    folder = base / "train_test_split" / "verification"
    return {level: folder / f"verification_pairs_{level}.txt" for level in ("easy", "medium", "hard")}


def has_pair_lists(root: Path | str | None) -> bool:
    """Whether data.root holds all three lists of pairs."""
    return all(file.is_file() for file in pair_lists(_base(existing_root(root, WHERE))).values())


def verification_train(base: Path) -> Path:
    return base / "train_test_split" / "verification" / "verification_train.txt"


def _read_verification_lists(base: Path) -> pd.Series:
    """path -> "train" or "test", of which a photo of both lists is the latter."""
    tested = {}
    for file in pair_lists(base).values():
        tested |= dict.fromkeys((path for _, pair in _read_list(file, PAIR) for path in pair), "test")
    file = verification_train(base)
    train = dict.fromkeys((path for _, (path,) in _read_list(file)), "train")
    both = [path for path in train if path in tested]
    if both:
        log.warning(
            "compcars: %s of the %s photos of %s are in the lists of pairs, too: test photos alone (first: %s)",
            f"{len(both):,}", f"{len(train):,}", file, both[0],
        )  # fmt: skip
    return pd.Series(train | tested, dtype=object)


def _read_list(file: Path, form: str = PATH) -> Iterator[tuple[int, list[str]]]:
    """Of each line its number and the paths of its photos, relative to the root. form: the words of a line."""
    for number, line in enumerate(read_text(file, WHERE).splitlines(), start=1):
        words, wanted = line.split(), form.split()
        if not words:
            continue
        paths = [f"image/{word}" for word, what in zip(words, wanted, strict=False) if what == PATH]
        if len(words) != len(wanted) or any(path.count("/") != 4 for path in paths):
            raise InputError(f"{file}, line {number}: {line!r} is not {form}")
        yield number, paths


def _walk(base: Path) -> np.ndarray:
    found = find_photos(base, "image")
    paths = [path for path in found if path.count("/") == 4]
    if len(paths) < len(found):
        odd = next(path for path in found if path.count("/") != 4)
        log.warning(
            "compcars: %s photos are not at image/make/model/year/ and are left out (first: %s)",
            f"{len(found) - len(paths):,}", odd,
        )  # fmt: skip
    return np.array(paths, dtype=object)


def check_absent(base: Path, absent: pd.Index, allow_missing: bool, tolerated: int) -> None:
    """Photos that the lists name and image/ lacks; the photos there are counted by check_counts."""
    if absent.empty:
        return
    text = f"compcars: {len(absent):,} photos of the official lists are not there (first: {base / absent[0]})"
    if len(absent) > tolerated and not allow_missing:
        raise InputError(f"{text}. Complete the copy, or accept a partial one with data.allow_missing=true")
    log.warning(text)


def _table(base: Path, paths: np.ndarray, split: pd.Series, annotations: bool) -> Table:
    rows = pd.DataFrame({"path": paths, "split": split.to_numpy(object)}, dtype=str)
    if rows.empty:
        raise InputError(f"data.root: {base / 'image'} holds no photos. {WHERE}")
    # All that follows from the folder is found once a folder (about 4,500) and then spread over its photos.
    of_photo, names = pd.factorize(np.array([path.rpartition("/")[0] for path in paths], dtype=object))
    folders = pd.DataFrame([name.split("/")[1:] for name in names], columns=["make", "model", "year"])
    make_names, model_names = read_names(base)
    labels: dict[str, Classes | Number] = {}
    columns: dict[str, np.ndarray | pd.Series] = {}
    columns["make"], labels["make"] = encode(folders["make"], make_names)
    columns["model"], models = encode(folders["model"], model_names)
    labels["model"] = models
    for name, (values, label) in _read_attributes(base, folders["model"]).items():
        columns[name], labels[name] = values, label
    group = folders["make"] + "/" + folders["model"] + "/" + folders["year"]
    columns["group"] = group.where(folders["year"] != "unknown", "")
    of_folder = pd.DataFrame(columns)
    labels["model"] = with_parent(of_folder, "model", models, "make")
    rows = rows.join(of_folder.take(of_photo).reset_index(drop=True))
    if annotations and (base / "label").is_dir():
        viewpoints, rows[BOX] = _read_label_files(base, paths)
        rows["viewpoint"], labels["viewpoint"] = encode(viewpoints, VIEWPOINTS)
    elif annotations:
        log.warning("compcars: %s does not exist; going on without viewpoints and boxes", base / "label")
    return Table("compcars", base, rows, labels, "model")


def read_names(base: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Names of makes and of models by id; empty where the file is absent, so that ids are shown."""
    file = base / "misc" / "make_model_name.mat"
    if not file.is_file():
        log.warning("compcars: %s does not exist; makes and models are shown by their ids", file)
        return {}, {}
    makes, models = (cell_texts(cells) for cells in read_mat(file, "make_names", "model_names"))
    return _by_id(makes), _by_id(models)


def _by_id(names: list[str]) -> dict[str, str]:
    return {str(i): name for i, name in enumerate(names, start=1)}


def _read_attributes(base: Path, models: pd.Series) -> dict[str, tuple]:
    """Label name -> (values, one a row of `models`; what they are), from misc/."""
    file = base / "misc" / "attributes.txt"
    if not file.is_file():
        log.warning("compcars: %s does not exist; going on without speed, displacement, doors, seats, type", file)
        return {}
    lines = [line.split() for line in read_text(file).splitlines()[1:] if line.strip()]
    if any(len(line) != 6 for line in lines):
        raise InputError(f"{file} is not a header and then lines of six numbers; get it again")
    try:
        values = np.array(lines, dtype=np.float64).reshape(-1, 6)
    except ValueError as error:
        raise InputError(f"{file}: {error}; each line below the header has six numbers") from error
    names = ["speed", "displacement", "doors", "seats", "type"]
    table = pd.DataFrame(values[:, 1:], index=values[:, 0].astype(int).astype(str), columns=names)
    of_row = table[~table.index.duplicated()].reindex(models).fillna(0)
    types_file = base / "misc" / "car_type.mat"
    types = {}
    if types_file.is_file():
        types = _by_id(cell_texts(read_mat(types_file, "types")[0]))
    else:
        log.warning("compcars: %s does not exist; types are shown by their ids", types_file)
    found: dict[str, tuple[np.ndarray, Classes | Number]] = {}
    for name, unit in (("speed", "km/h"), ("displacement", "l")):
        found[name] = of_row[name].where(of_row[name] > 0).to_numpy(np.float32), Number(unit)
    for name in ("doors", "seats", "type"):
        whole = of_row[name].astype(int)
        ids = whole.astype(str).where(whole > 0, "")
        found[name] = encode(ids, types if name == "type" else None)
    return found


def _read_label_files(base: Path, paths: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Viewpoint ids ("" where unknown) and boxes float32 (photos, 4), NaN where the label file can't be read."""
    prefix = f"{base}/label/"
    files = [prefix + path[len("image/") : path.rindex(".")] + ".txt" for path in paths]
    chunks = [files[i : i + 1000] for i in range(0, len(files), 1000)]
    with ThreadPoolExecutor(READERS) as pool:
        contents = [content for chunk in pool.map(_read_small_files, chunks) for content in chunk]
    numbers = np.full((len(files), 6), np.nan, dtype=np.float32)
    for i, content in enumerate(contents):
        words = content.split()
        if len(words) == 6:
            with suppress(ValueError):  # not numbers: the row stays NaN
                numbers[i] = words
    good = np.isfinite(numbers).all(axis=1) & np.isin(numbers[:, 0], [-1, 1, 2, 3, 4, 5])
    numbers[~good] = np.nan
    bad = np.flatnonzero(~good)
    if len(bad):
        log.warning(
            "compcars: %s of %s label files are absent or not viewpoint, 1, x1 y1 x2 y2 (first: %s); "
            "viewpoint and box of these photos are unknown",
            f"{len(bad):,}", f"{len(files):,}", files[bad[0]],
        )  # fmt: skip
    ids = np.array(["", *VIEWPOINTS], dtype=object)
    viewpoints = ids[np.where(numbers[:, 0] > 0, numbers[:, 0], 0).astype(int)]
    return viewpoints, numbers[:, 2:] - np.array([1, 1, 0, 0], np.float32)  # to 0-based, right and bottom excluded


def _read_small_files(files: list[str]) -> list[bytes]:
    """The bytes of each, b"" where one can't be read. Plain system calls: twice as fast as open()."""
    contents = []
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            contents.append(b"")
            continue
        try:
            contents.append(os.read(descriptor, 4096))
        except OSError:
            contents.append(b"")
        finally:
            os.close(descriptor)
    return contents
