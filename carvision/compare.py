"""carvision compare RUN...: finished runs side by side. See --help."""

import argparse
import time
from pathlib import Path

from carvision.config.options import add_out_folder, create_parser, log_to_stderr, run_or_folder, whole_from, words_of
from carvision.errors import one_line_errors

HELP = """Compare runs: a table of their metrics, time and cost, their curves overlaid,
accuracy against time and money.

  carvision compare runs                                   every run below that folder
  carvision compare runs/a runs/b --names baseline,focal   two runs
  carvision compare runs --epoch 40                        metrics at the end of the 40th epoch
  carvision compare runs --matrix model.backbone optimizer.name
  carvision compare runs --against data.batch_size
"""


def compare(arguments: list[str] | None = None) -> None:
    """Write a comparison of runs. arguments: default: the command line's."""
    options = build_parser().parse_args(words_of(arguments))
    log_to_stderr()
    with one_line_errors():
        # Imported here, as --help and a wrong option need neither pandas nor matplotlib
        from carvision.reports.comparison.report import write_comparison

        folder = options.out or Path("compare") / time.strftime("%Y-%m-%d_%H-%M-%S")
        write_comparison(folder=folder, **{k: v for k, v in vars(options).items() if k != "out"})
    print(f"compare: {folder}")


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser("compare", HELP)
    add = parser.add_argument
    add("given", nargs="+", type=run_or_folder, metavar="RUN",
        help="a run's folder, latest, or a folder that holds runs")  # fmt: skip
    add_out_folder(parser, "compare/<time>")
    add("--names", type=lambda text: text.split(","), metavar="A,B", help="what the runs are called")
    add("--epoch", type=whole_from(1), metavar="N", help="metrics at the end of this epoch, from 1; not the best one")
    add("--figure", dest="metric", metavar="METRIC",
        help="by which runs are judged (default: val/<head with most classes>/top1)")  # fmt: skip
    add("--sort", metavar="METRIC", help="a metric, wall_min, cpu_min or cost to sort the runs by")
    add("--matrix", nargs=2, metavar=("ROWS", "COLUMNS"),
                    help="two keys of the configuration, or sets of them: optimizer.lr,optimizer.momentum")  # fmt: skip
    add("--against", metavar="KEY", help="a key of the configuration whose values are numbers")
    add("--price-per-hour", type=float, metavar="MONEY", help="instead of the runs' own run.price_per_hour")
    return parser


if __name__ == "__main__":
    compare()
