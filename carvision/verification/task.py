"""Choose the pairs to verify: those the command line names, those of the data set's lists, or random ones."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from carvision.data.compcars import has_pair_lists, pair_lists, read_compcars
from carvision.data.demo import demo_folder, write_demo
from carvision.data.table import UNKNOWN, Table
from carvision.embedding.source import Source
from carvision.errors import InputError
from carvision.evaluation.photos import select_split
from carvision.verification.pairs import DIFFICULTIES, MEDIUM, Pairs, generate_pairs, read_pairs

log = logging.getLogger(__name__)

WITH_LISTS = ("compcars", "demo")  # data sets with official lists of pairs
NUM_TRAIN_PAIRS = 10_000


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


def read_task(source: Source, options: argparse.Namespace) -> VerificationTask:
    """Read or draw the pairs. options: of carvision.verify. Raises InputError for missing labels, lists and photos."""
    data, split = source.chosen.data, options.split
    if options.pairs and split:
        raise InputError(f"--split: {split} chooses the photos of drawn pairs, and --pairs gives others; leave one out")
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
    files = pair_lists(table.root) if official else {file.stem: file for file in options.pairs}
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


def _read_listed_photos(data: dict) -> Table:
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
