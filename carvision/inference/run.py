"""Predict the photos of a command line: check its options, write a row per photo, and report at the end."""

import argparse
import hashlib
import itertools
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from carvision.data.readers.walk import LeftOut
from carvision.data.table import BOX
from carvision.errors import InputError
from carvision.files.folders import refuse_foreign_picture
from carvision.files.progress import show_progress
from carvision.inference.known import SeenPhotos, TrueClasses, data_roots, root_of_list
from carvision.inference.model_file import load
from carvision.inference.predictor import Predictor, predict_items
from carvision.inference.rows import Layout, Row, TrueCodes, rows_of
from carvision.inference.sources import (
    Photo,
    Sources,
    check_sources,
    columns_of,
    count_photos,
    iterate_photos,
    require_photos,
)
from carvision.inference.writers import FileOutput, Output, StandardOutput, check_out
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

COUNT_SECONDS = 3  # to find out how many photos there are, for the progress bar
MAX_REASONS = 3  # unusable photos that are named at the end

Predicted = tuple[Photo, TrueCodes, Row]


def run(options: argparse.Namespace) -> tuple["Tally", list]:
    """Predict the photos that the options of the command carvision.predict ask for, and log the results' summary.

    Returns the counts, and what --grid draws: a list of Predicted; with --grid-classes one for each class. Raises
    InputError.
    """
    sources = Sources(tuple(options.photos), options.listed, options.root, options.split)
    check_options(options)
    check_sources(sources)
    keep_freed_memory()
    predictor = Predictor([load(run) for run in (options.run, *options.ensemble)], options.tta)
    sources = with_root(sources, predictor)
    columns = (columns_of(options.listed) or []) if options.listed else []
    truths = create_truths(predictor, columns, options.true_from_folders)
    heads = tuple(truths.heads)
    layout = Layout(predictor.class_ids, predictor.labels, options.top, options.brief, options.probs, heads)
    tally, sample = Tally(predictor.class_ids, options.brief), create_sample(options, predictor)
    seen_photos = create_seen_photos(options, sources.root, predictor, truths)

    def add(photo: Photo, codes: TrueCodes, row: Row) -> None:
        tally.add(photo, codes, row)
        seen_photos.add(photo)
        if options.grid and not row.error:
            sample.add(photo, codes, row)

    uses_boxes = choose_boxes(predictor, BOX[0] in columns)
    left_out = LeftOut()
    photos = require_photos(iterate_photos(sources, heads, left_out), sources)
    photos = photos if uses_boxes else (photo._replace(box=None) for photo in photos)
    output = begin_output(options, predictor, layout, {"--root": sources.root, "boxes": uses_boxes})
    try:
        for found in done_photos(photos, output, truths):
            add(*found)
        if tally.num_photos:
            log.info("resuming after %s photos", f"{tally.num_photos:,}")
        with progress_bar(options, sources, tally.num_photos) as advance:
            for batch in predict_photos(predictor, photos, layout, truths, options):
                output.write([row for _, _, row in batch])
                for found in batch:
                    add(*found)
                advance(len(batch))
        output.finish()
    finally:
        output.close()
    if line := left_out.line():
        log.info("%s", line)
    if uses_boxes and tally.num_without_box:
        log.info("%s photos have no box: the whole photo was used", f"{tally.num_without_box:,}")
    for line in [*truths.lines(), *seen_photos.lines(), *tally.lines()]:
        log.info("%s", line)
    return tally, sample.chosen()


def check_options(options: argparse.Namespace) -> None:
    """Raise InputError for options that do not fit together, or files that must not be written."""
    if options.out is not None:
        check_out(options.out, options.overwrite)
    if options.grid is not None:
        if not options.overwrite:
            refuse_foreign_picture(options.grid, "--grid")
        if options.grid.suffix.lower() != ".png" or options.grid.is_dir():
            raise InputError(f"--grid: {options.grid} is not the name of a picture, such as grid.png")
    elif options.grid_classes is not None:
        raise InputError("--grid-classes: needs a picture; give --grid FILE.png, too")
    if options.brief and (options.probs or options.top > 1):
        raise InputError("--brief gives names only; leave it out, or --probs and --top")


