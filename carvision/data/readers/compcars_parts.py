"""CompCars, photos of parts of cars: headlights, dashboards, ... Linjie Yang et al., CVPR 2015.

On disk, below data.root, data.root/data or data.root/data/data:
    part/<make id>/<model id>/<year or "unknown">/<part, 1 to 8>/<14 hex digits>.jpg
    train_test_split/part/{train,test}_part_<part>.txt      a photo a line, see LINE
    misc/make_model_name.mat                                see carvision.data.readers.compcars
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.compcars import A_FEW, check_absent, read_names
from carvision.data.readers.compcars_surveillance import read_lists
from carvision.data.readers.disk import existing_root, find_photos
from carvision.data.table import Table, check_counts, encode, validate, with_parent
from carvision.errors import InputError, nearest

log = logging.getLogger(__name__)

PARTS = {
    "1": "headlight", "2": "taillight", "3": "fog_light", "4": "air_intake",
    "5": "console", "6": "steering_wheel", "7": "dashboard", "8": "gear_lever",
}  # fmt: skip
KNOWN = {"photos": 27_618, "part": 8}
# make/model/year/<part>/photo.jpg. The folder part may stand before it, and the number of the part, which the list has
# in its own name, may be left out.
LINE = r"(?:part/)?(\d+/\d+/[^/\s]+)/(?:{part}/)?([^/\s]+)"
WHERE = (
    "CompCars is given out by its authors on request (form on mmlab.ie.cuhk.edu.hk/datasets/comp_cars); unpack it so "
    "that <data.root>/data/part/<make>/<model>/<year>/<part>/*.jpg exists, with misc and train_test_split beside part"
)


def read_compcars_parts(
    root: Path | str | None,
    part: int | str = "all",
    *,
    allow_missing: bool = False,
    known: Mapping[str, int] | None = KNOWN,
) -> Table:
    """Labels make, model (finest, parent make) and part. The official lists give their photos a split, others have "".

    part: a number or a name of PARTS, or "all". known: the counts of all parts to assert, None for data in this layout
    that is not CompCars itself. group is make/model/year as of the whole cars; "" where the year is unknown.
    """
    name = PARTS.get(str(part), part)
    if name not in ("all", *PARTS.values()):
        raise InputError(
            f"data.part: {part!r} is not one of all, {', '.join(PARTS.values())}, or 1 to 8"
            f"{nearest(str(part), PARTS.values())}"
        )
    base = _base(existing_root(root, WHERE))
    paths, listed = _walk(base), _read_lists(base)
    if not paths:
        raise InputError(f"data.root: {base / 'part'} holds no photos. {WHERE}")
    table = check_counts(_table(base, paths, listed), known or {}, allow_missing, A_FEW)
    check_absent(base, listed.index.difference(paths), allow_missing, A_FEW if known else 0)
    if name != "all":
        names = np.array(table.class_labels["part"].names)
        table = table.select(names[table.rows["part"]] == name).without_empty_classes()
    return validate(table)


def _base(root: Path) -> Path:
    for base in (root, root / "data", root / "data" / "data"):
        if (base / "part").is_dir():
            return base
    raise InputError(f"data.root: neither {root} nor data or data/data in it has a folder part. {WHERE}")


def _walk(base: Path) -> list[str]:
    right = re.compile(r"part/\d+/\d+/[^/]+/[1-8]/[^/]+")
    found = find_photos(base, "part")
    paths = [path for path in found if right.fullmatch(path)]
    if len(paths) < len(found):
        odd = next(path for path in found if not right.fullmatch(path))
        log.warning(
            "compcars_parts: %s photos are not at part/make/model/year/<1 to 8>/ and are left out (first: %s)",
            f"{len(found) - len(paths):,}", odd,
        )  # fmt: skip
    return paths


def _read_lists(base: Path) -> pd.Series:
    """path -> "train" or "test"."""
    splits, absent = {}, []
    for part in PARTS:
        files = {split: base / "train_test_split" / "part" / f"{split}_part_{part}.txt" for split in ("train", "test")}
        absent += [file for file in files.values() if not file.is_file()]
        there = {split: file for split, file in files.items() if file.is_file()}
        listed = read_lists(there, re.compile(LINE.format(part=part)), f"make/model/year/{part}/photo.jpg")
        for path, split in listed.items():
            folder, _, photo = path.rpartition("/")
            splits[f"part/{folder}/{part}/{photo}"] = split
    if absent:
        log.warning(
            "compcars_parts: %d lists do not exist (first: %s); their photos are in no official split",
            len(absent), absent[0],
        )  # fmt: skip
    return pd.Series(splits, dtype=object)


def _table(base: Path, paths: list[str], listed: pd.Series) -> Table:
    rows = pd.DataFrame({"path": paths, "split": listed.reindex(paths).fillna("").to_numpy(object)}, dtype=str)
    folders = pd.DataFrame([path.split("/")[1:5] for path in paths], columns=["make", "model", "year", "part"])
    names = dict(zip(("make", "model"), read_names(base), strict=True), part=PARTS)
    labels = {}
    for name, of_ids in names.items():
        rows[name], labels[name] = encode(folders[name], of_ids)
    labels["model"] = with_parent(rows, "model", labels["model"], "make")
    rows["group"] = np.where(
        folders["year"] == "unknown", "", folders["make"] + "/" + folders["model"] + "/" + folders["year"]
    )
    return Table("compcars_parts", base, rows, labels, "model")
