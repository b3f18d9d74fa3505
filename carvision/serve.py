"""carvision serve RUN...: a page and an API for photos, their classes, heat maps and neighbours. See --help."""

import argparse
import logging
from pathlib import Path

from carvision.config.options import add_device, create_parser, log_to_stderr, run_of, whole_from, words_of
from carvision.errors import InputError, one_line_errors
from carvision.files.folders import LATEST

HELP = """Answer photos over HTTP: a page to drop photos on, and an API for programs.
Nothing that is sent is stored.

  carvision serve runs/demo/2026-01-31_12-00-00            then open http://127.0.0.1:8000
  carvision serve latest --port 9000 --open                opens the browser, too
  carvision serve runs/cars runs/flowers                   two models: /v1/predict?model=flowers
  carvision serve runs/a runs/b --ensemble                 one, that averages their probabilities
  carvision serve RUN --host 0.0.0.0 --token-file token    for other machines, with a token

  curl -F photo=@car.jpg http://127.0.0.1:8000/v1/predict

/docs describes the API. SIGTERM or Ctrl-C stops it, once what has begun is
answered. It needs pip install 'carvision[serve]'.
"""
ENGINES = ("eager", "auto", "compile", "onnx")


def serve(arguments: list[str] | None = None) -> None:
    """Serve until a signal asks to stop. arguments: default: the command line's."""
    options = build_parser().parse_args(words_of(arguments))
    log_to_stderr()
    logging.getLogger("carvision").setLevel(logging.INFO)
    with one_line_errors():
        if options.ensemble and len(options.runs) == 1:
            raise InputError("--ensemble: averages several runs, and one is given; give more, or leave it out")
        # Imported here, as --help and a wrong option need neither torch nor FastAPI
        try:
            from carvision.serving.run import run
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA:
                raise
            raise InputError(f"serve: {error.name} is not installed; pip install 'carvision[serve]'") from None

        run(options)


EXTRA = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "starlette", "pydantic")


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser("serve", HELP)
    add = parser.add_argument
    add("runs", nargs="+", type=run_of, metavar="RUN",
        help=f"a run's folder or its model.safetensors; {LATEST}, the newest below runs/")  # fmt: skip
    add("--ensemble", action="store_true", help="average the probabilities of the runs")
    add("--host", default="127.0.0.1", help="address (127.0.0.1: this machine alone; 0.0.0.0: all)")
    add("--port", type=port, default=8000, help="8000; 0: any that is free")
    add("--token-file", type=Path, metavar="FILE", help="a file with the token that requests must bear")
    add("--engine", choices=ENGINES, default="eager", help="the network as it is (eager), by torch.compile, or in ONNX "
        "Runtime; auto: the fastest on this machine, which takes a minute to find out")  # fmt: skip
    add("--workers", type=whole_from(1), metavar="N", help="threads that decode photos")
    add("--open", action="store_true", help="open the page in the browser")
    add_device(parser)
    return parser


def port(text: str) -> int:
    """Return the number of a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    serve()
