"""Read class folders: one folder per class, with or without train/, val/ and test/ above."""

import logging
import os
from pathlib import Path

import pandas as pd

from carvision.data.paths import nfc, text_of_path
from carvision.data.readers.disk import existing_root, find_photos, sub_folders
from carvision.data.readers.table_file import SPLIT_WORDS
from carvision.data.readers.walk import LeftOut, is_folder, is_photo, walk
from carvision.data.table import Table, encode, validate, warn_of_incomplete
from carvision.errors import InputError

log = logging.getLogger(__name__)

HINT = (
    "Lay the photos out as <data.root>/<class>/*.jpg, or as <data.root>/train/<class>/*.jpg beside "
    "val/<class>/ and test/<class>/ (each of these two is optional)"
)


def read_folder(root: Path | str | None, *, allow_missing: bool = False) -> Table:
    """Read the label "class", whose ids and names are those of the folders; split "" where there is no train/.

    The val folder may be called val, valid or validation; case does not matter. Photos are known by their extension,
    and may lie in folders inside a class folder. Raises InputError for a class folder without photos and for a class of
    val or test that train lacks; with allow_missing both are left out with a warning.
    """
    root = existing_root(root, HINT)
    tops = _split_folders(root)
    depth = 2 if tops else 1  # folders above a photo, down to its class
    left_out = LeftOut()
    photos, strays = [], []
    for path in find_photos(root, *tops, left_out=left_out):
        parts = path.split("/", depth)
        photos.append((path, *parts[:depth])) if len(parts) > depth else strays.append(path)
    if not photos:
        also = f" ({line})" if (line := left_out.line()) else ""
        raise InputError(f"data.root: no folder in {root} holds photos{also}. {HINT}")
    if strays:
        log.warning("folder: %d photos are in no class folder and are left out (first: %s)", len(strays), strays[0])
    rows = pd.DataFrame(photos, columns=["path", "top", "class"] if tops else ["path", "class"], dtype=str)
    _require_one_link_to_each(root, depth, left_out)
    _require_photos_in_each(root, tops, {"/".join(photo[1:]) for photo in photos}, left_out, allow_missing)
    rows["split"] = rows.pop("top").map({text_of_path(top): split for top, split in tops.items()}) if tops else ""
    rows = _known_to_train(root, rows, allow_missing) if tops else rows
    rows["class"], classes = encode(rows["class"])
    return validate(Table("folder", root, rows, {"class": classes}, "class"))


def _split_folders(root: Path) -> dict[str, str]:
    """Return {folder: split} if there are folders of splits with class folders in them; {} if the folders in `root` are
    the classes, one of which may be called train, val or test. Raises InputError if it is not clear which."""
    names = sub_folders(root)
    tops = {name: split for name in names if (split := SPLIT_WORDS.get(name.lower()))}
    if not tops:
        return {}
    rest = [name for name in names if name not in tops]
    with_classes = [top for top in tops if any(_has_photos(root / top / name) for name in sub_folders(root / top))]
    flat = [top for top in tops if _has_photos(root / top, below=False)]
    classes = [name for name in rest if _has_photos(root / name, below=False)]
    if not with_classes:
        if flat and not classes and not any(_has_photos(root / name) for name in rest):
            raise InputError(f"data.root: {flat[0]} in {root} holds photos without a class folder. {HINT}")
        return {} if flat or (classes and not any(sub_folders(root / top) for top in tops)) else tops
    # Otherwise stray photos of a split, and folders beside the splits, are left out with a warning.
    odd = [top for top in with_classes if classes and (top in flat or (len(tops) == 1 and len(classes) > 1))]
    if odd:
        raise InputError(
            f"data.root: {odd[0]} in {root} holds folders with photos, as a split does, and stands beside "
            f"{', '.join(classes[:3])}, with photos directly inside, as classes have: rename {odd[0]} if it is a "
            "class; if it is the split, move the others elsewhere, and its own photos into class folders"
        )
    if "train" not in tops.values():
        raise InputError(f"data.root: {root} has {', '.join(tops)} but no folder train. {HINT}")
    if rest:
        log.warning("folder: %s beside %s in %s left out", ", ".join(rest), ", ".join(tops), root)
    return tops


def _has_photos(folder: Path, below: bool = True) -> bool:
    """Check whether there is a photo in the folder or, with `below`, anywhere under it."""
    if below:
        return next(walk(os.fspath(folder), LeftOut()), None) is not None
    with os.scandir(folder) as entries:
        return any(is_photo(entry.name) and not is_folder(entry) for entry in entries)


def _require_one_link_to_each(root: Path, depth: int, left_out: LeftOut) -> None:
    """Raise InputError if two class folders are links to one folder, whose photos can't be of both classes."""
    for name, other_name in left_out.links.items():
        link, other = Path(name), Path(other_name)
        if len(link.relative_to(root).parts) == depth and link.parent == other.parent and other.is_symlink():
            raise InputError(
                f"folder: {text_of_path(str(link))} and {text_of_path(str(other))} are links to the same folder "
                f"({os.path.realpath(link)}), and its photos can be of one class only; remove one of the links"
            )


def _require_photos_in_each(
    root: Path, tops: dict[str, str], filled: set[str], left_out: LeftOut, allow_missing: bool
) -> None:
    """Raise InputError, or with allow_missing warn, if a class folder holds no photo or is a dangling link.

    filled: class folders with photos. A link to a folder that is read elsewhere is no class folder.
    """
    links = {os.path.relpath(link, root) for link in left_out.links}
    prefixes = [f"{top}/" for top in tops if top not in links] if tops else [""]
    folders = [prefix + name for prefix in prefixes for name in sub_folders(root / prefix)]
    folders = [folder for folder in folders if os.path.normpath(folder) not in links]
    depth = 2 if tops else 1
    dangling = [os.path.relpath(link, root) for link in left_out.dangling]
    folders += [link for link in dangling if len(Path(link).parts) == depth]
    empty = [text for folder in folders if (text := text_of_path(folder)) not in filled]
    if empty:
        text = f"folder: {len(empty)} class folders in {root} hold no photos, or are dangling links (first: {empty[0]})"
        text += f"; {left_out.line()}" if left_out.heic else ""
        warn_of_incomplete(text, allow_missing, "Fill them, or leave them out")


def _known_to_train(root: Path, rows: pd.DataFrame, allow_missing: bool) -> pd.DataFrame:
    """Return the rows whose class has photos in train: a class only in val or test can't be learned."""
    names = rows["class"].map(nfc)
    known = names.isin(names[rows["split"] == "train"])
    if known.all():
        return rows
    strange = sorted(set(rows.loc[~known, "class"]))
    first = rows.loc[~known, "path"].iloc[0]
    text = f"folder: {len(strange)} classes of val or test in {root} are not in train (first: {strange[0]}, {first})"
    warn_of_incomplete(text, allow_missing, "Add them to train, or leave them out")
    log.warning("folder: their %d photos are left out", (~known).sum())
    return rows[known].reset_index(drop=True)
