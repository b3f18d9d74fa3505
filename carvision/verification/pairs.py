"""Pairs of photos to be told the same or different: read from a list, or drawn from a Table."""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carvision.data.disk import read_text
from carvision.data.split_files import find_rows
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.errors import InputError

log = logging.getLogger(__name__)

EASY, MEDIUM, HARD = DIFFICULTIES = ("easy", "medium", "hard")
VIEWPOINT = "viewpoint"  # the label that easy pairs need
SAME = {"1": True, "true": True, "0": False, "-1": False, "false": False}


@dataclass(frozen=True)
class Pairs:
    """first, second: int64 (M,), rows of a table. same: bool (M,), whether both show the same class."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def select(self, keep: np.ndarray) -> "Pairs":
        return Pairs(self.first[keep], self.second[keep], self.same[keep])

    def map_rows(self, rows: np.ndarray) -> "Pairs":
        """The pairs of another table, whose row of photo i is rows[i], int64 (N,)."""
        return Pairs(rows[self.first], rows[self.second], self.same)

    def photo_mask(self, num_photos: int) -> np.ndarray:
        """bool (num_photos,): whether a photo is in a pair."""
        named = np.zeros(num_photos, dtype=bool)
        named[self.first] = named[self.second] = True
        return named


def read_pairs(file: Path, table: Table, allow_missing: bool = False) -> Pairs:
    """The pairs of a text file: a line a pair, `path1 path2 label`, separated by blanks, tabs, semicolons or commas, in
    any order.

    Paths are those of the table, in any spelling of `PhotoPaths`, or below its folder image/, as in CompCars' lists.
    label: 1 (same) or 0 (different);
    also -1, true, false. The first line may be a header; what stands after the label is left aside, so that a
    pairs_<name>.csv of an earlier verification can be read.
    allow_missing: pairs of photos that the table lacks are left out, and counted, instead of raising InputError.
    """
    rows = _cells(file)
    if not rows:
        raise InputError(f"{file}: there is no pair in it; give lines of path1 path2 label, label 1 (same) or 0")
    paths = np.array([row[:2] for _, row in rows], dtype=object)
    same = np.array([SAME[row[2].lower()] for _, row in rows])
    photo_rows = _rows_of(paths.ravel(), table).reshape(-1, 2)
    known = (photo_rows >= 0).all(axis=1)
    if not known.all():
        line, first = rows[int(np.argmin(known))][0], paths[photo_rows < 0][0]
        text = f"{file}: {(~known).sum():,} of {len(known):,} pairs name photos that {table.name} lacks"
        text += f" (first: {first} in line {line})"
        if not allow_missing:
            raise InputError(f"{text}. Complete the data, or leave such pairs out with data.allow_missing=true")
        if not known.any():
            raise InputError(f"{text}, so that none is left; paths are relative to {table.root}")
        log.warning("%s; they are left out", text)
    return Pairs(photo_rows[:, 0], photo_rows[:, 1], same).select(known)


def _cells(file: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of each line with a pair."""
    lines = [(number, line) for number, line in enumerate(read_text(file).splitlines(), start=1) if line.strip()]
    found = []
    for index, (number, line) in enumerate(lines):
        row = _separated(line)
        if len(row) >= 3 and row[2].lower() in SAME:
            found.append((number, row))
        elif index > 0 or len(row) < 3 or row[2].lstrip("-").isdecimal():  # else a header
            raise InputError(f"{file}, line {number}: {line.strip()!r} is not path1 path2 label, label 1 (same) or 0")
    return found


