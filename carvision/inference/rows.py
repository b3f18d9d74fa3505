"""Convert logits to rows, the names, ids and probabilities of each photo's classes; flatten rows to the columns of a
table, and write them as text.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from carvision.errors import InputError

if TYPE_CHECKING:
    from carvision.inference.predictor import Predictor

NOT_A_NUMBER = "the model's output is inf or NaN"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = ".jsonl"

# What a column holds: "text", "number", or the class ids of a vector of probabilities
Kind = str | tuple[str, ...]
TrueCodes = dict[str, int | None]  # {head: code of the true class, None if unknown}


class Row(NamedTuple):
    """The prediction of a photo.

    labels: {head with classes: its best classes, each {"id", "name", "prob"}, the decoded one first}, and of the others
    {head: number}; for a photo that could not be used [] and None, and `error` says why. truth {head: name of the true
    class}, missing or None where it is unknown. probs {head: C probabilities}, if the layout has them.
    """

    path: str
    labels: dict[str, Any]
    error: str | None = None
    truth: Mapping[str, str | None] = {}
    probs: Mapping[str, Sequence[float]] = {}


@dataclass
class Layout:
    """What rows and their table hold. class_ids: of the heads with classes. labels: all heads. top: number of classes
    per head. brief: the table has only paths and names. probs: all probabilities. true_heads: heads whose true class
    has a column.

    columns: {name: kind} of the table, in order. Raises InputError if two of them would have the same name.
    """

    class_ids: dict[str, list[str]]
    labels: Sequence[str]
    top: int = 1
    brief: bool = False
    probs: bool = False
    true_heads: tuple[str, ...] = ()
    columns: dict[str, Kind] = field(init=False)

    def __post_init__(self):
        columns: list[tuple[str, Kind]] = [("path", "text")]
        for head, ids in self.class_ids.items():
            columns += [(f"{head}_true", "text")] if head in self.true_heads and not self.brief else []
            for rank in range(min(self.top, len(ids))):
                name = column_name(head, rank)
                columns.append((name, "text"))
                columns += [] if self.brief else [(f"{name}_id", "text"), (f"{name}_prob", "number")]
            columns += [(f"{head}_probs", tuple(ids))] if self.probs else []
        columns += [(label, "number") for label in self.labels if label not in self.class_ids]
        columns += [] if self.brief else [("error", "text")]
        name, count = Counter(name for name, _ in columns).most_common(1)[0]
        if count > 1:
            raise InputError(f"the model's labels would give two columns {name!r}; rename one when you train it")
        self.columns = dict(columns)


def column_name(label: str, rank: int) -> str:
    """Return the column of the class of that rank, counted from 0: make, make_2, make_3."""
    return label if rank == 0 else f"{label}_{rank + 1}"


def rows_of(
    predictor: "Predictor",
    layout: Layout,
    paths: list[str],
    true_codes: list[TrueCodes],
    logits: dict[str, Tensor],
    reasons: list[str | None],
) -> list[Row]:
    """Return one row per photo. logits: {head: (B, C)}; reasons: why a photo is unusable, else None."""
    probs = {head: values.numpy() for head, values in predictor.probs(logits).items()}
    decoded = predictor.decode(logits)  # omits heads with a single class
    best = {
        head: best_codes(values, decoded[head].numpy() if head in decoded else np.zeros(len(values), int), layout.top)
        for head, values in probs.items()
    }
    numbers = {label: logits[label][:, 0].float().numpy() for label in predictor.labels if label not in probs}

    def classes(head: str, i: int) -> list[dict]:
        names, ids = predictor.classes[head], predictor.class_ids[head]
        codes = best[head][i].tolist()
        return [{"id": ids[code], "name": names[code], "prob": float(probs[head][i, code])} for code in codes]

    rows = []
    for i, (path, codes) in enumerate(zip(paths, true_codes, strict=True)):
        known = {head: predictor.classes[head][code] for head, code in codes.items() if code is not None}
        values = (value[i] for value in (*probs.values(), *numbers.values()))
        reason = reasons[i] or (None if all(np.isfinite(value).all() for value in values) else NOT_A_NUMBER)
        labels, vectors = {label: [] if label in probs else None for label in predictor.labels}, {}
        if not reason:
            labels = {
                label: classes(label, i) if label in probs else float(numbers[label][i]) for label in predictor.labels
            }
            vectors = {head: values[i] for head, values in probs.items()} if layout.probs else {}
        rows.append(Row(path, labels, reason, known, vectors))
    return rows


def best_codes(probs: np.ndarray, decoded: np.ndarray, top: int) -> np.ndarray:
    """Return int64 (B, top): the decoded class, then the others by probability, ties in class order. probs: (B, C)."""
    if top == 1:
        return decoded[:, None]
    order = -probs
    order[np.arange(len(probs)), decoded] = -np.inf
    return order.argsort(axis=1, kind="stable")[:, :top]


def flatten(row: Row, columns: Iterable[str]) -> dict[str, Any]:
    """Return {column: value} of these columns of a Layout; None where the row has no value."""
    cells: dict[str, Any] = {"path": row.path, "error": row.error}
    for label, found in row.labels.items():
        if not isinstance(found, list):
            cells[label] = found
            continue
        for rank, best in enumerate(found):
            name = column_name(label, rank)
            cells |= {name: best["name"], f"{name}_id": best["id"], f"{name}_prob": best["prob"]}
    cells |= {f"{head}_true": name for head, name in row.truth.items()}
    cells |= {f"{head}_probs": values for head, values in row.probs.items()}
    return {name: cells.get(name) for name in columns}


def header(columns: dict[str, Kind], suffix: str) -> str:
    """Return the header line, "" for JSON Lines. The vector make_probs becomes one column make_prob:<id> per class."""
    if suffix == JSON_LINES:
        return ""
    names = []
    for name, kind in columns.items():
        names += [name] if isinstance(kind, str) else [f"{name.removesuffix('s')}:{one}" for one in kind]
    return _delimited([names], suffix)


def to_text(rows: Iterable[Row], columns: dict[str, Kind], suffix: str) -> str:
    """Return one line per row; missing values are empty cells, null in JSON. Numbers have six significant digits."""
    flat = [flatten(row, columns) for row in rows]
    if suffix == JSON_LINES:
        return "".join(json.dumps(_rounded(cells, columns), ensure_ascii=False) + "\n" for cells in flat)
    return _delimited([_cells(cells, columns) for cells in flat], suffix)


def _delimited(records: list[list[str]], suffix: str) -> str:
    """Quote as RFC 4180 requires. Not with the csv module, which left "\\r" unquoted before Python 3.13."""
    delimiter = DELIMITERS[suffix]
    special = (delimiter, '"', "\n", "\r")

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(one in cell for one in special) else cell

    return "".join(delimiter.join(map(quoted, record)) + "\n" for record in records)


def _cells(flat: dict[str, Any], columns: dict[str, Kind]) -> list[str]:
    cells = []
    for value, kind in zip(flat.values(), columns.values(), strict=True):
        if not isinstance(kind, str):
            cells += [""] * len(kind) if value is None else [f"{one:.6g}" for one in value]
        else:
            cells.append("" if value is None else f"{value:.6g}" if kind == "number" else value)
    return cells


def _rounded(flat: dict[str, Any], columns: dict[str, Kind]) -> dict:
    plain = {}
    for (name, value), kind in zip(flat.items(), columns.values(), strict=True):
        if value is not None and kind != "text":
            value = float(f"{value:.6g}") if kind == "number" else [float(f"{one:.6g}") for one in value]
        plain[name] = value
    return plain
