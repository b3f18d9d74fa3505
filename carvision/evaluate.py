"""python -m carvision.evaluate RUN [overrides]: how good a trained network is. See --help."""

import argparse
import os
from pathlib import Path

from carvision.config.overrides import parse_with_overrides
from carvision.errors import one_line_errors

# Read by OpenMP when torch is imported: threads that wait sleep, instead of keeping the cores busy that the photo
# readers need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HELP = """Evaluate a trained network: all figures with their 95 % intervals, each class, what is confused with what,
how far its probabilities can be trusted.

  python -m carvision.evaluate runs/mine                                   the test photos of the run
  python -m carvision.evaluate runs/mine data.root=/new/place/photos       the same, which have been moved
  python -m carvision.evaluate runs/mine data=folder data.root=others --split all      other photos
  python -m carvision.evaluate runs/a --ensemble runs/b runs/c --tta flip  the average of three runs and two views
  torchrun --nproc-per-node 4 -m carvision.evaluate runs/mine              four processes share the photos

data=... and data.<key>=<value> are as in training (python -m carvision.train --help). Where the command was killed, the
same one with the same --out begins anew there.
"""


def evaluate(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with one_line_errors():
        # Only now: --help and a wrong option do not wait for torch.
        from carvision.evaluation.run import run

        folder = run(**vars(options))
    if folder is not None:  # the first of several processes
        print(f"evaluate: {folder}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    it = argparse.ArgumentParser(
        "python -m carvision.evaluate", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN [data=<choice>] [data.<key>=<value> ...] [options]",
    )  # fmt: skip
    it.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its model.safetensors")
    it.add_argument("--split", choices=["train", "val", "test", "all"], default="test", help="default: test")
    it.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/evaluations/<split>_<time>)")
    it.add_argument("--ensemble", nargs="+", type=Path, default=[], metavar="RUN", help="runs to average with RUN")
    it.add_argument(
        "--tta", choices=["none", "flip", "crops", "flip_crops"], default="none",
        help="average views of each photo: its mirror image, five crops, or both (12 views)",
    )  # fmt: skip
    it.add_argument("--match", choices=["id", "name"], default="id", help="by what classes are the same (default: id)")
    it.add_argument(
        "--label", action="append", default=[], metavar="LABEL=HEAD", help="a label of the data that a head tells"
    )
    it.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap (1000); 0: no intervals")
    it.add_argument(
        "--temperature", choices=["stored", "fit", "none"], default="stored",
        help="stored in the model, or fitted on the run's validation photos where there is none (default); fit: anew",
    )  # fmt: skip
    it.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, xla, ...")
    options = parse_with_overrides(it, arguments)
    if options.samples < 0:
        it.error(f"--samples: {options.samples} is not a whole number from 0")
    pairs = [word.partition("=") for word in options.label]
    if not all(label and head for label, _, head in pairs):
        it.error(f"--label: {' '.join(options.label)} is not of the form <label of the data>=<head of the model>")
    options.label = {head: label for label, _, head in pairs}
    return options


if __name__ == "__main__":
    evaluate()