def _separated(line: str) -> list[str]:
    """By the separator that gives a label in the third cell, else by one that is there, as in a header."""
    rows = [
        [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
        for separator in "\t;,"
    ]
    rows.append(line.split())
    labelled = [row for row in rows if len(row) >= 3 and row[2].lower() in SAME]
    return next(iter(labelled or [row for row in rows if len(row) > 1]), rows[-1])


def _rows_of(paths: np.ndarray, table: Table) -> np.ndarray:
    """int64: the rows of these photos; -1 where the table has none."""
    known = set(table.rows["path"])
    below = [f"image/{path}" for path in paths]
    rows = find_rows(table, [inner if inner in known else path for path, inner in zip(paths, below, strict=True)])
    absent = np.flatnonzero(rows < 0)
    rows[absent] = find_rows(table, [below[i] for i in absent])
    return rows


def generate_pairs(table: Table, label: str, difficulty: str, num_pairs: int, seed: int) -> Pairs:
    """num_pairs random pairs of the table's photos, half of them of the same class of the label, in random order.

    difficulty, as in CompCars' lists (Yang et al. 2015): "easy": both from the same viewpoint, "medium":
    any two, "hard": those of different classes are of one parent class (models of one make).
    Every possible pair is as likely as any other, so that of a class with many photos there are more; no pair comes
    twice and no photo with itself. Photos of the same car (the table's group) do come together: what is asked is
    the class, and in CompCars a group is a whole model year. Photos whose class or viewpoint is unknown are in no pair.
    Where fewer pairs are possible there are fewer, still half and half.
    Raises InputError where the data lack what the difficulty needs, or no pair is possible.
    """
    codes = table.rows[label].to_numpy().astype(np.int64)
    context, of_negatives = _contexts(table, label, difficulty)
    photos = np.flatnonzero((codes != UNKNOWN) & (context != UNKNOWN))
    # Sorted by context and class, the photos that may stand with one photo lie in one piece behind it: those of its
    # class directly, the others of its context after these. So a pair has a number, and is found by it.
    photos = photos[np.lexsort((codes[photos], of_negatives[photos], context[photos]))]
    end_of_class = _ends(np.stack([context[photos], of_negatives[photos], codes[photos]]))
    end_of_context = _ends(np.stack([context[photos], of_negatives[photos]]))
    after = np.arange(1, len(photos) + 1)
    positives, negatives = end_of_class - after, end_of_context - end_of_class
    half = min(num_pairs // 2, positives.sum(), negatives.sum())
    if half == 0:
        missing = "two photos of one" if positives.sum() == 0 else "photos of two"
        raise InputError(
            f"{table.name}: no {difficulty} pairs among {len(table):,} photos: nowhere {missing} {label}"
            f"{_where(difficulty, positives.sum() == 0)}"
        )
    rng = np.random.default_rng([seed, DIFFICULTIES.index(difficulty)])
    ones, others = zip(
        _draw_positions(positives, after, half, rng), _draw_positions(negatives, end_of_class, half, rng), strict=True
    )
    ends = photos[np.stack([np.concatenate(ones), np.concatenate(others)])]
    ends = rng.permuted(ends, axis=0)  # either may come first
    order = rng.permutation(2 * half)
    return Pairs(ends[0, order], ends[1, order], np.repeat([True, False], half)[order])


def _contexts(table: Table, label: str, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N,) twice: photos of a pair agree in the first; those of a pair of different classes in the second, too.

    A class has one value of the second, so that it is no matter to pairs of the same class.
    """
    nothing = np.zeros(len(table), dtype=np.int64)
    if difficulty == MEDIUM:
        return nothing, nothing
    if difficulty == EASY:
        if VIEWPOINT not in table.class_labels:
            raise InputError(f"{table.name}: no easy pairs: it has no label {VIEWPOINT}")
        return table.rows[VIEWPOINT].to_numpy().astype(np.int64), nothing
    if difficulty == HARD:
        classes = table.labels[label]
        if not isinstance(classes, Classes) or classes.parent is None:
            raise InputError(f"{table.name}: no hard pairs: no other label, as a make, follows from its {label}")
        return nothing, np.array([*classes.parent_codes, UNKNOWN])[table.rows[label].to_numpy()]
    raise InputError(f"difficulty: {difficulty!r} is not one of {', '.join(DIFFICULTIES)}")


def _where(difficulty: str, same: bool) -> str:
    if difficulty == EASY:
        return f" from one {VIEWPOINT}"
    return " of one parent" if difficulty == HARD and not same else ""


def _ends(keys: np.ndarray) -> np.ndarray:
    """int64 (N,): for each column of the sorted keys (K, N), the place behind the last column that is equal to it."""
    changes = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    bounds = np.append(changes, keys.shape[1])
    return bounds[np.searchsorted(bounds, np.arange(keys.shape[1]), side="right")]


def _draw_positions(counts: np.ndarray, starts: np.ndarray, num: int, rng: np.random.Generator) -> tuple:
    """num different pairs of places, of those where place i stands with each of the counts[i] places from starts[i]."""
    ends = np.cumsum(counts)
    numbers = rng.choice(ends[-1], num, replace=False)
    first = np.searchsorted(ends, numbers, side="right")
    return first, starts[first] + numbers - (ends - counts)[first]
