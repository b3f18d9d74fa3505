"""Store embeddings in a folder: embeddings.npy, index.csv with one line per row of it, and embeddings.json.

embeddings.npy   float32 or float16 (N, D); numpy.load(..., mmap_mode="r") maps it without reading
index.csv        path, split, the class id of every label (or the number), group and box if the data have them
embeddings.json  provenance: network, layer, length; root of the photos; names, ids and parents of all classes
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from carvision.data.splits import splits_of
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table, validate
from carvision.errors import InputError, one_line
from carvision.files.atomic import write_csv, write_json

VALUES, INDEX, ABOUT = "embeddings.npy", "index.csv", "embeddings.json"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings and the table of their photos, in the same order.

    values: float (N, D), in memory or memory-mapped; a RowSubset, where a part of mapped ones was selected.
    """

    values: np.ndarray
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def select(self, keep: np.ndarray) -> "Embeddings":
        """Return the rows where the boolean array is true; memory-mapped values are not read yet."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep)
        mapped = isinstance(self.values, np.memmap)
        values = cast(np.ndarray, RowSubset(self.values, rows)) if mapped else self.values[rows]
        return Embeddings(values, self.table.select(keep))


class RowSubset:
    """A lazy subset of the rows of an array (N, D): indexing by a slice or row numbers reads only those rows."""

    def __init__(self, values: np.ndarray, rows: np.ndarray):
        self.values, self.rows = values, rows
        self.shape, self.ndim, self.dtype = (len(rows), values.shape[1]), 2, values.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return self.values[self.rows[which]]


def write_index(folder: Path, table: Table, about: dict) -> None:
    """Write index.csv, then embeddings.json, which marks the folder as complete."""
    index = splits_of(table)
    for name, label in table.labels.items():
        if isinstance(label, Number):
            index[name] = table.rows[name]
    if "group" in table.rows:
        index["group"] = table.rows["group"]
    write_csv(folder / INDEX, index)
    labels = {
        name: {"ids": label.ids, "names": label.names, "parent": label.parent, "parent_codes": label.parent_codes}
        if isinstance(label, Classes)
        else {"unit": label.unit}
        for name, label in table.labels.items()
    }
    described = {"data": table.name, "root": str(table.root), "finest": table.finest, "labels": labels}
    write_json(folder / ABOUT, {**about, **described, "packed": table.shards is not None})


def read_embeddings(folder: Path) -> tuple[Embeddings, dict]:
    """Read what carvision.embed wrote, memory-mapping the values; also return embeddings.json.

    Raises InputError if the files are missing, damaged or don't belong together.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
        index = pd.read_csv(folder / INDEX, dtype=str, keep_default_na=False)
        table = _restore_table(index, about)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        text = one_line(error, 200)
        raise InputError(f"{folder}: its embeddings can't be read ({text}); compute them again") from None
    if values.ndim != 2 or len(values) != len(table):
        raise InputError(
            f"{folder}: {VALUES} has the shape {values.shape}, and {INDEX} {len(table):,} lines; compute them again"
        )
    return Embeddings(values, table), about


def _restore_table(index: pd.DataFrame, about: dict) -> Table:
    """Return the table that index.csv, as text, and embeddings.json describe. Raises various errors for others."""
    rows = index[["path", "split"]].copy()
    labels: dict = {}
    for name, described in about["labels"].items():
        if "ids" not in described:
            labels[name] = Number(described["unit"])
            rows[name] = pd.to_numeric(index[name], errors="coerce").astype(np.float32)
            continue
        codes = tuple(described["parent_codes"])
        labels[name] = Classes(tuple(described["ids"]), tuple(described["names"]), described["parent"], codes)
        code_of = {id_: code for code, id_ in enumerate(labels[name].ids)}
        rows[name] = np.array([code_of[id_] if id_ else UNKNOWN for id_ in index[name]], np.int32)
    if "group" in index:
        rows["group"] = index["group"]
    if BOX[0] in index:
        rows[BOX] = index[BOX].apply(pd.to_numeric, errors="coerce").astype(np.float32)
    root = about["root"]
    return validate(Table(about["data"], root if "://" in root else Path(root), rows, labels, about["finest"]))
