"""Convert logits to output rows, of names, ids and probabilities of each photo's classes; write rows as text, and read
them back.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from torch import Tensor

from carvision.errors import InputError
from carvision.inference.sources import Photo

if TYPE_CHECKING:
    from carvision.inference.predictor import Predictor

NOT_A_NUMBER = "the model's output is inf or NaN"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = ".jsonl"

# What a column holds: "text", "number", or the class ids of a vector of probabilities
Kind = str | tuple[str, ...]
Truth = dict[str, int | None]  # {head: code, None if unknown}


@dataclass(frozen=True)
class Layout:
    """The columns of the output. top: number of classes per head, the decoded one first. brief: only paths and names.
    probs: all probabilities. true_heads: heads whose true class has a column."""

    top: int = 1
    brief: bool = False
    probs: bool = False
    true_heads: tuple[str, ...] = ()

    def columns(self, class_ids: dict[str, list[str]], labels: Sequence[str]) -> dict[str, Kind]:
        """Return {name: kind} in order. class_ids: of the heads with classes; labels: of all heads.

        Raises InputError if two columns would have the same name.
        """
        columns: list[tuple[str, Kind]] = [("path", "text")]
        for head, ids in class_ids.items():
            columns += [(f"{head}_true", "text")] if head in self.true_heads and not self.brief else []
            for rank in range(min(self.top, len(ids))):
                name = column_name(head, rank)
                columns.append((name, "text"))
                columns += [] if self.brief else [(f"{name}_id", "text"), (f"{name}_prob", "number")]
            columns += [(f"{head}_probs", tuple(ids))] if self.probs else []
        columns += [(label, "number") for label in labels if label not in class_ids]
        columns += [] if self.brief else [("error", "text")]
        names = [name for name, _ in columns]
        names += ["error"] if self.brief else []  # rows have it, even if it is not shown
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InputError(f"the model's labels would give two columns {name!r}; rename one when you train it")
        return dict(columns)


def column_name(label: str, rank: int) -> str:
    """Return the column of the class of that rank, counted from 0: make, make_2, make_3."""
    return label if rank == 0 else f"{label}_{rank + 1}"


def rows_of(
    predictor: "Predictor",
    layout: Layout,
    photos: list[Photo],
    truths: list[Truth],
    logits: dict[str, Tensor],
    reasons: list,
) -> list[dict]:
    """Return one row per photo, {column: value}; columns without a value (unreadable photo, unknown truth) are omitted.

    logits: {head: (B, C)}; reasons: why a photo is unusable, else None.
    """
    probs = {head: values.numpy() for head, values in predictor.probs(logits).items()}
    decoded = predictor.decode(logits)  # omits heads with a single class
    best = {
        head: best_codes(values, decoded[head].numpy() if head in decoded else np.zeros(len(values), int), layout.top)
        for head, values in probs.items()
    }
    numbers = {label: logits[label][:, 0].float().numpy() for label in predictor.labels if label not in probs}
    rows = []
    for i, (photo, truth) in enumerate(zip(photos, truths, strict=True)):
        row = {"path": photo.path}
        for head, code in truth.items():
            if code is not None:
                row[f"{head}_true"] = predictor.classes[head][code]
        values = [value[i] for value in (*probs.values(), *numbers.values())]
        reason = reasons[i] or (None if all(np.isfinite(value).all() for value in values) else NOT_A_NUMBER)
        if reason:
            row["error"] = reason
        else:
            for head, values in probs.items():
                row |= _best_cells(head, predictor, values[i], best[head][i])
                row[f"{head}_probs"] = values[i]
            row |= {label: float(number[i]) for label, number in numbers.items()}
        rows.append(row)
    return rows


def best_codes(probs: np.ndarray, decoded: np.ndarray, top: int) -> np.ndarray:
    """Return int64 (B, top): the decoded class, then the others by probability, ties in class order. probs: (B, C)."""
    if top == 1:
        return decoded[:, None]
    order = -probs
    order[np.arange(len(probs)), decoded] = -np.inf
    return order.argsort(axis=1, kind="stable")[:, :top]


def _best_cells(head: str, predictor: "Predictor", probs: np.ndarray, best: np.ndarray) -> dict:
    cells = {}
    for rank, code in enumerate(best.tolist()):
        name = column_name(head, rank)
        cells[name] = predictor.classes[head][code]
        cells[f"{name}_id"] = predictor.class_ids[head][code]
        cells[f"{name}_prob"] = float(probs[code])
    return cells


def header(columns: dict[str, Kind], suffix: str) -> str:
    """Return the header line, "" for JSON Lines. The vector make_probs becomes one column make_prob:<id> per class."""
    if suffix == JSON_LINES:
        return ""
    names = []
    for name, kind in columns.items():
        names += [name] if isinstance(kind, str) else [f"{name.removesuffix('s')}:{one}" for one in kind]
    return _delimited([names], suffix)


def to_text(rows: list[dict], columns: dict[str, Kind], suffix: str) -> str:
    """Return one line per row; missing values are empty cells, null in JSON. Numbers have six significant digits."""
    if suffix == JSON_LINES:
        return "".join(json.dumps(_json_row(row, columns), ensure_ascii=False) + "\n" for row in rows)
    return _delimited([_cells(row, columns) for row in rows], suffix)


def read_rows(file: IO[bytes], columns: dict[str, Kind], suffix: str, name: str) -> Iterator[tuple[dict, int]]:
    """Yield (row, end offset in bytes) for the complete rows of a file written with `header` and `to_text`.

    The header yields an empty row; the cells of CSV are text; an incomplete last line is skipped. name: of the file,
    for errors. Raises InputError for any other content.
    """
    records = _complete_records(file, quoted=suffix != JSON_LINES)
    head, names = header(columns, suffix), []
    try:
        if head:
            record, end = next(records, (None, 0))
            if record is None:
                return
            if record != head.encode():
                raise ValueError("it has other columns")
            names = _cells_of(record, suffix)
            yield {}, end
        for record, end in records:
            row = dict(zip(names, _cells_of(record, suffix), strict=True)) if head else json.loads(record)
            if not isinstance(row, dict) or "path" not in row:
                raise ValueError("a line without a path")
            yield row, end
    except (ValueError, csv.Error) as error:  # invalid JSON or UTF-8, or a wrong number of cells
        raise InputError(f"{name} was not written by this command ({error}); give another --out") from None


def _complete_records(file: IO[bytes], quoted: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (record, end offset), joining lines of a quoted cell that contains newlines."""
    record, end = b"", 0
    for line in file:
        record += line
        end += len(line)
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record, end
            record = b""


