"""Choose the pairs of photos to verify: those of the command line's lists or of the data set's, or random ones."""

import argparse
import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from carvision.data.readers.compcars import has_pair_lists, pair_list_files, read_compcars
from carvision.data.readers.disk import read_text
from carvision.data.splits import find_rows
from carvision.data.table import UNKNOWN, Table
from carvision.demo.write import demo_folder, write_demo
from carvision.embedding.embed import Source
from carvision.errors import InputError
from carvision.evaluation.select import ChosenData, select_split

log = logging.getLogger(__name__)

EASY, MEDIUM, HARD = DIFFICULTIES = ("easy", "medium", "hard")
VIEWPOINT = "viewpoint"  # label required by easy pairs
SAME = {"1": True, "true": True, "0": False, "-1": False, "false": False}
WITH_LISTS = ("compcars", "demo")  # data sets with official lists of pairs
NUM_TRAIN_PAIRS = 10_000
BLOCK = 4096  # pairs whose embeddings are in memory at a time


@dataclass(frozen=True)
class Pairs:
    """Pairs of photos.

    first, second: int64 (M,), rows of a table or of embeddings. same: bool (M,), whether both show the same class.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def select(self, keep: np.ndarray) -> "Pairs":
        """Return the pairs where the boolean array (M,) is true."""
        return Pairs(self.first[keep], self.second[keep], self.same[keep])

    def map_rows(self, rows: np.ndarray) -> "Pairs":
        """Return the pairs as rows of another table, in which photo i has the row rows[i], int64 (N,)."""
        return Pairs(rows[self.first], rows[self.second], self.same)

    def photo_mask(self, num_photos: int) -> np.ndarray:
        """Return bool (num_photos,): whether a photo is in any pair."""
        named = np.zeros(num_photos, dtype=bool)
        named[self.first] = named[self.second] = True
        return named

    def map(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
        """Return function(values of first photos, values of second photos), computed block by block; values (N, D)."""
        starts = range(0, len(self), BLOCK)
        parts = [(self.first[i : i + BLOCK], self.second[i : i + BLOCK]) for i in starts]
        return np.concatenate([function(values[first], values[second]) for first, second in parts])

    def dot(self, values: np.ndarray) -> np.ndarray:
        """Return the scalar product of the two rows of each pair, float (M,); values (N, D)."""
        return self.map(lambda a, b: np.einsum("md,md->m", a, b), values)


def read_pairs(file: Path, table: Table, allow_missing: bool = False) -> Pairs:
    """Read the pairs of a text file, one `path1 path2 label` per line, separated by blanks, tabs, semicolons or commas.

    Paths are those of the table, in any spelling of `PhotoPaths`, or relative to its folder image/, as in CompCars'
    lists. label: 1 (same) or 0 (different); also -1, true, false. The first line may be a header; anything after the
    label is ignored, so that a pairs_<name>.csv of an earlier verification can be read. allow_missing: leave out and
    count pairs with photos that the table lacks instead of raising InputError.
    """
    rows = _read_cells(file)
    if not rows:
        raise InputError(f"{file} has no pairs; give lines of path1 path2 label, label 1 (same) or 0")
    paths = np.array([row[:2] for _, row in rows], dtype=object)
    same = np.array([SAME[row[2].lower()] for _, row in rows])
    photo_rows = _rows_of(paths.ravel(), table).reshape(-1, 2)
    known = np.asarray((photo_rows >= 0).all(axis=1))
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


def _read_cells(file: Path) -> list[tuple[int, list[str]]]:
    """Read (line number, cells) of each line with a pair."""
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
    """Split by the separator that yields a label in the third cell, else by any that occurs, as in a header."""
    readers = (csv.reader([line], delimiter=separator, skipinitialspace=True) for separator in "\t;,")
    rows = [*([cell.strip() for cell in next(reader)] for reader in readers), line.split()]
    labelled = [row for row in rows if len(row) >= 3 and row[2].lower() in SAME]
    return next(iter(labelled or [row for row in rows if len(row) > 1]), rows[-1])


def _rows_of(paths: np.ndarray, table: Table) -> np.ndarray:
    """Return the rows of these photos, int64; -1 if the table lacks one."""
    known = set(table.rows["path"])
    below = [f"image/{path}" for path in paths]
    rows = find_rows(table, [inner if inner in known else path for path, inner in zip(paths, below, strict=True)])
    absent = np.flatnonzero(rows < 0)
    rows[absent] = find_rows(table, [below[i] for i in absent])
    return rows


def generate_pairs(table: Table, label: str, difficulty: str, num_pairs: int, seed: int) -> Pairs:
    """Draw num_pairs random pairs of the table's photos, half of them of the same class, in random order.

    difficulty, as in CompCars' lists (Yang et al. 2015): "easy": both from the same viewpoint, "medium": any two,
    "hard": those of different classes share the parent class (models of one make).

    All possible pairs are equally likely, so a class with many photos has more of them; no pair occurs twice, no photo
    is paired with itself. Photos of the same car (the table's group) may be paired: the question is the class, and in
    CompCars a group is a whole model year. Photos of unknown class or viewpoint are not used. If fewer pairs are
    possible, fewer are drawn, still half and half.

    Raises InputError if the data lack what the difficulty needs, or no pair is possible.
    """
    codes = table.rows[label].to_numpy().astype(np.int64)
    context, of_negatives = _contexts(table, label, difficulty)
    photos = np.flatnonzero((codes != UNKNOWN) & (context != UNKNOWN))
    # Sorted by context and class, the possible partners of a photo directly follow it: first those of its class, then
    # the others of its context. So the possible pairs can be numbered, and drawn by number.
    photos = photos[np.lexsort((codes[photos], of_negatives[photos], context[photos]))]
    end_of_class = _ends(np.stack([context[photos], of_negatives[photos], codes[photos]]))
    end_of_context = _ends(np.stack([context[photos], of_negatives[photos]]))
    after = np.arange(1, len(photos) + 1)
    positives, negatives = end_of_class - after, end_of_context - end_of_class
    half = min(num_pairs // 2, positives.sum(), negatives.sum())
    if half == 0:
        kind = "the same" if positives.sum() == 0 else "a different"
        raise InputError(f"{table.name}: its {len(table):,} photos have no {difficulty} pair of {kind} {label}")
    rng = np.random.default_rng([seed, DIFFICULTIES.index(difficulty)])
    same, other = _draw_positions(positives, after, half, rng), _draw_positions(negatives, end_of_class, half, rng)
    ends = rng.permuted(photos[np.concatenate([same, other], axis=1)], axis=0)  # random order within each pair
    order = rng.permutation(2 * half)
    return Pairs(ends[0, order], ends[1, order], np.repeat([True, False], half)[order])


def _contexts(table: Table, label: str, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two int64 (N,): photos of any pair agree in the first, those of different classes also in the second.

    All photos of a class have the same value of the second, so it does not restrict pairs of the same class.
    """
    nothing = np.zeros(len(table), dtype=np.int64)
    if difficulty == MEDIUM:
        return nothing, nothing
    if difficulty == EASY:
        if VIEWPOINT not in table.class_labels:
            raise InputError(f"{table.name}: no easy pairs: it has no label {VIEWPOINT}")
        return table.rows[VIEWPOINT].to_numpy().astype(np.int64), nothing
    classes = table.class_labels[label]
    if classes.parent is None:
        raise InputError(f"{table.name}: no hard pairs: its {label} has no parent label, such as a make")
    return nothing, np.array([*classes.parent_codes, UNKNOWN])[table.rows[label].to_numpy()]


def _ends(keys: np.ndarray) -> np.ndarray:
    """Return, for each column of the sorted keys (K, N), the index after the last column equal to it, int64 (N,)."""
    changes = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    bounds = np.append(changes, keys.shape[1])
    return bounds[np.searchsorted(bounds, np.arange(keys.shape[1]), side="right")]


def _draw_positions(counts: np.ndarray, starts: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw num distinct pairs of positions, int64 (2, num); the counts[i] positions from starts[i] can follow i."""
    ends = np.cumsum(counts)
    numbers = rng.choice(ends[-1], num, replace=False)
    first = np.searchsorted(ends, numbers, side="right")
    return np.stack([first, starts[first] + numbers - (ends - counts)[first]])


@dataclass(frozen=True)
class VerificationTask:
    """The pairs of a verification, all as rows of the table.

    tests: {difficulty: pairs}; lists: {difficulty: file}, of pairs that were not drawn. label: whose classes are
    compared. learned: bool (N,), the photos that methods may learn from, none of them in a test; train: pairs of these.
    """

    table: Table
    label: str
    tests: dict[str, Pairs]
    lists: dict[str, str]
    learned: np.ndarray
    train: Pairs

    @property
    def tested(self) -> np.ndarray:
        """Photos of the tests, bool (N,)."""
        return np.any([pairs.photo_mask(len(self.table)) for pairs in self.tests.values()], axis=0)


def choose_pairs(source: Source, options: argparse.Namespace) -> VerificationTask:
    """Read or draw the pairs. options: of carvision.verify. Raises InputError for missing labels, lists and photos."""
    data, split = source.chosen.data, options.split
    if options.pairs and split:
        raise InputError(f"--split: {split} applies to random pairs only; drop --split or --pairs")
    official = not options.pairs and not split and data["name"] in WITH_LISTS and options.label in (None, "model")
    if official and data["name"] == "compcars" and not has_pair_lists(data["root"]):
        log.warning("compcars: %s has no lists of pairs (train_test_split/verification): pairs are drawn", data["root"])
        official = False
    if official and options.train_split != "train":
        raise InputError(
            f"--train-split: {options.train_split}, and the lists of pairs of {data['name']} come with training photos "
            "alone; draw pairs with --split test, or leave --train-split out"
        )
    # Training photos are needed, too, so the table is split as for training
    table = _read_listed_photos(data) if official else source.read_table("train")
    label = table.class_label(options.label, "--label")
    files = pair_list_files(Path(table.root)) if official else {file.stem: file for file in options.pairs}
    if len(files) < len(options.pairs):
        raise InputError(f"--pairs: two of {' '.join(map(str, options.pairs))} have the same name; rename one")
    # For the official lists, their reader has already checked which photos may be missing
    tests = {name: read_pairs(file, table, official or data["allow_missing"]) for name, file in files.items()}
    tests = tests or _draw_pairs(select_split(table, split or "test"), table, label, options)
    learned = (table.rows["split"] == options.train_split) & (table.rows[label] != UNKNOWN)
    learned = learned.to_numpy() & ~np.any([pairs.photo_mask(len(table)) for pairs in tests.values()], axis=0)
    try:
        train = generate_pairs(table.select(learned), label, MEDIUM, NUM_TRAIN_PAIRS, options.seed)
    except InputError as error:
        raise InputError(
            f"{error}; thresholds are learned from {options.train_split} photos, see --train-split"
        ) from None
    lists = {name: str(file) for name, file in files.items()}
    return VerificationTask(table, label, tests, lists, learned, train.map_rows(np.flatnonzero(learned)))


def _read_listed_photos(data: ChosenData) -> Table:
    """Read the photos of CompCars' lists of pairs, or of the demo's, whose layout is the same."""
    boxes = data["crop_to_box"]
    if data["name"] == "demo":
        num = data["images_per_model"]
        folder = write_demo(Path(data["root"]) if data["root"] else demo_folder(images_per_model=num), num)
        return replace(read_compcars(folder, photos="verification", annotations=boxes, known=None), name="demo")
    return read_compcars(data["root"], allow_missing=data["allow_missing"], photos="verification", annotations=boxes)


def _draw_pairs(photos: Table, table: Table, label: str, options: argparse.Namespace) -> dict[str, Pairs]:
    """Draw pairs of `photos`, as rows of the table, of each difficulty that the data support."""
    rows = np.flatnonzero(table.rows["path"].isin(photos.rows["path"]))
    tests = {}
    for difficulty in DIFFICULTIES:
        try:
            pairs = generate_pairs(photos, label, difficulty, options.num_pairs, options.seed)
        except InputError as error:
            if difficulty == MEDIUM:  # needs nothing but classes
                raise InputError(f"{error}; choose other photos with --split, or give a list with --pairs") from None
            log.warning("%s; this difficulty is left out", error)
            continue
        if len(pairs) < options.num_pairs // 2 * 2:
            log.warning(
                "%s: only %s %s pairs instead of %s are possible, half of them of one %s",
                table.name, f"{len(pairs):,}", difficulty, f"{options.num_pairs:,}", label,
            )  # fmt: skip
        tests[difficulty] = pairs.map_rows(rows)
    return tests
