"""CompCars' other photos: surveillance photos, and photos of parts of cars. See also compcars.py.

Surveillance photos, in data.root or in sv_data below it, data/ or data/data/:
    image/<model, 1 to 281>/<14 hex digits>.jpg
    train_surveillance.txt, test_surveillance.txt       lines like 1/431e8997607115.jpg
    sv_make_model_name.mat             one cell (281, 3): make, model, and the model's id among the web-nature photos
Parts, in data.root, data/ or data/data/:
    part/<make id>/<model id>/<year or "unknown">/<part, 1 to 8>/<14 hex digits>.jpg
    train_test_split/part/{train,test}_part_<part>.txt      a photo per line, see PART_LINE
    misc/make_model_name.mat           as for web-nature photos
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.compcars import (
    SOURCE,
    TOLERATED,
    find_base,
    labels_of_folders,
    names_by_id,
    read_split_lists,
    require_listed,
    walk_photos,
)
from carvision.data.readers.disk import read_mat
from carvision.data.table import Table, check_counts, encode, validate, with_parent, without_missing_files
from carvision.errors import InputError

log = logging.getLogger(__name__)

KNOWN_SURVEILLANCE = {"train": 31_148, "test": 13_333, "make": 68, "model": 281}
KNOWN_PARTS = {"photos": 27_618, "part": 8}
SURVEILLANCE_NAMES = "sv_make_model_name.mat"
PARTS = {
    "1": "headlight", "2": "taillight", "3": "fog_light", "4": "air_intake",
    "5": "console", "6": "steering_wheel", "7": "dashboard", "8": "gear_lever",
}  # fmt: skip
# make/model/year/<part>/photo.jpg. The folder "part" may precede it, and the number of the part, which is also in the
# name of the list, may be left out.
PART_LINE = r"(?:part/)?(\d+/\d+/[^/\s]+)/(?:{part}/)?([^/\s]+)"
SURVEILLANCE_LINE = re.compile(r"(\d+/[^/\s]+)")
PARTS_HINT = (
    f"{SOURCE} it so that <data.root>/data/part/<make>/<model>/<year>/<part>/*.jpg exists, with misc and "
    "train_test_split beside part"
)
SURVEILLANCE_HINT = (
    f"{SOURCE} its sv_data so that <data.root>/sv_data/image/<model>/*.jpg exists, with train_surveillance.txt, "
    f"test_surveillance.txt and {SURVEILLANCE_NAMES} beside image"
)


def read_compcars_surveillance(
    root: Path | str | None, *, allow_missing: bool = False, known: Mapping[str, int] | None = KNOWN_SURVEILLANCE
) -> Table:
    """Read the surveillance photos: 281 models seen from the front by cameras above roads.

    Labels make and model (finest, parent make). These models have numbers of their own, and makes have none: both are
    matched by name. Without the table of names, only the model, shown by its id. The photos are those of the two lists,
    which are the split; image/ is never walked. known: the counts to assert, None for data in this layout that is not
    CompCars itself.
    """
    base = find_base(root, "train_surveillance.txt", SURVEILLANCE_HINT, below=("sv_data",))
    files = {split: base / f"{split}_surveillance.txt" for split in ("train", "test")}
    listed = read_split_lists(files, SURVEILLANCE_LINE, "model/photo.jpg", SURVEILLANCE_HINT)
    rows = pd.DataFrame({"path": [f"image/{path}" for path in listed], "split": list(listed.values())}, dtype=str)
    ids = [path.partition("/")[0] for path in listed]
    makes, models = _read_surveillance_names(base)
    rows["model"], classes = encode(ids, {i: _full_name(makes[i], models[i]) for i in models})
    labels = {"model": classes}
    if models:
        if unnamed := [i for i in classes.ids if not (makes.get(i) and models.get(i))]:
            file = base / SURVEILLANCE_NAMES
            raise InputError(f"{file} has no make and model for {unnamed[0]}, which the lists have; get it again")
        rows["make"], labels["make"] = encode([makes[i] for i in ids])
        labels["model"] = with_parent(rows, "model", classes, "make")
    table = check_counts(Table("compcars_surveillance", base, rows, labels, "model"), known, allow_missing)
    return validate(without_missing_files(table, allow_missing))


def _read_surveillance_names(base: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return makes and models by the model's id; without the file two empty dicts, so that ids are shown."""
    file = base / SURVEILLANCE_NAMES
    if not file.is_file():
        log.warning("compcars_surveillance: %s does not exist; models are shown by their ids, without makes", file)
        return {}, {}
    (cells,) = read_mat(file, "sv_make_model_name")
    if cells.ndim != 2 or cells.shape[1] < 2:
        raise InputError(f"{file}: its cell has the shape {cells.shape}, not (281, 3); get it again")
    return names_by_id(cells[:, 0]), names_by_id(cells[:, 1])