def _delimited(records: list[list[str]], suffix: str) -> str:
    """Quote as RFC 4180 requires. Not with the csv module, which left "\\r" unquoted before Python 3.13."""
    separator = SEPARATORS[suffix]
    special = (separator, '"', "\n", "\r")

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(one in cell for one in special) else cell

    return "".join(separator.join(map(quoted, record)) + "\n" for record in records)


def _cells_of(record: bytes, suffix: str) -> list[str]:
    return next(csv.reader(io.StringIO(record.decode(), newline=""), delimiter=SEPARATORS[suffix]))


def _cells(row: dict, columns: dict[str, Kind]) -> list[str]:
    cells = []
    for name, kind in columns.items():
        value = row.get(name)
        if not isinstance(kind, str):
            cells += [""] * len(kind) if value is None else [f"{one:.6g}" for one in value.tolist()]
        else:
            cells.append("" if value is None else f"{value:.6g}" if kind == "number" else value)
    return cells


def _json_row(row: dict, columns: dict[str, Kind]) -> dict:
    plain = dict.fromkeys(columns)
    for name, kind in columns.items():
        value = row.get(name)
        if value is not None and kind != "text":
            value = float(f"{value:.6g}") if kind == "number" else [float(f"{one:.6g}") for one in value.tolist()]
        plain[name] = value
    return plain
