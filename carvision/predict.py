"""python -m carvision.predict RUN PHOTO...: a table of predicted classes, a row a photo. See --help.

Its import takes the place of the function carvision.predict, so the module can be called as that function is.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from carvision.config.overrides import expand_options
from carvision.errors import InputError, drop_output, one_line_errors

log = logging.getLogger("carvision.predict")

COUNT_SECONDS = 3  # for finding out how many photos there are, for the progress bar
HELP = """Predict the classes of photos with a trained model: a row a photo, in their order.

  python -m carvision.predict runs/demo/2026-01-31_12-00-00 a.jpg b.jpg        CSV to standard output
  python -m carvision.predict RUN photos --out predictions.csv                 a folder of photos, and those below it
  python -m carvision.predict RUN photos --out predictions.parquet --probs     all probabilities, too
  find photos -name "*.jpg" | python -m carvision.predict RUN - --out predictions.jsonl --top 5
  python -m carvision.predict RUN --list RUN/splits.csv --split test --out test.csv --grid test.png

The output stands in FILE.partial until it is whole; the same command again goes on where a killed one ended.
"""


class CallableModule(ModuleType):
    """A module that is called as the function carvision.predict is."""

    def __call__(self, model, photos, **options):
        from carvision.inference import in_process

        return in_process.predict(model, photos, **options)


def main() -> None:
    # Read by OpenMP when torch is imported, which is later: threads that wait sleep, instead of keeping the cores busy
    # that the photo readers need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = parser().parse_intermixed_args(expand_options(sys.argv[1:]))
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("carvision").setLevel(logging.INFO)
    with one_line_errors():
        try:
            num_photos, num_bad = predict(options)
        except KeyboardInterrupt:
            log.info("stopped%s", "" if options.out is None else "; the same command again goes on from here")
            raise
        except BrokenPipeError:  # by | head
            drop_output()
            return
    sys.exit(1 if num_bad == num_photos else 0)


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        "python -m carvision.predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    it.add_argument("run", metavar="RUN", help="the folder of a finished run, or its model.safetensors")
    it.add_argument("photos", nargs="*", metavar="PHOTO", help="photos, folders, or - for a path a line from a pipe")
    it.add_argument("--list", type=Path, metavar="FILE", dest="listed", help="a path a line; or a .csv, .tsv, .parquet "
                    "with a column path, perhaps left, top, right, bottom (a box), and the true classes")  # fmt: skip
    it.add_argument("--root", type=Path, metavar="DIR", help="what relative paths of a list are relative to "
                    "(default: of a run's splits.csv its data root, else the current folder)")  # fmt: skip
    it.add_argument("--split", metavar="NAME", help="only the rows of the table that have this in their column split")
    it.add_argument("--out", type=Path, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet (default: CSV to stdout)")
    it.add_argument("--overwrite", action="store_true", help="replace FILE")
    it.add_argument("--top", type=number_from(1), default=1, metavar="K", help="so many classes of each head (1)")
    it.add_argument("--probs", action="store_true", help="the probabilities of all classes")
    it.add_argument("--brief", action="store_true", help="only the path and the names")
    it.add_argument("--true-from-folders", action="store_true", help="true classes are the names of photos' folders")
    it.add_argument("--grid", type=Path, metavar="FILE.png", help="a picture of some photos and their predictions")
    it.add_argument("--grid-photos", type=number_from(1), metavar="N",
                    help="how many, at random (24; with --grid-classes of each class, 5)")  # fmt: skip
    it.add_argument("--grid-classes", type=number_from(1), metavar="N",
                    help="a row for each of N classes, at random (true ones, where they are known)")  # fmt: skip
    it.add_argument("--ensemble", nargs="+", default=[], metavar="RUN", help="further runs, averaged with RUN")
    it.add_argument("--tta", choices=("none", "flip", "crops", "flip_crops"), default="none",
                    help="average over views of each photo: mirrored, cropped, or both")  # fmt: skip
    it.add_argument("--batch-size", type=number_from(1), default=64, metavar="N", help="photos at a time (64)")
    it.add_argument("--workers", type=number_from(0), metavar="N", help="processes that decode photos")
    it.add_argument("--device", default="auto", help="auto, cpu, cuda, xla, ... (auto: a GPU where there is one)")
    it.add_argument("--no-progress", action="store_true", help="no progress bar")
    return it


def number_from(low: int):
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low}")
        return int(text)

    return number


def predict(options: argparse.Namespace) -> tuple[int, int]:
    """How many photos there were, and how many of them could not be used."""
    # Only now: --help and a wrong option wait for neither torch nor pandas.
    from carvision.data.walk import LeftOut
    from carvision.inference.rows import Layout
    from carvision.inference.run import Tally, predict_photos, skip_done
    from carvision.inference.sources import Sources, check_sources, iterate_photos, require_photos
    from carvision.inference.writers import open_output
    from carvision.system.runtime import keep_freed_memory

    sources = Sources(tuple(options.photos), options.listed, options.root, options.split)
    check_options(options)
    check_sources(sources)
    keep_freed_memory()
    predictor = load_predictor([options.run, *options.ensemble], options.tta)
    sources = with_root(sources, options, predictor)
    truths = true_classes(predictor, options)
    layout = Layout(options.top, options.brief, options.probs, tuple(truths.heads))
    tally = Tally(predictor.labels, predictor.class_ids, predictor.classes, options.brief)
    sample = create_sample(options, predictor)

    seen_photos = create_seen_photos(options, predictor, truths)

    def seen(photo, truth, row):
        tally.add(photo, truth, row)
        seen_photos.add(photo)
        if options.grid and not tally.is_bad(row):
            sample.add(photo, truth, row)

    uses_boxes = look_at_boxes(predictor, options.listed)
    left_out = LeftOut()
    photos = require_photos(iterate_photos(sources, truths.heads, left_out), sources)
    photos = photos if uses_boxes else (photo._replace(box=None) for photo in photos)
    columns = layout.columns(predictor.class_ids, predictor.labels)
    classes = {head: {"ids": ids, "names": predictor.classes[head]} for head, ids in predictor.class_ids.items()}
    settings = {**settings_of_models(predictor.models), **settings_path(options), "boxes": uses_boxes}
    settings["columns"] = list(columns)
    output = open_output(options.out, columns, classes, settings, options.overwrite, options.batch_size)
    try:
        if done := skip_done(photos, output, truths, seen):
            log.info("going on after %s photos", f"{done:,}")
        with progress(options, sources, done) as advance:
            predict_photos(
                predictor, photos, output, layout, truths, seen, advance,
                device=options.device, batch_size=options.batch_size, num_workers=options.workers,
            )  # fmt: skip
        output.finish()
    finally:
        output.close()
    finish(options, tally, truths, seen_photos, left_out.line(), sample, uses_boxes)
    return tally.num_photos, tally.num_bad


def check_options(options: argparse.Namespace) -> None:
    from carvision.files.folders import refuse_foreign_picture
    from carvision.inference.writers import check_suffix, refuse_existing

    if options.out is not None:
        check_suffix(options.out)
        refuse_existing(options.out, options.overwrite)
    if options.grid is not None and not options.overwrite:
        refuse_foreign_picture(options.grid, "--grid")
    if options.grid is not None and (options.grid.suffix.lower() != ".png" or options.grid.is_dir()):
        raise InputError(f"--grid: {options.grid} is not the name of a picture, such as grid.png")
    if options.grid_classes is not None and options.grid is None:
        raise InputError("--grid-classes: is of a picture; give --grid FILE.png, too")
    if options.brief and (options.probs or options.top > 1):
        raise InputError("--brief gives names only; leave it out, or --probs and --top")


def load_predictor(runs: list[str], tta: str):
    import carvision
    from carvision.inference.predictor import Predictor

    return Predictor([carvision.load(run) for run in runs], tta)


def with_root(sources, options: argparse.Namespace, predictor):
    """The sources, and options.root, with what a list's paths are relative to, where --root does not say it."""
    from carvision.inference.known import root_of_list
    from carvision.inference.sources import Sources, iterate_photos

    if sources.root is not None or sources.list_path is None or sources.from_stdin:
        return sources
    listed = iterate_photos(Sources(list_path=sources.list_path, split=sources.split))
    options.root = root_of_list(sources.list_path, listed, predictor.about["config"])
    if options.root is not None:
        log.info("--root: %s, the data root of the run", options.root)
    return replace(sources, root=options.root)


