"""A folder of embeddings: embeddings.npy, index.csv with a line for each of its rows, and embeddings.json.

embeddings.npy   float32 or float16 (N, D); numpy.load(..., mmap_mode="r") reads it as mapped memory
index.csv        path, split, the class id of every label (or the number), group and box where the data have them
embeddings.json  what they are: network, layer, length; root of the photos; names, ids and parents of all classes
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.split_files import splits_of
from carvision.data.table import UNKNOWN, Classes, Number, Table, validate
from carvision.errors import InputError
from carvision.whole_files import write_csv, write_json, written_whole

VALUES, INDEX, ABOUT = "embeddings.npy", "index.csv", "embeddings.json"
HEADER = 128  # bytes, of numpy's format 1.0


@dataclass(frozen=True)
class Embeddings:
    """values: float (N, D), in memory or mapped from the disk. table: the N photos in the same order."""

    values: "np.ndarray | RowSubset"
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def select(self, keep: np.ndarray) -> "Embeddings":
        """The rows where the boolean array is true. Of values that are mapped none is read yet."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep)
        mapped = isinstance(self.values, np.memmap)
        return Embeddings(RowSubset(self.values, rows) if mapped else self.values[rows], self.table.select(keep))


class RowSubset:
    """Some rows of an array (N, D): what is asked for by a slice or by numbers is read, and no more."""

    def __init__(self, values: np.ndarray, rows: np.ndarray):
        self.values, self.rows = values, rows
        self.shape, self.ndim, self.dtype = (len(rows), values.shape[1]), 2, values.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return self.values[self.rows[which]]


def write_values(file: Path, blocks: Iterable[np.ndarray], dtype: str = "float32") -> tuple[int, int]:
    """Blocks (B, D), one after the other, as one array (N, D) in numpy's format; returns its shape.

    Only a block is in memory, and how many there will be need not be known.
    """
    num_rows, width = 0, 0
    with written_whole(file) as partial, partial.open("wb") as opened:
        opened.write(bytes(HEADER))
        for block in blocks:
            opened.write(np.ascontiguousarray(block, dtype).tobytes())
            num_rows, width = num_rows + len(block), block.shape[1]
        opened.seek(0)
        opened.write(_header(num_rows, width, dtype))
    return num_rows, width


def _header(num: int, width: int, dtype: str) -> bytes:
    """See numpy.lib.format, version 1.0: the length of all is a multiple of 64, filled up with blanks."""
    description = (
        f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': ({num}, {width}), }}"
    )
    start = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return start + description.encode().ljust(HEADER - 11) + b"\n"


def write_index(folder: Path, table: Table, about: dict) -> None:
    """index.csv and embeddings.json; with the latter the folder is complete."""
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
    described["packed"] = table.shards is not None
    write_json(folder / ABOUT, {**about, **described})


def is_folder_of_embeddings(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def read_embeddings(folder: Path) -> tuple[Embeddings, dict]:
    """What write_values and write_index wrote, the values mapped; and what embeddings.json says.

    Raises InputError where the files are not there, are damaged or do not belong together.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
        index = pd.read_csv(folder / INDEX, dtype=str, keep_default_na=False)
        table = _restore_table(index, about)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: its embeddings can't be read ({text}); compute them again") from None
    if values.ndim != 2 or len(values) != len(table):
        raise InputError(
            f"{folder}: {VALUES} has the shape {values.shape}, and {INDEX} {len(table):,} lines; compute them again"
        )
    return Embeddings(values, table), about


def _restore_table(index: pd.DataFrame, about: dict) -> Table:
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
    for name in ("left", "top", "right", "bottom"):
        if name in index:
            rows[name] = pd.to_numeric(index[name], errors="coerce").astype(np.float32)
    root = about["root"]
    return validate(Table(about["data"], root if "://" in root else Path(root), rows, labels, about["finest"]))
