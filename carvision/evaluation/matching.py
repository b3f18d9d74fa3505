"""Match the classes of a data set with those of a model."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from carvision.data.photo_paths import nfc
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.errors import InputError, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matched:
    """A data set's labels in terms of a model's classes.

    targets {head: int64 (N,) codes of the model, UNKNOWN if it lacks the class; float32 (N,) for a number}. judged:
    bool (N,), photos with a known target of at least one head. unmatched: one row per class that only one side has:
    head, only_in ("data" or "model"), id, name, photos. notes: lines that report what could not be matched.
    """

    targets: dict[str, Tensor]
    judged: np.ndarray
    unmatched: pd.DataFrame
    notes: list[str]


def match_classes(
    table: Table, labels: dict[str, dict], by: str = "id", renamed: dict[str, str] | None = None
) -> Matched:
    """Match the table's classes with the model's.

    labels: of the model, as in model.json. by: "id" or "name" (case-insensitive). renamed: {head: the data's label it
    is compared with}, if that has another name. Raises InputError if no head has a label, or no class matches.
    """
    names = {head: (renamed or {}).get(head, head) for head in labels}
    _check_names(names, renamed or {}, table, labels)
    targets, notes, unmatched_rows = {}, [], []
    for head, described in labels.items():
        label = table.labels.get(names[head])
        has_classes = "ids" in described
        if isinstance(label, Classes) != has_classes or label is None:
            targets[head] = torch.full((len(table),), UNKNOWN) if has_classes else torch.full((len(table),), torch.nan)
            notes.append(f"{head}: the data have no such label, so this head is not judged")
            continue
        values = table.rows[names[head]].to_numpy()
        if not has_classes:
            targets[head] = torch.from_numpy(values.astype(np.float32))
            continue
        codes = _codes(head, label, described, by)
        targets[head] = torch.from_numpy(
            np.append(codes, UNKNOWN)[values]
        )  # the appended value is what UNKNOWN = -1 indexes
        counts = np.bincount(values[values != UNKNOWN], minlength=len(label))
        notes += _notes(head, table, label, described, codes, counts, by)
        unmatched_rows += [
            (head, "data", label.ids[i], label.names[i], counts[i]) for i in np.flatnonzero(codes == UNKNOWN)
        ]
        missing = np.setdiff1d(np.arange(len(described["ids"])), codes)
        unmatched_rows += [(head, "model", described["ids"][i], described["names"][i], 0) for i in missing]
    known = [~values.isnan() if values.is_floating_point() else values != UNKNOWN for values in targets.values()]
    judged = torch.stack(known).any(0).numpy()
    if not judged.any():
        raise InputError(
            f"{table.name}: no photo has a label that the model knows ({'; '.join(notes)}); python -m "
            "carvision.retrieve measures its embeddings on classes that it has never seen"
        )
    unmatched = pd.DataFrame(unmatched_rows, columns=["head", "only_in", "id", "name", "photos"])
    return Matched(targets, judged, unmatched, notes)


def _check_names(names: dict[str, str], renamed: dict[str, str], table: Table, labels: dict) -> None:
    for head, label in renamed.items():
        if head not in labels:
            raise InputError(
                f"--label: {head!r} is not a head of the model{nearest(head, labels)}; it has {', '.join(labels)}"
            )
        if label not in table.labels:
            raise InputError(f"--label: {label!r} is not a label of {table.name}; it has {', '.join(table.labels)}")
    if not set(names.values()) & set(table.labels):
        raise InputError(
            f"{table.name} has the labels {', '.join(table.labels)} and the model the heads {', '.join(labels)}; say "
            f"what belongs together with --label {next(iter(table.labels))}={next(iter(labels))}"
        )


def _codes(head: str, label: Classes, described: dict, by: str) -> np.ndarray:
    """Return the model's code of each class of the data, UNKNOWN if it has none."""
    model_values, data_values = (described["ids"], label.ids) if by == "id" else (described["names"], label.names)
    fold = nfc if by == "id" else lambda name: nfc(name).casefold()
    sides = (model_values, data_values)
    repeated = {value for side in sides for value in pd.Series(map(fold, side))[lambda s: s.duplicated()]}
    if repeated:  # ids never repeat
        raise InputError(
            f"--match name: the name {sorted(repeated)[0]!r} of {head} stands for several classes; match by id"
        )
    index_of = {fold(value): i for i, value in enumerate(model_values)}
    return np.array([index_of.get(fold(value), UNKNOWN) for value in data_values], np.int64)


def _notes(head, table, label, described, codes, counts, by: str) -> list[str]:
    same = codes != UNKNOWN
    num_model = len(described["ids"])
    if not same.any():
        return [
            f"{head}: none of the data's {len(label)} classes is one of the model's {num_model} by {by} (first: "
            f"{label.ids[0]!r} {label.names[0]!r} against {described['ids'][0]!r} {described['names'][0]!r}), so this "
            f"head is not judged; --match {'name' if by == 'id' else 'id'} may help"
        ]
    notes = []
    if not same.all():
        notes.append(
            f"{head}: {(~same).sum():,} of the data's {len(label):,} classes are unknown to the model; their "
            f"{counts[~same].sum():,} photos are not judged"
        )
    if same.sum() < num_model:
        notes.append(f"{head}: {num_model - same.sum():,} of the model's {num_model:,} classes are not among the data")
    if by == "id":
        pairs = [(label.names[i], described["names"][codes[i]], label.ids[i]) for i in np.flatnonzero(same)]
        differ = [pair for pair in pairs if nfc(pair[0]).casefold() != nfc(pair[1]).casefold()]
        if differ:
            ours, theirs, id_ = differ[0]
            notes.append(
                f"{head}: {len(differ):,} of {len(pairs):,} classes that match by id have other names (first: id {id_} "
                f"is {ours!r} in the data, {theirs!r} in the model); if they are not the same, use --match name"
            )
    return notes
