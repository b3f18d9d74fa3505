"""CompCars (Linjie Yang et al., CVPR 2015): web-nature photos. Its other photos: see compcars_other.py.

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
import re
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
    warn_of_incomplete,
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
# The authors' lists name a few photos that no copy has, and copies differ by a few: one had 136,732. A lost model
# folder is larger than this, or a class less.
TOLERATED = 50
SOURCE = "CompCars is given out by its authors on request (form on mmlab.ie.cuhk.edu.hk/datasets/comp_cars); unpack"
HINT = (
    f"{SOURCE} it so that <data.root>/data/image/<make>/<model>/<year>/*.jpg exists, with label, misc and "
    "train_test_split beside image"
)
VERIFICATION = "train_test_split/verification/verification"  # how the paths of its lists begin
# Lines of lists: their form in words, and a pattern whose groups are the photos
PATH, PAIR = "make/model/year/photo.jpg", "make/model/year/photo.jpg make/model/year/photo.jpg label"
PATH_LINE = re.compile(r"([^/\s]*(?:/[^/\s]*){3})")
PAIR_LINE = re.compile(rf"{PATH_LINE.pattern}\s+{PATH_LINE.pattern}\s+\S+")
VIEWPOINTS = {"1": "front", "2": "rear", "3": "side", "4": "front-side", "5": "rear-side"}
NUM_READ_THREADS = 8  # for the label files: 2.5 times as fast where they are not cached, no slower where they are


def read_compcars(
    root: Path | str | None,
    *,
    allow_missing: bool = False,
    photos: str = "all",
    annotations: bool = True,
    known: Mapping[str, Mapping[str, int]] | None = KNOWN,
) -> Table:
    """Read the web-nature photos: 163 makes, 1,716 models.

    Labels: make, model (finest, parent make), type, doors, seats, viewpoint; Numbers speed (km/h), displacement (l).
    group is make/model/year, the best evidence of photos of one car; "" where the year is unknown.

    photos: "all" walks image/ (the official lists give their photos a split, the others have ""); "listed" takes
        only the photos of the official classification lists (Part-I of the authors' paper) and never walks;
        "parts_1_and_2" also those of verification_train.txt that are in no other list, as val; "verification" only
        those of the verification lists: verification_train.txt is train, and what a list of pairs names is test.
    annotations: read label/: viewpoint and box. It is one small file per photo.
    known: the counts to assert, as KNOWN; None for data in this layout that is not CompCars itself.
    """
    base = find_base(root, "image", HINT)
    if photos == "verification":
        listed = _read_verification_lists(base)
    else:
        listed = _read_classification_lists(base, required=photos != "all")
    if photos == "parts_1_and_2" and (base / f"{VERIFICATION}_train.txt").is_file():
        more = _read_verification_lists(base)
        more = more[(more == "train") & ~more.index.isin(listed.index)]
        listed = pd.concat([listed, pd.Series("val", more.index, dtype=object)])
    if photos == "all":
        paths = walk_photos(base, "image", r"image(/[^/]+){4}", "image/make/model/year/", "compcars")
    else:
        paths = listed.index.tolist()
    table = _table_of_cars(base, paths, listed.reindex(paths).fillna(""), annotations)
    tolerated = TOLERATED if known else 0
    table = check_counts(table, (known or {}).get(photos), allow_missing, tolerated)
    if photos != "all":
        return validate(without_missing_files(table, allow_missing, tolerated))
    require_listed(base, listed, paths, allow_missing, tolerated)
    return validate(table)


def _table_of_cars(base: Path, paths: list[str], split: pd.Series, annotations: bool) -> Table:
    if not paths:
        raise InputError(f"data.root: {base / 'image'} holds no photos. {HINT}")
    # What follows from the folder is found once per folder (about 4,500) and then spread over its photos
    of_photo, names = pd.factorize(np.array([path.rpartition("/")[0] for path in paths], dtype=object))
    folders = pd.DataFrame([name.split("/")[1:] for name in names], columns=["make", "model", "year"])
    of_folder, labels = labels_of_folders(base, folders)
    for name, (values, label) in _read_attributes(base, folders["model"]).items():
        of_folder[name], labels[name] = values, label
    rows = pd.DataFrame({"path": paths, "split": split.to_numpy(object)}, dtype=str)
    rows = rows.join(of_folder.take(of_photo).reset_index(drop=True))
    if annotations and (base / "label").is_dir():
        viewpoints, rows[BOX] = _read_label_files(base, paths)
        rows["viewpoint"], labels["viewpoint"] = encode(viewpoints, VIEWPOINTS)
    elif annotations:
        log.warning("compcars: %s does not exist; continuing without viewpoints and boxes", base / "label")
    return Table("compcars", base, rows, labels, "model")


def labels_of_folders(base: Path, folders: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Classes | Number]]:
    """Return the columns make, model and group of folders make/model/year, a row each, and the labels of the first two.
    Without the file of names, makes and models are shown by their ids."""
    make_names, model_names = _read_names(base / "misc" / "make_model_name.mat", "make_names", "model_names")
    make, makes = encode(folders["make"], make_names)
    model, models = encode(folders["model"], model_names)
    group = folders["make"] + "/" + folders["model"] + "/" + folders["year"]
    rows = pd.DataFrame({"make": make, "model": model, "group": group.where(folders["year"] != "unknown", "")})
    return rows, {"make": makes, "model": with_parent(rows, "model", models, "make")}


def find_base(root: Path | str | None, wanted: str, hint: str, below: tuple[str, ...] = ()) -> Path:
    """Return the folder that has `wanted`: data.root, data/ or data/data/ in it, or one called `below` in these."""
    root = existing_root(root, hint)
    for base in (root / above / folder for above in (".", "data", "data/data") for folder in (*below, ".")):
        if (base / wanted).exists():
            return base
    what, inside = wanted if "." in wanted else f"a folder {wanted}", ", ".join((*below, "data"))
    raise InputError(f"data.root: neither {root} nor {inside} or data/data in it has {what}. {hint}")


def walk_photos(base: Path, folder: str, pattern: str, form: str, data_set: str) -> list[str]:
    """Return the paths, relative to base, of all photos below base/folder that match `pattern`, sorted.

    form: the pattern in words, for the warning about photos in other folders, which are left out.
    """
    found = find_photos(base, folder)
    fits = re.compile(pattern).fullmatch
    paths = [path for path in found if fits(path)]
    if len(paths) < len(found):
        odd = next(path for path in found if not fits(path))
        log.warning(
            "%s: %s photos are not at %s and are left out (first: %s)",
            data_set, f"{len(found) - len(paths):,}", form, odd,
        )  # fmt: skip
    return paths


def _read_lines(file: Path, pattern: re.Pattern[str], form: str, hint: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the number, from 1, and the match of each line that is not empty. form: the pattern in words."""
    for number, text in enumerate(map(str.strip, read_text(file, hint).splitlines()), start=1):
        if not text:
            continue
        found = pattern.fullmatch(text)
        if not found:
            raise InputError(f"{file}, line {number}: {text!r} is not {form}")
        yield number, found


def read_split_lists(files: Mapping[str, Path], pattern: re.Pattern[str], form: str, hint: str) -> dict[str, str]:
    """Return {path: split} from text files {split: file} with a photo per line.

    A path is what the groups of `pattern` hold, joined by "/". Raises InputError for a photo that is listed twice.
    """
    splits: dict[str, str] = {}
    for split, file in files.items():
        for number, found in _read_lines(file, pattern, form, hint):
            path = "/".join(found.groups())
            if path in splits:
                raise InputError(f"{file}, line {number}: {found.string} is listed before; list each photo once")
            splits[path] = split
    return splits


def _read_classification_lists(base: Path, required: bool) -> pd.Series:
    """Return the official split ("train" or "test") by path. required: an absent list is an error, not a warning."""
    files = {split: base / f"train_test_split/classification/{split}.txt" for split in ("train", "test")}
    for split in [split for split, file in files.items() if not (required or file.is_file())]:
        log.warning("compcars: %s does not exist; no photo is in the official split %s", files.pop(split), split)
    splits = read_split_lists(files, PATH_LINE, PATH, HINT)
    return pd.Series({f"image/{path}": split for path, split in splits.items()}, dtype=object)


def pair_list_files(base: Path) -> dict[str, Path]:
    """Return the files of the official pairs by difficulty, easy, medium and hard. They need not exist."""
    return {level: base / f"{VERIFICATION}_pairs_{level}.txt" for level in ("easy", "medium", "hard")}


def has_pair_lists(root: Path | str | None) -> bool:
    """Check that data.root holds all three lists of pairs."""
    return all(file.is_file() for file in pair_list_files(find_base(root, "image", HINT)).values())


def _read_verification_lists(base: Path) -> pd.Series:
    """Return the split by path: "test" for a photo in a list of pairs, "train" for others of verification_train.txt."""
    tested: dict[str, str] = {}
    for file in pair_list_files(base).values():
        pairs = (found.groups() for _, found in _read_lines(file, PAIR_LINE, PAIR, HINT))
        tested |= dict.fromkeys((f"image/{path}" for pair in pairs for path in pair), "test")
    file = base / f"{VERIFICATION}_train.txt"
    train = dict.fromkeys((f"image/{found[1]}" for _, found in _read_lines(file, PATH_LINE, PATH, HINT)), "train")
    both = [path for path in train if path in tested]
    if both:
        log.warning(
            "compcars: %s of the %s photos of %s also occur in the pair lists; used for testing only (first: %s)",
            f"{len(both):,}", f"{len(train):,}", file, both[0],
        )  # fmt: skip
    return pd.Series(train | tested, dtype=object)


def require_listed(base: Path, listed: pd.Series, paths: list[str], allow_missing: bool, tolerated: int) -> None:
    """Raise InputError, or warn, if photos of the official lists are not among `paths`, those that exist. listed: split
    by path. tolerated: how many may be absent."""
    absent = listed.index.difference(pd.Index(paths))
    if len(absent):
        text = f"compcars: {len(absent):,} photos of the official lists are not there (first: {base / absent[0]})"
        warn_of_incomplete(text, allow_missing or len(absent) <= tolerated)


def _read_names(file: Path, *keys: str) -> list[dict[str, str]]:
    """Return the names by id of each cell array in a file; without the file empty dicts, so that ids are shown."""
    if not file.is_file():
        log.warning("compcars: %s does not exist; ids are shown instead of its names", file)
        return [{} for _ in keys]
    return [names_by_id(cells) for cells in read_mat(file, *keys)]


def names_by_id(cells: np.ndarray) -> dict[str, str]:
    """Return the names in a Matlab cell array by their 1-based indices, as text."""
    return {str(i): name for i, name in enumerate(cell_texts(cells), start=1)}


def _read_attributes(base: Path, models: pd.Series) -> dict[str, tuple[np.ndarray, Classes | Number]]:
    """Return {label: (values, one per item of `models`; classes or unit)} for the attributes in misc/.

    Values are float32 (NaN where unknown) for Numbers and int32 codes for Classes. models: ids, str.
    """
    file = base / "misc" / "attributes.txt"
    if not file.is_file():
        log.warning("compcars: %s does not exist; continuing without speed, displacement, doors, seats, type", file)
        return {}
    lines = [line.split() for line in read_text(file).splitlines()[1:] if line.strip()]
    try:
        values = np.array(lines, dtype=np.float64).reshape(len(lines), 6)
    except ValueError:
        raise InputError(f"{file} is not a header and then lines of six numbers; get it again") from None
    names = ["speed", "displacement", "doors", "seats", "type"]
    table = pd.DataFrame(values[:, 1:], index=values[:, 0].astype(int).astype(str), columns=names)
    of_row = table[~table.index.duplicated()].reindex(models).fillna(0)
    (types,) = _read_names(base / "misc" / "car_type.mat", "types")
    found: dict[str, tuple[np.ndarray, Classes | Number]] = {}
    for name, unit in (("speed", "km/h"), ("displacement", "l")):
        found[name] = of_row[name].where(of_row[name] > 0).to_numpy(np.float32), Number(unit)
    for name in ("doors", "seats", "type"):
        whole = of_row[name].astype(int)
        found[name] = encode(whole.astype(str).where(whole > 0, ""), types if name == "type" else None)
    return found


def _read_label_files(base: Path, paths: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return viewpoint ids ("" where unknown) and boxes of the photos.

    Boxes: float32 (photos, 4), 0-based with right and bottom excluded; NaN where the label file can't be read.
    """
    prefix = f"{base}/label/"
    files = [prefix + path[len("image/") : path.rindex(".")] + ".txt" for path in paths]
    chunks = [files[i : i + 1000] for i in range(0, len(files), 1000)]
    with ThreadPoolExecutor(NUM_READ_THREADS) as pool:
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
    return viewpoints, numbers[:, 2:] - np.array([1, 1, 0, 0], np.float32)


def _read_small_files(files: list[str]) -> list[bytes]:
    """Return the content of each file, b"" where it can't be read."""
    contents = [b""] * len(files)
    for i, file in enumerate(files):
        with suppress(OSError), open(file, "rb", buffering=0) as opened:  # noqa: PTH123  faster than a Path's
            contents[i] = opened.read(4096)
    return contents