def with_root(sources: Sources, predictor: Predictor) -> Sources:
    """Return the sources with the folder that a list's paths are relative to, if the sources do not give it."""
    if sources.root is not None or sources.list_path is None or sources.from_stdin:
        return sources
    listed = iterate_photos(Sources(list_path=sources.list_path, split=sources.split))
    root = root_of_list(sources.list_path, listed, predictor.about["config"])
    if root is not None:
        log.info("--root: %s, the data root of the run", root)
    return replace(sources, root=root)


def create_truths(predictor: Predictor, columns: list[str], from_folders: bool) -> TrueClasses:
    """Return the true classes of the heads that the list has a column of, or of all heads if folders name them."""
    heads = [head for head in predictor.class_ids if from_folders or head in columns]
    against_rest = predictor.about["config"].get("data", {}).get("one_against_rest") is not None
    rest = {head: 1 for head in heads if against_rest and predictor.class_ids[head][1:] in (["rest"], ["not rest"])}
    return TrueClasses(predictor.class_ids, predictor.classes, predictor.parents, heads, from_folders, rest)


def create_seen_photos(
    options: argparse.Namespace, root: Path | None, predictor: Predictor, truths: TrueClasses
) -> SeenPhotos:
    """Return the detector of photos that the runs were trained on; empty without a list or true classes, as other
    photos are unlikely to be theirs."""
    runs = [Path(run) for run in (options.run, *options.ensemble) if truths.heads or options.listed]
    roots = [path for path in map(Path, options.photos) if path.is_dir()] + ([root] if root else [])
    for model in predictor.models:
        roots += data_roots(model.about["config"])
    return SeenPhotos([run if run.is_dir() else run.parent for run in runs], roots)


def create_sample(options: argparse.Namespace, predictor: Predictor) -> "ReservoirSample | ClassSample":
    """Return the sample of rows that --grid draws."""
    if options.grid_classes is None:
        return ReservoirSample(options.grid_photos or 24)
    if not predictor.class_ids:
        raise InputError("--grid-classes: no head of this model has classes; leave it out")
    return ClassSample(options.grid_classes, options.grid_photos or 5, list(predictor.class_ids)[-1])


def choose_boxes(predictor: Predictor, has_boxes: bool) -> bool:
    """Return whether the list's boxes are used: if it has some, and the model was trained on boxes."""
    if predictor.crop_to_box and not has_boxes:
        log.warning(
            "the model was trained on the boxes of its photos, and whole photos are used: accuracy may be lower; a "
            "table given with --list may have boxes in its columns left, top, right, bottom"
        )
    elif has_boxes and not predictor.crop_to_box:
        log.info("the list's boxes are ignored, as the model was trained on whole photos")
    return predictor.crop_to_box and has_boxes


def begin_output(options: argparse.Namespace, predictor: Predictor, layout: Layout, reading: dict) -> Output:
    """Open the output, with all settings that determine its rows. reading: "--root", or None, and "boxes"."""
    if options.out is None:
        return StandardOutput(layout)
    classes = {head: {"ids": ids, "names": predictor.classes[head]} for head, ids in predictor.class_ids.items()}
    settings = model_settings(predictor.models)
    settings |= {f"--{name}": getattr(options, name) for name in ("tta", "top", "brief", "probs")}
    settings["--batch-size"] = options.batch_size  # a photo's last digits depend on the others in its batch
    settings["--root"] = os.path.abspath(reading["--root"] or ".")  # noqa: PTH100  as it is, links and all
    settings |= {"boxes": reading["boxes"], "columns": list(layout.columns)}
    return FileOutput(options.out, layout, classes, settings, options.overwrite, options.batch_size)


def model_settings(models) -> dict:
    """Return the models' properties that determine the rows of an output; label descriptions as a hash."""
    settings = {"weights": [model.about["sha256"] for model in models]}
    for number, model in enumerate(models, 1):
        of = f" of model {number}" if len(models) > 1 else ""
        labels = json.dumps(model.about["labels"], sort_keys=True).encode()
        settings |= {f"decoding{of}": model.about["decoding"], f"labels{of}": hashlib.sha256(labels).hexdigest()[:16]}
        settings |= {f"temperature of {head}{of}": value for head, value in model.temperature.items()}
        settings |= {f"preprocessing {name}{of}": value for name, value in model.preprocessing.as_dict().items()}
    return settings