def _full_name(make: str, model: str) -> str:
    """Return "Ford Kuga" for Ford and Kuga, and "Audi Q5" for Audi and Audi Q5."""
    return model if model.casefold().startswith(make.casefold()) else f"{make} {model}"


def read_compcars_parts(
    root: Path | str | None,
    part: int | str = "all",
    *,
    allow_missing: bool = False,
    known: Mapping[str, int] | None = KNOWN_PARTS,
) -> Table:
    """Read the photos of parts: headlights, dashboards, ...

    Labels make, model (finest, parent make) and part. The official lists give their photos a split, others have "".
    group is make/model/year as for whole cars; "" where the year is unknown.

    part: a number or a name of PARTS, or "all". known: the counts of all parts to assert, None for data in this layout
    that is not CompCars itself.
    """
    base = find_base(root, "part", PARTS_HINT)
    pattern, form = r"part/\d+/\d+/[^/]+/[1-8]/[^/]+", "part/make/model/year/<1 to 8>/"
    paths = walk_photos(base, "part", pattern, form, "compcars_parts")
    listed = _read_part_lists(base)
    if not paths:
        raise InputError(f"data.root: {base / 'part'} holds no photos. {PARTS_HINT}")
    table = check_counts(_table_of_parts(base, paths, listed), known, allow_missing, TOLERATED)
    require_listed(base, listed, paths, allow_missing, TOLERATED if known else 0)
    if part != "all":
        names = np.array(table.class_labels["part"].names)
        table = table.select(names[table.rows["part"]] == PARTS.get(str(part), part)).without_empty_classes()
    return validate(table)


def _read_part_lists(base: Path) -> pd.Series:
    """Return the official split ("train" or "test") by path."""
    splits, absent = {}, []
    for part in PARTS:
        files = {split: base / "train_test_split" / "part" / f"{split}_part_{part}.txt" for split in ("train", "test")}
        absent += [file for file in files.values() if not file.is_file()]
        existing = {split: file for split, file in files.items() if file.is_file()}
        pattern, form = re.compile(PART_LINE.format(part=part)), f"make/model/year/{part}/photo.jpg"
        for path, split in read_split_lists(existing, pattern, form, PARTS_HINT).items():
            folder, _, photo = path.rpartition("/")
            splits[f"part/{folder}/{part}/{photo}"] = split
    if absent:
        log.warning(
            "compcars_parts: %d lists do not exist (first: %s); their photos are in no official split",
            len(absent), absent[0],
        )  # fmt: skip
    return pd.Series(splits, dtype=object)


def _table_of_parts(base: Path, paths: list[str], listed: pd.Series) -> Table:
    rows = pd.DataFrame({"path": paths, "split": listed.reindex(paths).fillna("").to_numpy(object)}, dtype=str)
    folders = pd.DataFrame([path.split("/")[1:5] for path in paths], columns=["make", "model", "year", "part"])
    of_folder, labels = labels_of_folders(base, folders)
    of_folder["part"], labels["part"] = encode(folders["part"], PARTS)
    return Table("compcars_parts", base, rows.join(of_folder), labels, "model")
