"""carvision report RUN [overrides]: write a run's page, report.html. See --help."""

import argparse

from carvision.config.options import add_device, add_run, create_parser, parse_with_overrides
from carvision.errors import one_line_errors

HELP = """Write the page of a run, report.html in its folder: how good the model is, where
it fails and why.

  carvision report runs/mine                                   made at the end of training, too
  carvision report runs/mine data.root=/new/folder/photos      if its photos were moved
"""


def report(arguments: list[str] | None = None) -> None:
    """Write the page. arguments: default: the command line's."""
    options = parse(arguments)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.files.log import start_log
        from carvision.run_report.write import write_report
        from carvision.system.runtime import keep_freed_memory

        keep_freed_memory()
        start_log(None)
        file = write_report(options.run, options.overrides, options.device)
    print(f"report: {file}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser("report", HELP, "%(prog)s RUN [data.<key>=<value> ...] [options]")
    add_run(parser)
    add_device(parser)
    return parse_with_overrides(parser, arguments)


if __name__ == "__main__":
    report()
