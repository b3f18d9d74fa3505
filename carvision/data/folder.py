"""Class folders: one folder a class, with or without train/, val/ and test/ above."""

import logging
from pathlib import Path

import pandas as pd

from carvision.data.disk import existing_root, find_photos, sub_folders
from carvision.data.table import Table, encode, validate
from carvision.errors import InputError

log = logging.getLogger(__name__)

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
WHERE = (
    "Lay the photos out as <data.root>/<class>/*.jpg, or as <data.root>/train/<class>/*.jpg beside "
    "val/<class>/ and test/<class>/ (each of these two is optional)"
)


def read_folder(root: Path | str | None, *, allow_missing: bool = False) -> Table:
    """Label "class", its ids and names being the names of the folders; split "" where there is no train/.

    The val folder may be called val, valid or validation; case does not matter. Photos count by extension,
    those in folders inside a class folder too. Raises InputError for a class folder without photos and for a
    class of val or test that train lacks; with allow_missing both are left out with a warning.
    """
    root = existing_root(root, WHERE)
    tops = {top: split for top in sub_folders(root) if (split := SPLIT_FOLDERS.get(top.lower()))}
    if tops and "train" not in tops.values():
        raise InputError(f"data.root: {root} has {', '.join(tops)} but no folder train. {WHERE}")
    depth = 2 if tops else 1  # folders above a photo, down to its class
    photos, strays = [], []
    for path in _photos_of_splits(root, tops) if tops else find_photos(root):
        parts = path.split("/", depth)
        photos.append((path, *parts[:depth])) if len(parts) > depth else strays.append(path)
    if not photos:
        raise InputError(f"data.root: no folder in {root} holds photos. {WHERE}")
    if strays:
        log.warning("folder: %d photos are in no class folder and are left out (first: %s)", len(strays), strays[0])
    rows = pd.DataFrame(photos, columns=["path", "top", "class"] if tops else ["path", "class"], dtype=str)
    _require_photos_in_each(root, tops, {"/".join(photo[1:]) for photo in photos}, allow_missing)
    rows["split"] = rows.pop("top").map(tops) if tops else ""
    rows = _known_to_train(root, rows, allow_missing) if tops else rows
    rows["class"], classes = encode(rows["class"])
    return validate(Table("folder", root, rows, {"class": classes}, "class"))


def _photos_of_splits(root: Path, tops: dict[str, str]) -> list[str]:
    rest = [top for top in sub_folders(root) if top not in tops]
    if rest:
        log.warning("folder: %s beside %s in %s left out", ", ".join(rest), ", ".join(tops), root)
    return [path for top in tops for path in find_photos(root, top)]


def _require_photos_in_each(root: Path, tops: dict[str, str], filled: set[str], allow_missing: bool) -> None:
    """An error, or with allow_missing a warning, where a class folder holds no photo."""
    prefixes = [f"{top}/" for top in tops] or [""]
    folders = [prefix + name for prefix in prefixes for name in sub_folders(root / prefix)]
    empty = [folder for folder in folders if folder not in filled]
    if not empty:
        return
    text = f"folder: {len(empty)} class folders in {root} hold no photos (first: {empty[0]})"
    if not allow_missing:
        raise InputError(f"{text}. Fill them, or leave them out with data.allow_missing=true")
    log.warning("%s and are left out", text)


def _known_to_train(root: Path, rows: pd.DataFrame, allow_missing: bool) -> pd.DataFrame:
    """The rows whose class has photos in train: a class met only in val or test can't be learned."""
    known = rows["class"].isin(rows.loc[rows["split"] == "train", "class"])
    if known.all():
        return rows
    strange = sorted(set(rows.loc[~known, "class"]))
    first = rows.loc[~known, "path"].iloc[0]
    text = f"folder: {len(strange)} classes of val or test in {root} are not in train (first: {strange[0]}, {first})"
    if not allow_missing:
        raise InputError(f"{text}. Add them to train or leave them out with data.allow_missing=true")
    log.warning("%s; their %d photos are left out", text, (~known).sum())
    return rows[known].reset_index(drop=True)
