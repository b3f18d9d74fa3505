"""Show the progress of long-running commands: a bar, or a log line every 30 seconds without a terminal."""

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

log = logging.getLogger(__name__)

LOG_EVERY_S = 30  # between log lines


def create_batch_bar() -> "Progress":
    """Return a display, not started, of a text, a bar, "3/67", and the task's field "after"."""
    import rich.progress as rich

    text, after = (rich.TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[after]}"))
    return _create_bar(text, rich.BarColumn(None), rich.MofNCompleteColumn(), after)


def _create_bar(*columns: "ProgressColumn", keep: bool = False) -> "Progress":
    """Return rich's progress display on standard error, which takes the terminal's width.

    Whatever is written to standard error meanwhile, or printed on the same terminal, appears above it. keep: leave the
    bar there at the end.
    """
    import rich.progress as rich
    from rich.console import Console

    console, same_terminal = Console(stderr=True), sys.stdout.isatty()
    return rich.Progress(*columns, console=console, transient=not keep, expand=True, redirect_stdout=same_terminal)


def can_show_bar() -> bool:
    """Return whether a bar can be drawn: on a terminal, or in a notebook that has ipywidgets, with which rich draws.

    If only ipywidgets is missing, log how to install it.
    """
    if sys.stderr.isatty() or "ipykernel" not in sys.modules:
        return sys.stderr.isatty()
    if importlib.util.find_spec("ipywidgets") is not None:
        return True
    log.info("no progress bar: in a notebook it needs ipywidgets (%pip install ipywidgets)")
    return False


@contextlib.contextmanager
def show_bar(
    what: str, total: int | None, done: int = 0, keep: bool = True, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Draw a bar on standard error; nothing for a total of 0.

    what: the text beside it. total: None if unknown. done: number finished before this start. keep: leave it there when
    done. Yields a function to call with the number just done and, if it changes, the text.
    """
    if total == 0:
        yield lambda num, what=None: None
        return
    import rich.progress as rich

    speed = [rich.DownloadColumn(), rich.TransferSpeedColumn()]
    if not in_bytes:
        speed = [rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[rate]}")]
    time_column = rich.TimeElapsedColumn() if total is None else rich.TimeRemainingColumn()
    columns = (rich.TextColumn("{task.description}", markup=False), rich.BarColumn(None), *speed, time_column)
    start = time.monotonic()
    with _create_bar(*columns, keep=keep) as progress:
        task = progress.add_task(what, total=total, completed=done, rate="")

        def advance(num: int, what: str | None = None) -> None:
            rate = _rate(progress.tasks[0].completed + num - done, start)
            progress.update(task, advance=num, description=what, rate=f"{rate} a second")

        yield advance


@contextlib.contextmanager
def show_progress(total: int | None, done: int, bar: bool, what: str = "photos") -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of photos just done.

    total: None if unknown. done: number finished before this start. bar: draw a bar on standard error. what: text
    beside the bar.
    """
    lines = contextlib.nullcontext(_lines(total, done))
    with show_bar(what, total, done, keep=False) if bar else lines as advance:
        yield advance


def _lines(total: int | None, done_before: int) -> Callable[[int], None]:
    done, start = 0, time.monotonic()
    last = start

    def advance(num: int) -> None:
        nonlocal done, last
        done += num
        if time.monotonic() - last > LOG_EVERY_S:
            last = time.monotonic()
            of_total = "" if total is None else f" of {total:,}"
            log.info("%s%s photos, %s a second", f"{done_before + done:,}", of_total, _rate(done, start))

    return advance


def _rate(done: int | float, start: float) -> str:
    return f"{done / max(1e-9, time.monotonic() - start):,.0f}"
