"""splits.csv of a run: which photos it trained, validated and tested on."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.photo_paths import PhotoPaths, is_utf8, nfc, text_of_path
from carvision.data.table import BOX, Table
from carvision.data.table_file import TableFile
from carvision.errors import InputError
from carvision.whole_files import write_csv

KEY = "data.split.file"


def read_splits(file: Path) -> pd.Series:
    """Read path -> split of a run's splits.csv or another table. Raises InputError for a file that is none."""
    listed = TableFile(file, KEY, ["path", "split"], "give the splits.csv of a run")
    listed.require(["path", "split"])
    splits: dict[str, str] = {}
    for line, row in listed.rows(["path", "split"]):
        if row["path"] in splits:
            raise InputError(f"{KEY}: {file} lists {text_of_path(row['path'])} more than once")
        splits[row["path"]] = listed.split(row, line)
    kept = {path: split for path, split in splits.items() if split}
    return pd.Series(list(kept.values()), index=pd.Index(list(kept), dtype=object), dtype=object)


def splits_in(file: Path, table: Table) -> tuple[np.ndarray, list[str]]:
    """Find the split of each photo of the table, object (N,), "" where the file lists none; and the paths that the file
    lists and the table lacks. Raises InputError as read_splits does, and for a photo listed in two spellings."""
    listed = read_splits(file)
    rows = find_rows(table, listed.index)
    there = rows >= 0
    found, counts = np.unique(rows[there], return_counts=True)
    if (counts > 1).any():
        one, other = listed.index[rows == found[counts > 1][0]][:2]
        raise InputError(f"{KEY}: {file} lists one photo more than once, as {one} and as {other}; list it once")
    splits = np.full(len(table), "", dtype=object)
    splits[rows[there]] = listed.to_numpy()[there]
    return splits, [text_of_path(path) for path in listed.index[~there]]


def find_rows(table: Table, paths: Iterable[str]) -> np.ndarray:
    """Find the row of each photo, in whatever spelling of `PhotoPaths`, int64; -1 where the table has none."""
    paths = [path if is_utf8(path) else text_of_path(path) for path in paths]
    rows = pd.Index(table.rows["path"]).get_indexer(pd.Index(paths, dtype=str)).astype(np.int64)
    if (rows < 0).any():
        finder = PhotoPaths(table.root if table.shards is None else None)
        row_of = {nfc(path): row for row, path in enumerate(table.rows["path"])}
        for i in np.flatnonzero(rows < 0):
            spellings = (row_of.get(nfc(text)) for text in finder.spellings(paths[i]))
            rows[i] = next((row for row in spellings if row is not None), -1)
    return rows


def write_splits(table: Table, file: Path) -> None:
    """splits.csv, see splits_of."""
    write_csv(file, splits_of(table))


def splits_of(table: Table) -> pd.DataFrame:
    """What splits.csv holds: path, split, the class id of every label and the box, a row a photo, in the table's order.

    With this carvision.predict --list finds the photos, their boxes and true classes.
    """
    out = table.rows[["path", "split"]].copy()
    for name, label in table.class_labels.items():
        ids = np.array([*label.ids, ""], dtype=object)  # the last place serves UNKNOWN = -1
        out[name] = ids[table.rows[name].to_numpy()]
    if table.has_boxes:
        out[BOX] = table.rows[BOX]
    return out
