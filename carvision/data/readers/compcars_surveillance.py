"""CompCars, surveillance photos: 281 models, seen from the front by cameras above roads. Linjie Yang et al., CVPR 2015.

On disk, in data.root or in sv_data below it, data/ or data/data/:
    image/<model, 1 to 281>/<14 hex digits>.jpg
    train_surveillance.txt, test_surveillance.txt       lines like 1/431e8997607115.jpg
    sv_make_model_name.mat        one cell (281, 3): make, model, and the model's id among the web-nature photos
These models are numbered on their own, and makes not at all: they are known by name.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.disk import cell_texts, existing_root, read_mat, read_text
from carvision.data.table import Table, check_counts, encode, validate, with_parent, without_missing_files
from carvision.errors import InputError

log = logging.getLogger(__name__)

KNOWN = {"train": 31_148, "test": 13_333, "make": 68, "model": 281}
NAMES = "sv_make_model_name.mat"
LINE = re.compile(r"(\d+/[^/\s]+)")
WHERE = (
    "CompCars is given out by its authors on request (form on mmlab.ie.cuhk.edu.hk/datasets/comp_cars); unpack its "
    "sv_data so that <data.root>/sv_data/image/<model>/*.jpg exists, with train_surveillance.txt, "
    f"test_surveillance.txt and {NAMES} beside image"
)


def read_compcars_surveillance(
    root: Path | str | None, *, allow_missing: bool = False, known: Mapping[str, int] | None = KNOWN
) -> Table:
    """Labels make and model (finest, parent make); without the table of names the model alone, shown by its id.

    The photos are those of the two lists, which are the split; image/ is never walked. known: the counts to assert,
    None for data in this layout that is not CompCars itself.
    """
    base = _base(existing_root(root, WHERE))
    listed = read_lists(
        {split: base / f"{split}_surveillance.txt" for split in ("train", "test")}, LINE, "model/photo.jpg"
    )
    if not listed:
        raise InputError(f"data.root: the lists in {base} name no photos. {WHERE}")
    rows = pd.DataFrame({"path": [f"image/{path}" for path in listed], "split": list(listed.values())}, dtype=str)
    ids = [path.partition("/")[0] for path in listed]
    makes, models = _read_names(base)
    rows["model"], classes = encode(ids, {i: _full_name(makes[i], models[i]) for i in models})
    labels = {"model": classes}
    if models:
        if unnamed := [i for i in classes.ids if not (makes.get(i) and models.get(i))]:
            raise InputError(
                f"{base / NAMES} has no make and model for {unnamed[0]}, which the lists have; get it again"
            )
        rows["make"], labels["make"] = encode([makes[i] for i in ids])
        labels["model"] = with_parent(rows, "model", classes, "make")
    table = check_counts(Table("compcars_surveillance", base, rows, labels, "model"), known or {}, allow_missing)
    return validate(without_missing_files(table, allow_missing))


def _base(root: Path) -> Path:
    above = (root, root / "data", root / "data" / "data")
    bases = [base for folder in above for base in (folder / "sv_data", folder)]
    for base in bases:
        if (base / "train_surveillance.txt").is_file():
            return base
    raise InputError(
        f"data.root: neither {root} nor sv_data in it (or in data, or in data/data) has train_surveillance.txt. {WHERE}"
    )


def read_lists(files: Mapping[str, Path], line: re.Pattern, form: str) -> dict[str, str]:
    """{path: split}, of text files {split: file} with a photo a line. Each line matches `line`, whose groups joined by
    "/" are the path; empty lines are left out. form: what a line looks like, for messages."""
    splits = {}
    for split, file in files.items():
        for number, text in enumerate(map(str.strip, read_text(file, WHERE).splitlines()), start=1):
            if not text:
                continue
            found = line.fullmatch(text)
            if not found:
                raise InputError(f"{file}, line {number}: {text!r} is not {form}")
            path = "/".join(found.groups())
            if path in splits:
                raise InputError(f"{file}, line {number}: {text} is listed before; list each photo once")
            splits[path] = split
    return splits


def _read_names(base: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Makes and models by the model's id; empty where the file is absent, so that ids are shown."""
    file = base / NAMES
    if not file.is_file():
        log.warning("compcars_surveillance: %s does not exist; models are shown by their ids, without makes", file)
        return {}, {}
    (cells,) = read_mat(file, "sv_make_model_name")
    if cells.ndim != 2 or cells.shape[1] < 2:
        raise InputError(f"{file}: its cell has the shape {cells.shape}, not (281, 3); get it again")
    numbers = np.arange(1, len(cells) + 1).astype(str).tolist()
    makes, models = (dict(zip(numbers, cell_texts(cells[:, column]), strict=True)) for column in (0, 1))
    return makes, models


def _full_name(make: str, model: str) -> str:
    """ "Ford Kuga", of Ford and Kuga; "Audi Q5", of Audi and Audi Q5."""
    return model if model.casefold().startswith(make.casefold()) else f"{make} {model}"