def progress_bar(
    options: argparse.Namespace, sources: Sources, done: int
) -> AbstractContextManager[Callable[[int], None]]:
    """Return the progress: a bar on a terminal that does not also show the rows."""
    rows_on_screen = options.out is None and sys.stdout.isatty()
    bar = sys.stderr.isatty() and not options.no_progress and not rows_on_screen
    return show_progress(count_photos(sources, COUNT_SECONDS) if bar else None, done, bar)


def done_photos(photos: Iterator[Photo], output: Output, truths: TrueClasses) -> Iterator[Predicted]:
    """Consume and yield the photos that the unfinished output already has.

    Raises InputError if its rows belong to other photos.
    """
    for number, row in enumerate(output.rows(), 1):
        photo = next(photos, None)
        if photo is None or photo.path != row.path:
            now = "there are no more photos" if photo is None else f"now it is {photo.path}"
            raise InputError(
                f"the unfinished output has {row.path} as photo {number:,}, and {now}; give the same photos in "
                "the same order, or another --out"
            )
        yield photo, truths.codes(photo), row


def predict_photos(
    predictor: Predictor, photos: Iterator[Photo], layout: Layout, truths: TrueClasses, options: argparse.Namespace
) -> Iterator[list[Predicted]]:
    """Yield the photos with their rows, batch by batch, in order."""
    photos, ahead = itertools.tee(photos)
    items = ((photo.file, photo.box) for photo in ahead)
    for batch in predict_items(predictor, items, options.device, options.batch_size, options.workers):
        taken = list(itertools.islice(photos, len(batch.items)))
        true_codes = [truths.codes(photo) for photo in taken]
        rows = rows_of(predictor, layout, [photo.path for photo in taken], true_codes, batch.logits, batch.reasons)
        yield list(zip(taken, true_codes, rows, strict=True))


class Tally:
    """Counts over the output's rows. class_ids: {head: list} in the order of the codes. brief: see Layout."""

    def __init__(self, class_ids: dict[str, list[str]], brief: bool = False):
        self.class_ids, self.brief = class_ids, brief
        self.num_photos = self.num_bad = self.num_without_box = 0
        self.first_bad: list[str] = []
        self.num_right = dict.fromkeys(class_ids, 0)
        self.num_judged = dict.fromkeys(class_ids, 0)

    def add(self, photo: Photo, codes: TrueCodes, row: Row) -> None:
        """Count a photo."""
        self.num_photos += 1
        self.num_without_box += photo.box is None
        if row.error:
            self.num_bad += 1
            if len(self.first_bad) < MAX_REASONS:
                self.first_bad.append(f"{photo.path}: {row.error}")
            return
        for head, code in codes.items():
            if code is not None:
                self.num_judged[head] += 1
                self.num_right[head] += self.is_right(head, code, row)

    def is_right(self, head: str, code: int, row: Row) -> bool:
        """Return whether the prediction is the class of that code."""
        return row.labels[head][0]["id"] == self.class_ids[head][code]

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
        """Return the items added for each sampled row, in order."""
        return [what for _, *what in sorted(self.kept.values(), key=lambda kept: kept[0])]


class ClassSample:
    """A random sample of classes, with `size` sampled rows each: report R4's ten classes with five photos each.

    head: whose true class groups the rows or, if unknown, its predicted class.
    """

    def __init__(self, num_classes: int, size: int, head: str, seed: int = 0):
        self.num_classes, self.size, self.head, self.seed = num_classes, size, head, seed
        self.of_class: dict[str, ReservoirSample] = {}

    def add(self, photo: Photo, codes: TrueCodes, row: Row) -> None:
        code = codes.get(self.head)
        key = row.labels[self.head][0]["name"] if code is None else f"#{code:09d}"
        sample = self.of_class.setdefault(key, ReservoirSample(self.size, f"{self.seed} {key}"))
        sample.add(photo, codes, row)

    def chosen(self) -> list[list[list]]:
        """Return a list of sampled rows for each sampled class."""
        keys = sorted(self.of_class)
        drawn = random.Random(self.seed).sample(keys, min(self.num_classes, len(keys)))
        return [self.of_class[key].chosen() for key in sorted(drawn)]
