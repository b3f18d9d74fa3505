"""Stanford Cars (Krause et al., 2013): 196 models of 49 makes, 8,144 training and 8,041 test photos.

There are three layouts:
1. the original: cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat (class_names) and
   devkit/cars_{train,test}_annos.mat (struct array: bbox_x1, bbox_y1, bbox_x2, bbox_y2, class, fname; the boxes and
   classes 1-based; the test file lacks the class). cars_test_annos_withlabels.mat, beside the photos or in devkit,
   is the test file with classes;
2. Kaggle: car_data/car_data/{train,test}/<class name>/*.jpg, or {train,test}/ directly, with anno_train.csv and
   anno_test.csv (file, x1, y1, x2, y2, class) and names.csv, all with a header or all without;
3. mirrors of those class folders without any CSV, therefore without boxes and class numbers.
"""

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.disk import cell_texts, existing_root, read_mat, read_text, sub_folders
from carvision.data.readers.folder import read_folder
from carvision.data.table import BOX, Table, check_counts, encode, validate, with_parent, without_missing_files
from carvision.errors import InputError

log = logging.getLogger(__name__)

KNOWN = {"train": 8_144, "test": 8_041, "make": 49, "model": 196}
TOLERATED_IN_FOLDERS = 10  # photos by which mirrors without lists may differ; each class has more in either split
MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")
WITH_SLASH = "Ram C/V Cargo Van Minivan 2012"  # the one name that can't be a folder's: mirrors write C-V or CV
NAMES_HEADER = ["class_id", "class_name"]
ANNO_HEADER = ["image_name", "x_min", "y_min", "x_max", "y_max", "label"]
HINT = (
    "Stanford Cars is no longer given out by its authors; get a Kaggle mirror and lay it out as "
    "<data.root>/cars_train/*.jpg, cars_test/*.jpg and devkit/*.mat (with cars_test_annos_withlabels.mat for the test "
    "labels), or as <data.root>/car_data/car_data/{train,test}/<class>/*.jpg with anno_train.csv, anno_test.csv and "
    "names.csv in <data.root>, or as <data.root>/{train,test}/<class>/*.jpg"
)


def read_stanford_cars(
    root: Path | str | None, *, allow_missing: bool = False, known: Mapping[str, int] | None = KNOWN
) -> Table:
    """Read labels make and model (finest, parent make). A model is make, model, body and year: "Audi S4 Sedan 2012".

    The ids of the models are "1" to "196" if an annotation file numbers them, else their names. Test photos without
    labels are left out with a warning. known: the counts to assert, None for data in this layout that is not Stanford
    Cars itself.
    """
    root = existing_root(root, HINT)
    prefix = next((f for f in ("", "car_data/", "car_data/car_data/") if (root / f / "train").is_dir()), None)
    annotated = True
    if _mat(root, "cars_train_annos.mat"):
        table = _from_mats(root)
    elif prefix is not None and (root / "anno_train.csv").is_file() and (root / "names.csv").is_file():
        table = _from_csvs(root, prefix)
    elif prefix is not None:
        table, annotated = _from_folders(root / prefix, allow_missing), False
    else:
        raise InputError(f"data.root: {root} has no devkit/cars_train_annos.mat and no folder train. {HINT}")
    expected = dict(known or {})
    if annotated and not (table.rows["split"] == "test").any():
        log.warning(
            "stanford_cars: the test photos have no labels and are left out; cars_test_annos_withlabels.mat in %s "
            "or devkit brings them (anno_test.csv where the training labels are in anno_train.csv)", root
        )  # fmt: skip
        expected.pop("test", None)
    table = check_counts(table, expected, allow_missing, 0 if annotated else TOLERATED_IN_FOLDERS)
    return validate(without_missing_files(table, allow_missing))


def _mat(root: Path, name: str) -> Path | None:
    return next((file for file in (root / "devkit" / name, root / name) if file.is_file()), None)


def _from_mats(root: Path) -> Table:
    (cells,) = read_mat(_mat(root, "cars_meta.mat") or root / "devkit" / "cars_meta.mat", "class_names")
    names = {str(i): name for i, name in enumerate(cell_texts(cells), start=1)}
    parts = []
    for split, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        if (mat := _mat(root, file)) is None:
            continue
        rows = _read_annotations(mat)
        _require_names(mat, rows["model"], names)
        # Kaggle's copy of the original photos has each folder in a folder of the same name.
        folder = f"cars_{split}/cars_{split}" if (root / f"cars_{split}/cars_{split}").is_dir() else f"cars_{split}"
        rows["path"], rows["split"] = folder + "/" + rows["path"], split
        parts.append(rows)
    return _table(root, pd.concat(parts, ignore_index=True), names)


