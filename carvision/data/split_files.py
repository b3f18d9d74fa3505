"""splits.csv of a run: which photos it trained, validated and tested on."""

from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.table import BOX, SPLITS, Table
from carvision.errors import InputError
from carvision.whole_files import write_csv


def read_splits(file: Path) -> pd.Series:
    """Path -> split, of a run's splits.csv. Raises InputError for a file that is none."""
    if not file.is_file():
        raise InputError(f"data.split.file: {file} does not exist; give the splits.csv of a run")
    try:
        listed = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"data.split.file: {file} can't be read ({' '.join(str(error).split())})") from None
    if not {"path", "split"} <= set(listed.columns):
        raise InputError(
            f"data.split.file: {file} has the columns {', '.join(listed.columns)}; path and split are needed"
        )
    odd = set(listed["split"]) - set(SPLITS)
    if odd:
        raise InputError(f"data.split.file: split {sorted(odd)[0]!r} in {file} is not one of {', '.join(SPLITS)}")
    twice = listed["path"].duplicated()
    if twice.any():
        raise InputError(f"data.split.file: {file} lists {listed['path'][twice].iloc[0]} more than once")
    return listed.set_index("path")["split"]


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
