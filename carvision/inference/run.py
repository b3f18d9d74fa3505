"""Predict photos batch by batch into the output, and summarise what was predicted."""

import random
from collections import deque
from collections.abc import Callable, Iterator

from carvision.errors import InputError
from carvision.inference.known import TrueClasses
from carvision.inference.predictor import Predictor, predict_items
from carvision.inference.rows import Layout, Truth, rows_of
from carvision.inference.sources import Photo
from carvision.inference.writers import Output

# Summarise a finished prediction: unusable photos and accuracy, and random samples of its rows.

MAX_REASONS = 3


class Tally:
    """Counts over the output's rows.

    labels: of all heads; class_ids, class_names: {head: list} in the order of the codes. brief: the output has no
    column error.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        class_ids: dict[str, list[str]],
        class_names: dict[str, list[str]],
        brief: bool = False,
    ):
        self.labels, self.class_ids, self.class_names, self.brief = labels, class_ids, class_names, brief
        self.num_photos = self.num_bad = self.num_without_box = 0
        self.first_bad: list[str] = []
        self.num_right = dict.fromkeys(class_ids, 0)
        self.num_judged = dict.fromkeys(class_ids, 0)

    def add(self, photo: Photo, truth: Truth, row: dict) -> None:
        """Count a photo. row: from rows_of, or read back from the unfinished output."""
        self.num_photos += 1
        self.num_without_box += photo.box is None
        if self.is_bad(row):
            self.num_bad += 1
            if len(self.first_bad) < MAX_REASONS:
                reason = row.get("error")  # missing from a brief row that was read back
                self.first_bad.append(f"{photo.path}: {reason}" if reason else photo.path)
            return
        for head, code in truth.items():
            if code is not None:
                self.num_judged[head] += 1
                self.num_right[head] += self.is_right(head, code, row)

    def is_bad(self, row: dict) -> bool:
        """Return whether the photo was unusable: by its error or, without that column, by all cells being empty.

        In text, a class with an empty name has an empty cell, too, and does not count as missing.
        """
        if "error" in row:
            return bool(row["error"])
        return all(
            row.get(label) is None or (row[label] == "" and "" not in self.class_names.get(label, ()))
            for label in self.labels
        )

    def is_right(self, head: str, code: int, row: dict) -> bool:
        """Return whether the prediction is correct: by id, or by name if the row has no ids."""
        id_ = row.get(f"{head}_id")
        return row[head] == self.class_names[head][code] if id_ is None else id_ == self.class_ids[head][code]

    def lines(self) -> list[str]:
        """Return the lines to print at the end: unusable photos, and the accuracy of each head whose truth is known."""
        lines = []
        if self.num_bad:
            more = [f"and {self.num_bad - MAX_REASONS:,} more"] if self.num_bad > MAX_REASONS else []
            where = "without --brief, the column error has the reasons" if self.brief else "see the column error"
            lines.append(f"{self.num_bad:,} of {self.num_photos:,} photos could not be used; {where}")
            lines += [f"  {text}" for text in [*self.first_bad, *more]]
        judged = [
            f"{head} {100 * self.num_right[head] / num:.1f} % of {num:,}"
            for head, num in self.num_judged.items()
            if num
        ]
        return lines + ([f"right: {', '.join(judged)}"] if judged else [])


class ReservoirSample:
    """A uniform random sample of the added rows, in their order (algorithm R, Vitter 1985).

    The same rows give the same sample, also when a command was interrupted and resumed.
    """

    def __init__(self, size: int, seed: int | str = 0):
        self.size, self.random, self.num_seen = size, random.Random(seed), 0
        self.kept: dict[int, tuple] = {}  # slot in the sample -> (number of the row, what was added)

    def add(self, *item) -> None:
        slot = self.num_seen if self.num_seen < self.size else self.random.randrange(self.num_seen + 1)
        if slot < self.size:
            self.kept[slot] = (self.num_seen, *item)
        self.num_seen += 1

    def chosen(self) -> list[list]:
        """Return what was added for each sampled row, in order."""
        return [what for _, *what in sorted(self.kept.values(), key=lambda kept: kept[0])]


class ClassSample:
    """A random sample of classes, with `size` sampled rows each: report R4's ten classes with five photos each.

    head: whose true class groups the rows or, if unknown, its predicted class.
    """

    def __init__(self, num_classes: int, size: int, head: str, seed: int = 0):
        self.num_classes, self.size, self.head, self.seed = num_classes, size, head, seed
        self.of_class: dict[str, ReservoirSample] = {}

    def add(self, photo: Photo, truth: Truth, row: dict) -> None:
        code = truth.get(self.head)
        key = str(row[self.head]) if code is None else f"#{code:09d}"
        sample = self.of_class.setdefault(key, ReservoirSample(self.size, f"{self.seed} {key}"))
        sample.add(photo, truth, row)

    def chosen(self) -> list[list[list]]:
        """Return a list of sampled rows for each sampled class."""
        keys = sorted(self.of_class)
        drawn = random.Random(self.seed).sample(keys, min(self.num_classes, len(keys)))
        return [self.of_class[key].chosen() for key in sorted(drawn)]


# Send photos through the network to the output, batch by batch.

OnRow = Callable[[Photo, Truth, dict], None]  # called with each photo, its true classes and its row


def skip_done(photos: Iterator[Photo], output: Output, truths: TrueClasses, on_row: OnRow) -> int:
    """Consume the photos that the unfinished output already has, and return their number.

    Raises InputError if its rows belong to other photos.
    """
    done = 0
    for row in output.rows():
        photo = next(photos, None)
        if photo is None or photo.path != row["path"]:
            now = "there are no more photos" if photo is None else f"now it is {photo.path}"
            raise InputError(
                f"the unfinished output has {row['path']} as photo {done + 1:,}, and {now}; give the same photos in "
                "the same order, or another --out"
            )
        on_row(photo, truths.codes(photo), row)
        done += 1
    return done


def predict_photos(
    predictor: Predictor, photos: Iterator[Photo], output: Output, layout: Layout, truths: TrueClasses, on_row: OnRow,
    advance: Callable[[int], None], **reading,
) -> None:  # fmt: skip
    """Write one row per photo, in order.

    advance: called with the number of photos of each batch. reading: keyword arguments of predict_items.
    """
    waiting: deque[Photo] = deque()  # requested ahead by the workers

    def items():
        for photo in photos:
            waiting.append(photo)
            yield photo.file, photo.box

    for batch in predict_items(predictor, items(), **reading):
        taken = [waiting.popleft() for _ in batch.items]
        known = [truths.codes(photo) for photo in taken]
        rows = rows_of(predictor, layout, taken, known, batch.logits, batch.reasons)
        output.write(rows)
        for photo, truth, row in zip(taken, known, rows, strict=True):
            on_row(photo, truth, row)
        advance(len(rows))
