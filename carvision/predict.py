"""carvision predict RUN PHOTO...: a table of predicted classes, a row a photo. See --help."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from carvision.config.options import (
    add_device,
    add_photos,
    add_run,
    create_parser,
    log_to_stderr,
    run_of,
    whole_from,
    words_of,
)
from carvision.errors import drop_output, one_line_errors

if TYPE_CHECKING:
    from carvision.inference.rows import Row, TrueCodes
    from carvision.inference.run import Tally
    from carvision.inference.sources import Photo
    from carvision.reports.photos import Shot

log = logging.getLogger("carvision.predict")

HELP = """Predict the classes of photos with a trained model: a row a photo, in their
order.

  carvision predict runs/demo/2026-01-31_12-00-00 a.jpg b.jpg        CSV to standard output
  carvision predict RUN photos --out predictions.csv                 a folder of photos, and those below it
  carvision predict RUN photos --out predictions.parquet --probs     all probabilities, too
  find photos -name "*.jpg" | carvision predict RUN - --out predictions.jsonl --top 5
  carvision predict RUN --list RUN/splits.csv --split test --out test.csv --grid test.png

The output is FILE.partial until it is complete; if the command is killed, the
same one resumes where it stopped.
"""


def main() -> None:
    options = build_parser().parse_intermixed_args(words_of(None))
    log_to_stderr()
    logging.getLogger("carvision").setLevel(logging.INFO)
    with one_line_errors():
        try:
            tally = predict(options)
        except KeyboardInterrupt:
            log.info("stopped%s", "" if options.out is None else "; the same command resumes from here")
            raise
        except BrokenPipeError:  # by | head
            drop_output()
            return
    sys.exit(1 if tally.num_bad == tally.num_photos else 0)


def predict(options: argparse.Namespace) -> "Tally":
    """Write the table and the grid, and return the counts of photos."""
    # Imported here, as --help and a wrong option need neither torch nor pandas
    from carvision.inference.run import run

    tally, drawn = run(options)
    if options.grid is not None:
        draw_grid(options.grid, tally, drawn, by_class=options.grid_classes is not None)
    if options.out is not None:
        print(f"predict: {options.out}")
    if options.grid is not None:
        print(f"grid: {options.grid}", file=sys.stderr if options.out is None else sys.stdout)
    return tally


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser("predict", HELP)
    add = parser.add_argument
    add_run(parser)
    add_photos(parser, ", and the true classes")
    add("--out", type=Path, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet (default: CSV to stdout)")
    add("--overwrite", action="store_true", help="replace FILE")
    add("--top", type=whole_from(1), default=1, metavar="K", help="so many classes of each head (1)")
    add("--probs", action="store_true", help="the probabilities of all classes")
    add("--brief", action="store_true", help="only the path and the names")
    add("--true-from-folders", action="store_true", help="true classes are the names of photos' folders")
    add("--grid", type=Path, metavar="FILE.png", help="a picture of some photos and their predictions")
    add("--grid-photos", type=whole_from(1), metavar="N",
                    help="how many, at random (24; with --grid-classes of each class, 5)")  # fmt: skip
    add("--grid-classes", type=whole_from(1), metavar="N",
                    help="a row for each of N classes, at random (true ones, where they are known)")  # fmt: skip
    add("--ensemble", nargs="+", type=run_of, default=[], metavar="RUN", help="further runs, averaged with RUN")
    add("--tta", choices=("none", "flip", "crops", "flip_crops"), default="none",
                    help="average over views of each photo: mirrored, cropped, or both")  # fmt: skip
    add("--batch-size", type=whole_from(1), default=64, metavar="N", help="photos at a time (64)")
    add("--workers", type=whole_from(0), metavar="N", help="threads that decode photos")
    add_device(parser)
    add("--no-progress", action="store_true", help="no progress bar")
    return parser


def draw_grid(file: Path, tally: "Tally", drawn: list, by_class: bool) -> None:
    """Draw the photos and their predictions. drawn: as inference.run returns it; by_class: a list for each class."""
    from carvision.reports.photos import plot_predictions, plot_rows

    if by_class:
        plot_rows([[shot_of(tally, *row) for row in of_class] for of_class in drawn], file)
    else:
        plot_predictions([shot_of(tally, *row) for row in drawn], file)


def shot_of(tally: "Tally", photo: "Photo", codes: "TrueCodes", row: "Row") -> "Shot":
    """Return a photo of the grid, with a caption for each label."""
    from carvision.reports.photos import Caption

    captions = []
    for label, found in row.labels.items():
        if label not in tally.class_ids:
            captions.append(Caption(f"{label} {found:.4g}"))
            continue
        code = codes.get(label)
        right = None if code is None else tally.is_right(label, code, row)
        captions.append(Caption(found[0]["name"], found[0]["prob"], row.truth.get(label), right))
    return photo.file, photo.box, captions


if __name__ == "__main__":
    main()