def create_seen_photos(options: argparse.Namespace, predictor, truths):
    """Of the runs, where photos of a data set are likely: with a list, or with true classes."""
    from carvision.inference.known import SeenPhotos, data_roots

    runs = [Path(run) for run in (options.run, *options.ensemble) if truths.heads or options.listed]
    given = [Path(path) for path in options.photos if Path(path).is_dir()]
    roots = [*given, *([options.root] if options.root else [])]
    for model in predictor.models:
        roots += data_roots(model.about["config"])
    return SeenPhotos([run if run.is_dir() else run.parent for run in runs], roots)


def settings_of_models(models) -> dict:
    """What of the models makes the rows of an unfinished output what they are; the label descriptions as a hash."""
    settings = {"weights": [model.about["sha256"] for model in models]}
    for number, model in enumerate(models, 1):
        of = f" of model {number}" if len(models) > 1 else ""
        labels = json.dumps(model.about["labels"], sort_keys=True).encode()
        settings |= {f"decoding{of}": model.about["decoding"], f"labels{of}": hashlib.sha256(labels).hexdigest()[:16]}
        settings |= {f"temperature of {head}{of}": value for head, value in model.temperature.items()}
        settings |= {f"preprocessing {name}{of}": value for name, value in model.preprocessing.as_dict().items()}
    return settings