def _read_annotations(file: Path) -> pd.DataFrame:
    """Return path (the file's name), model (id) and the 1-based box of each photo."""
    (cells,) = read_mat(file, "annotations")
    fields = {"path": "fname", "model": "class"}
    fields |= zip(BOX, ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"], strict=True)
    missing = set(fields.values()) - set(cells.dtype.names or ())
    if missing:
        raise InputError(f"{file}: its annotations have no field {min(missing)!r}; get it again")
    rows = pd.DataFrame({name: [cell.item() for cell in cells[f].ravel()] for name, f in fields.items()})
    return rows.astype({"path": str, "model": str})


def _from_csvs(root: Path, prefix: str) -> Table:
    lines = _csv_lines(root / "names.csv", NAMES_HEADER, {1, 2})
    # With the header a line is "1,AM General Hummer SUV 2000", without it only the name.
    names = {line[0] if len(line) == 2 else str(i): line[-1].strip() for i, line in enumerate(lines, start=1)}
    parts = []
    for split in ("train", "test"):
        file, folder = root / f"anno_{split}.csv", root / prefix / split
        if split == "test" and not file.is_file():
            continue
        rows = pd.DataFrame(_csv_lines(file, ANNO_HEADER, {6}), columns=["path", *BOX, "model"], dtype=str)
        try:
            rows[BOX] = rows[BOX].astype(np.float32)
        except ValueError as error:
            raise InputError(f"{file}: {error}; its lines are {','.join(ANNO_HEADER)}") from error
        on_disk = {_key(name): name for name in (sub_folders(folder) if folder.is_dir() else [])}
        class_folders = {i: on_disk.get(_key(name), name.replace("/", "-")) for i, name in names.items()}
        _require_names(file, rows["model"], names)
        rows["path"] = f"{prefix}{split}/" + rows["model"].map(class_folders) + "/" + rows["path"]
        rows["split"] = split
        parts.append(rows)
    return _table(root, pd.concat(parts, ignore_index=True), names)


def _csv_lines(file: Path, header: list[str], widths: set[int]) -> list[list[str]]:
    """Return the fields of the lines below `header`, which may be absent. All have the same number, one of `widths`."""
    lines = [line for line in csv.reader(read_text(file).splitlines()) if line]
    lines = lines[1:] if lines[:1] == [header] else lines
    found = {len(line) for line in lines}
    if len(found) != 1 or not found <= widths:
        raise InputError(f"{file}: its lines are not all {','.join(header)}; get it again")
    return lines


def _from_folders(folder: Path, allow_missing: bool) -> Table:
    table = read_folder(folder, allow_missing=allow_missing)
    names = [WITH_SLASH if _key(name) == _key(WITH_SLASH) else name for name in table.class_labels["class"].names]
    rows = table.rows.assign(model=np.array(names, dtype=object)[table.rows["class"]]).drop(columns="class")
    return _table(folder, rows, {name: name for name in names})


def _require_names(file: Path, ids: pd.Series, names: Mapping[str, str]) -> None:
    strange = ids[~ids.isin(list(names))]
    if len(strange):
        raise InputError(f"{file}: class {strange.iloc[0]} has no name; there are names for 1 to {len(names)}")


def _table(root: Path, rows: pd.DataFrame, names: Mapping[str, str]) -> Table:
    """Build the Table. rows: path, split, model (id), and the 1-based box if there are boxes."""
    rows["model"], models = encode(rows["model"], names)
    rows["make"], makes = encode(np.array([make_of(name) for name in models.names], dtype=object)[rows["model"]])
    models = with_parent(rows, "model", models, "make")
    if BOX[0] in rows:  # they become 0-based, with right and bottom excluded
        rows[BOX] = rows[BOX].to_numpy(np.float32) - np.array([1, 1, 0, 0], np.float32)
    return Table("stanford_cars", root, rows, {"make": makes, "model": models}, "model")


def make_of(name: str) -> str:
    """Return the make in the name of a class: its first word, except for the makes of two words."""
    return next((make for make in MAKES_OF_TWO_WORDS if name.startswith(make + " ")), name.split()[0])


def _key(name: str) -> str:
    """Return a name's letters and digits, which identify a folder although its name lacks the slash."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
