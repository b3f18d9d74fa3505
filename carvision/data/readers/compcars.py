"""CompCars (Linjie Yang et al., CVPR 2015): web-nature photos, surveillance photos, and photos of parts of cars.

On disk, below data.root, data.root/data or data.root/data/data:
    image/<make id>/<model id>/<year or "unknown">/<14 hex digits>.jpg
    label/<the same path>.txt          viewpoint; number of boxes (1); x1 y1 x2 y2 in 1-based pixels
    misc/attributes.txt                model_id maximum_speed displacement door_number seat_number type; 0 = unknown
    misc/car_type.mat                  types: 12 names, 1-based
    misc/make_model_name.mat           make_names, model_names: by 1-based id; some cells are empty, names repeat
    train_test_split/classification/{train,test}.txt    lines like 78/1/2014/3ac218c0c6c378.jpg
    train_test_split/verification/verification_train.txt                        the same
    train_test_split/verification/verification_pairs_{easy,medium,hard}.txt     path1 path2 label, 1 = same model
    part/<make id>/<model id>/<year or "unknown">/<part, 1 to 8>/<14 hex digits>.jpg
    train_test_split/part/{train,test}_part_<part>.txt      a photo per line, see PART_LINE
Surveillance photos, in data.root or in sv_data below it, data/ or data/data/:
    image/<model, 1 to 281>/<14 hex digits>.jpg
    train_surveillance.txt, test_surveillance.txt       lines like 1/431e8997607115.jpg
    sv_make_model_name.mat             one cell (281, 3): make, model, and the model's id among the web-nature photos
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.compcars_files import (
    HINT,
    SOURCE,
    SURVEILLANCE_NAMES,
    VERIFICATION,
    VIEWPOINTS,
    find_base,
    read_attributes,
    read_classification_lists,
    read_label_files,
    read_names,
    read_split_lists,
    read_surveillance_names,
    read_verification_lists,
    require_listed,
    walk_photos,
)
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
from carvision.errors import InputError, suggest

log = logging.getLogger(__name__)

KNOWN = {
    "all": {"photos": 136_726, "make": 163, "model": 1_716},
    "listed": {"train": 16_016, "test": 14_939, "make": 75, "model": 431},
    "parts_1_and_2": {"train": 16_016, "test": 14_939},
}
KNOWN_SURVEILLANCE = {"train": 31_148, "test": 13_333, "make": 68, "model": 281}
KNOWN_PARTS = {"photos": 27_618, "part": 8}
# The authors' lists name a few photos that no copy has, and copies differ by a few: one had 136,732. A lost model
# folder is larger than this, or a class less.
TOLERATED = 50
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
        listed = read_verification_lists(base)
    else:
        listed = read_classification_lists(base, required=photos != "all")
    if photos == "parts_1_and_2" and (base / f"{VERIFICATION}_train.txt").is_file():
        more = read_verification_lists(base)
        more = more[(more == "train") & ~more.index.isin(listed.index)]
        listed = pd.concat([listed, pd.Series("val", more.index, dtype=object)])
    if photos == "all":
        paths = walk_photos(base, "image", r"image(/[^/]+){4}", "image/make/model/year/", "compcars")
    else:
        paths = listed.index.tolist()
    table = _table_of_cars(base, paths, listed.reindex(paths).fillna(""), annotations)
    tolerated = TOLERATED if known else 0
    table = check_counts(table, known.get(photos, {}) if known else {}, allow_missing, tolerated)
    if photos != "all":
        table = without_missing_files(table, allow_missing, tolerated)
    else:
        require_listed(base, listed.index.difference(pd.Index(paths)), allow_missing, tolerated)
    return validate(table)


def _table_of_cars(base: Path, paths: list[str], split: pd.Series, annotations: bool) -> Table:
    if not paths:
        raise InputError(f"data.root: {base / 'image'} holds no photos. {HINT}")
    # What follows from the folder is found once per folder (about 4,500) and then spread over its photos
    of_photo, names = pd.factorize(np.array([path.rpartition("/")[0] for path in paths], dtype=object))
    folders = pd.DataFrame([name.split("/")[1:] for name in names], columns=["make", "model", "year"])
    of_folder, labels = _labels_of_folders(folders, read_names(base))
    for name, (values, label) in read_attributes(base, folders["model"]).items():
        of_folder[name], labels[name] = values, label
    rows = pd.DataFrame({"path": paths, "split": split.to_numpy(object)}, dtype=str)
    rows = rows.join(of_folder.take(of_photo).reset_index(drop=True))
    if annotations and (base / "label").is_dir():
        viewpoints, rows[BOX] = read_label_files(base, paths)
        rows["viewpoint"], labels["viewpoint"] = encode(viewpoints, VIEWPOINTS)
    elif annotations:
        log.warning("compcars: %s does not exist; continuing without viewpoints and boxes", base / "label")
    return Table("compcars", base, rows, labels, "model")


def _labels_of_folders(
    folders: pd.DataFrame, names: tuple[dict[str, str], dict[str, str]]
) -> tuple[pd.DataFrame, dict[str, Classes | Number]]:
    """Return the columns make, model and group, and the first two labels, of folders make/model/year."""
    make, makes = encode(folders["make"], names[0])
    model, models = encode(folders["model"], names[1])
    group = folders["make"] + "/" + folders["model"] + "/" + folders["year"]
    rows = pd.DataFrame({"make": make, "model": model, "group": group.where(folders["year"] != "unknown", "")})
    return rows, {"make": makes, "model": with_parent(rows, "model", models, "make")}


def read_compcars_surveillance(
    root: Path | str | None, *, allow_missing: bool = False, known: Mapping[str, int] | None = KNOWN_SURVEILLANCE
) -> Table:
    """Read the surveillance photos: 281 models seen from the front by cameras above roads.

    Labels make and model (finest, parent make). These models have numbers of their own, and makes have none: both are
    matched by name. Without the table of names, only the model, shown by its id. The photos are those of the two lists,
    which are the split; image/ is never walked. known: the counts to assert, None for data in this layout that is not
    CompCars itself.
    """
    base = find_base(root, "train_surveillance.txt", SURVEILLANCE_HINT, below=("sv_data", "."))
    files = {split: base / f"{split}_surveillance.txt" for split in ("train", "test")}
    listed = read_split_lists(files, SURVEILLANCE_LINE, "model/photo.jpg", SURVEILLANCE_HINT)
    if not listed:
        raise InputError(f"data.root: the lists in {base} name no photos. {SURVEILLANCE_HINT}")
    rows = pd.DataFrame({"path": [f"image/{path}" for path in listed], "split": list(listed.values())}, dtype=str)
    ids = [path.partition("/")[0] for path in listed]
    makes, models = read_surveillance_names(base)
    rows["model"], classes = encode(ids, {i: _full_name(makes[i], models[i]) for i in models})
    labels = {"model": classes}
    if models:
        if unnamed := [i for i in classes.ids if not (makes.get(i) and models.get(i))]:
            raise InputError(
                f"{base / SURVEILLANCE_NAMES} has no make and model for {unnamed[0]}, which the lists have; get it "
                "again"
            )
        rows["make"], labels["make"] = encode([makes[i] for i in ids])
        labels["model"] = with_parent(rows, "model", classes, "make")
    table = check_counts(Table("compcars_surveillance", base, rows, labels, "model"), known or {}, allow_missing)
    return validate(without_missing_files(table, allow_missing))


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
    name = PARTS.get(str(part), part)
    if name not in ("all", *PARTS.values()):
        raise InputError(
            f"data.part: {part!r} is not one of all, {', '.join(PARTS.values())}, or 1 to 8"
            f"{suggest(str(part), PARTS.values())}"
        )
    base = find_base(root, "part", PARTS_HINT)
    form = "part/make/model/year/<1 to 8>/"
    paths = walk_photos(base, "part", r"part/\d+/\d+/[^/]+/[1-8]/[^/]+", form, "compcars_parts")
    listed = _read_part_lists(base)
    if not paths:
        raise InputError(f"data.root: {base / 'part'} holds no photos. {PARTS_HINT}")
    table = check_counts(_table_of_parts(base, paths, listed), known or {}, allow_missing, TOLERATED)
    require_listed(base, listed.index.difference(pd.Index(paths)), allow_missing, TOLERATED if known else 0)
    if name != "all":
        names = np.array(table.class_labels["part"].names)
        table = table.select(names[table.rows["part"]] == name).without_empty_classes()
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
    of_folder, labels = _labels_of_folders(folders, read_names(base))
    of_folder["part"], labels["part"] = encode(folders["part"], PARTS)
    return Table("compcars_parts", base, rows.join(of_folder), labels, "model")