def settings_path(options: argparse.Namespace) -> dict:
    """What of the command does; --batch-size, as the last digits of a photo depend on which others are in its batch."""
    settings = {f"--{name}": getattr(options, name) for name in ("tta", "top", "brief", "probs")}
    settings["--batch-size"] = options.batch_size
    return settings | {"--root": os.path.abspath(options.root or ".")}  # noqa: PTH100  as it is, links and all


def true_classes(predictor, options: argparse.Namespace):
    """Of the heads that the list has a column of, or of all, where folders are named by them."""
    from carvision.inference.known import TrueClasses
    from carvision.inference.sources import columns_of

    there = (columns_of(options.listed) or []) if options.listed else []
    heads = [head for head in predictor.class_ids if options.true_from_folders or head in there]
    data = predictor.about.get("config", {}).get("data", {})
    against_rest = data.get("one_against_rest") is not None
    rest = {head: 1 for head in heads if against_rest and predictor.class_ids[head][1:] in (["rest"], ["not rest"])}
    return TrueClasses(
        predictor.class_ids, predictor.classes, predictor.parents, heads, options.true_from_folders, rest
    )


def look_at_boxes(predictor, listed: Path | None) -> bool:
    """Whether the list's boxes are used: by a model that was trained on boxes."""
    from carvision.inference.sources import has_boxes

    boxes = listed is not None and has_boxes(listed)
    if predictor.crop_to_box and not boxes:
        log.warning(
            "the model was trained on the boxes of its photos and now looks at whole photos, which it may know less "
            "well; a table given with --list may have them in its columns left, top, right, bottom"
        )
    elif boxes and not predictor.crop_to_box:
        log.info("the list's boxes are not looked at, as the model was trained on whole photos")
    return bool(predictor.crop_to_box) and boxes


def progress(options: argparse.Namespace, sources, done: int):
    from carvision.files.progress import show_progress
    from carvision.inference.sources import count_photos

    rows_on_screen = options.out is None and sys.stdout.isatty()
    bar = sys.stderr.isatty() and not options.no_progress and not rows_on_screen
    return show_progress(count_photos(sources, COUNT_SECONDS) if bar else None, done, bar)


def finish(options: argparse.Namespace, tally, truths, seen_photos, left_out: str, sample, uses_boxes: bool) -> None:
    """What was left to say and to draw."""
    if left_out:
        log.info("%s", left_out)
    if uses_boxes and tally.num_without_box:
        log.info("%s photos have no box and were looked at as a whole", f"{tally.num_without_box:,}")
    for line in [*truths.lines(), *seen_photos.lines(), *tally.lines()]:
        log.info("%s", line)
    if options.grid is not None:
        draw_grid(options.grid, tally, sample.chosen(), by_class=options.grid_classes is not None)
    if options.out is not None:
        print(f"predict: {options.out}")
    if options.grid is not None:
        print(f"grid: {options.grid}", file=sys.stderr if options.out is None else sys.stdout)


def create_sample(options: argparse.Namespace, predictor):
    """What of the photos is drawn for --grid."""
    from carvision.inference.run import ClassSample, ReservoirSample

    if options.grid_classes is None:
        return ReservoirSample(options.grid_photos or 24)
    if not predictor.class_ids:
        raise InputError("--grid-classes: no head of this model has classes; leave it out")
    return ClassSample(options.grid_classes, options.grid_photos or 5, list(predictor.class_ids)[-1])


def draw_grid(file: Path, tally, chosen: list[list], by_class: bool) -> None:
    """chosen: of each photo the Photo, its true classes and its row; by_class: a list of them for each class."""
    from carvision.reports.photos import plot_predictions, plot_rows

    if by_class:
        plot_rows([[shot_of(tally, *drawn) for drawn in of_class] for of_class in chosen], file)
    else:
        plot_predictions([shot_of(tally, *drawn) for drawn in chosen], file)


def shot_of(tally, photo, truth: dict, row: dict):
    from carvision.reports.photos import Caption

    captions = []
    for label in tally.labels:
        if label not in tally.class_ids:
            captions.append(Caption(f"{label} {float(row[label]):.4g}"))
            continue
        code, prob = truth.get(label), row.get(f"{label}_prob")
        known = (tally.class_names[label][code], tally.is_right(label, code, row)) if code is not None else ()
        captions.append(Caption(row[label], None if prob is None else float(prob), *known))
    return photo.file, photo.box, captions


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = CallableModule
