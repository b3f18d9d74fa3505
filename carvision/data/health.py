"""The health of a data set before anything is trained: unreadable photos, copies, photos per class."""

import contextlib

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from carvision.data.inspection import PhotoFacts, inspect_photos
from carvision.data.table import BOX, SPLITS, UNKNOWN, Classes, Table
from carvision.data.worker_pool import in_processes
from carvision.errors import InputError

CHUNK = 32  # photos a worker takes at a time: enough to make its messages cheap, few enough to end soon after Ctrl-C
NO_SPLIT = "no split"
PERCENTILES = tuple(range(10, 100, 10))


def scan_photos(table: Table, boxes: bool, num_workers: int) -> pd.DataFrame:
    """Read and decode every photo: path and the columns of PhotoFacts, one row a photo in the table's order.

    boxes: whether the table's boxes are checked too. num_workers: processes; 0: in this one. Besides the rows
    returned (about 600 bytes each), a process holds one decoded photo at a time.
    """
    if boxes and not table.has_boxes:
        raise InputError(f"data.crop_to_box: {table.name} has no boxes; set it to false")
    corners = table.rows[BOX].to_numpy(np.float32) if boxes else None
    chunks = [range(start, min(start + CHUNK, len(table))) for start in range(0, len(table), CHUNK)]
    tasks = (([table.photo(i) for i in part], None if corners is None else corners[part]) for part in chunks)
    found: list[PhotoFacts] = []
    num_bad = 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with (
        contextlib.closing(in_processes(inspect_photos, tasks, min(num_workers, len(chunks)))) as results,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("reading photos", total=len(table))
        for facts in results:
            found += facts
            num_bad += sum(bool(photo.problem) for photo in facts)
            progress.update(bar, completed=len(found), description=f"reading photos ({num_bad:,} with a problem)")
    scan = pd.DataFrame(found, columns=PhotoFacts._fields)
    scan.insert(0, "path", table.rows["path"].to_numpy())
    return scan


def find_copies(table: Table, scan: pd.DataFrame) -> pd.DataFrame:
    """The photos whose bytes another photo has too, group by group.

    Columns: group (from 0), path, split, each label (names of classes; "" or NaN where not known), conflict (two
    photos of the group have different known values of some label), across_splits (they are in different splits).
    """
    real = (scan["bytes"] > 0).to_numpy()  # empty and missing files are all alike, and no copies
    copied = real & scan["digest"].duplicated(keep=False).to_numpy()
    rows = table.rows.loc[copied].reset_index(drop=True)
    group = pd.Series(pd.factorize(scan.loc[copied, "digest"])[0], name="group")
    copies = pd.concat([group, rows[["path", "split"]]], axis=1)
    conflict = np.zeros(len(rows), bool)
    for name, label in table.labels.items():
        values = rows[name]
        if isinstance(label, Classes):
            names = np.array([*label.names, ""], dtype=object)  # the last place serves UNKNOWN = -1
            copies[name] = names[values.to_numpy()]
            values = values.where(values != UNKNOWN)
        else:
            copies[name] = values
        conflict |= (values.groupby(group).transform("nunique") > 1).to_numpy()  # NaN does not count
    copies["conflict"] = conflict
    split = rows["split"].where(rows["split"] != "")
    copies["across_splits"] = split.groupby(group).transform("nunique") > 1
    return copies.sort_values("group", kind="stable", ignore_index=True)


def class_counts(table: Table, label: str) -> pd.DataFrame:
    """Photos of each class: a row a class in the order of its code, columns id, name, one a split that the table
    has ("no split" for photos that its own split leaves out), and total. Photos of unknown class are not in it."""
    classes = table.class_labels[label]
    codes = table.rows[label].to_numpy()
    split = table.rows["split"].replace("", NO_SPLIT).to_numpy()
    counts = pd.DataFrame({"id": classes.ids, "name": classes.names})
    for name in (*SPLITS, NO_SPLIT):
        if (split == name).any():
            counts[name] = np.bincount(codes[(split == name) & (codes != UNKNOWN)], minlength=len(classes))
    counts["total"] = np.bincount(codes[codes != UNKNOWN], minlength=len(classes))
    return counts


def describe_counts(counts: pd.DataFrame) -> pd.DataFrame:
    """Of `class_counts`, a row a split and one for all: split, classes (that have photos), photos, and over all the
    label's classes, also those without photos: mean, std (sample, NaN for one class), min, p10 to p90, max."""
    splits = [name for name in (*SPLITS, NO_SPLIT) if name in counts]
    described = []
    for split, column in [(name, name) for name in splits] + ([("all", "total")] if len(splits) > 1 else []):
        photos = counts[column]
        described.append(
            {
                "split": split,
                "classes": int((photos > 0).sum()),
                "photos": int(photos.sum()),
                "mean": photos.mean(),
                "std": photos.std(),
                "min": int(photos.min()),
                **{f"p{q}": float(np.percentile(photos, q)) for q in PERCENTILES},
                "max": int(photos.max()),
            }
        )
    return pd.DataFrame(described)
