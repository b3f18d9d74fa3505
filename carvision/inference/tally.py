"""What is said when all photos are done: how many could not be used, how often the prediction was right."""

import random

from carvision.inference.inputs import Photo
from carvision.inference.rows import Truth

MAX_REASONS = 3


class Tally:
    """Counts over the rows. labels: of all heads; class_ids, class_names: {head: list} in the order of the codes.
    brief: the output has no column error."""

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
        """row: of rows_of, or as it was read again from the unfinished output."""
        self.num_photos += 1
        self.num_without_box += photo.box is None
        if self.is_bad(row):
            self.num_bad += 1
            if len(self.first_bad) < MAX_REASONS:
                reason = row.get("error")  # not known of a brief row that was read again
                self.first_bad.append(f"{photo.path}: {reason}" if reason else photo.path)
            return
        for head, code in truth.items():
            if code is not None:
                self.num_judged[head] += 1
                self.num_right[head] += self.is_right(head, code, row)

    def is_bad(self, row: dict) -> bool:
        """Whether the photo could not be used: by its error; where there is none to read, by cells that are all empty.

        In text an empty cell is also how a class without a name is written, and is taken for that.
        """
        if "error" in row:
            return bool(row["error"])
        return all(
            row.get(label) is None or (row[label] == "" and "" not in self.class_names.get(label, ()))
            for label in self.labels
        )

    def is_right(self, head: str, code: int, row: dict) -> bool:
        """By id; by name where the row has no ids."""
        id_ = row.get(f"{head}_id")
        return row[head] == self.class_names[head][code] if id_ is None else id_ == self.class_ids[head][code]

    def lines(self) -> list[str]:
        """What is worth saying at the end."""
        lines = []
        if self.num_bad:
            more = [f"and {self.num_bad - MAX_REASONS:,} more"] if self.num_bad > MAX_REASONS else []
            where = "without --brief, the column error says why" if self.brief else "see the column error"
            lines.append(f"{self.num_bad:,} of {self.num_photos:,} photos could not be used; {where}")
            lines += [f"  {text}" for text in [*self.first_bad, *more]]
        judged = [
            f"{head} {100 * self.num_right[head] / num:.1f} % of {num:,}"
            for head, num in self.num_judged.items()
            if num
        ]
        return lines + ([f"right: {', '.join(judged)}"] if judged else [])


class ReservoirSample:
    """A random choice of so many of the rows that pass by, each equally likely (algorithm R, Vitter 1985), in order.

    The same rows give the same choice, also where a command was broken off and continued.
    """

    def __init__(self, size: int, seed: int | str = 0):
        self.size, self.random, self.num_seen = size, random.Random(seed), 0
        self.kept: dict[int, tuple] = {}  # place in the sample -> (number of the row, what was added)

    def add(self, *item) -> None:
        slot = self.num_seen if self.num_seen < self.size else self.random.randrange(self.num_seen + 1)
        if slot < self.size:
            self.kept[slot] = (self.num_seen, *item)
        self.num_seen += 1

    def chosen(self) -> list[list]:
        return [what for _, *what in sorted(self.kept.values(), key=lambda kept: kept[0])]


class ClassSample:
    """So many classes at random, and of each a Sample of `size` rows: report R4's ten classes with five photos each.

    head: whose true class counts, or where that is not known the predicted one.
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
        """A list for each class."""
        keys = sorted(self.of_class)
        drawn = random.Random(self.seed).sample(keys, min(self.num_classes, len(keys)))
        return [self.of_class[key].chosen() for key in sorted(drawn)]
