"""Turn logits into output rows: names, ids and probabilities of each photo's classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from carvision.errors import InputError
from carvision.inference.inputs import Photo

NOT_A_NUMBER = "the model's output is inf or NaN"

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
        names = [name for name, _ in columns] + (
            ["error"] if self.brief else []
        )  # rows have it, even if it is not shown
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InputError(f"the model's labels would give two columns {name!r}; rename one when you train it")
        return dict(columns)


def column_name(label: str, rank: int) -> str:
    """Return the column of the class of that rank, counted from 0: make, make_2, make_3."""
    return label if rank == 0 else f"{label}_{rank + 1}"


def rows_of(
    predictor, layout: Layout, photos: list[Photo], truths: list[Truth], logits: dict[str, Tensor], reasons: list
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


def _best_cells(head: str, predictor, probs: np.ndarray, best: np.ndarray) -> dict:
    cells = {}
    for rank, code in enumerate(best.tolist()):
        name = column_name(head, rank)
        cells[name] = predictor.classes[head][code]
        cells[f"{name}_id"] = predictor.class_ids[head][code]
        cells[f"{name}_prob"] = float(probs[code])
    return cells
