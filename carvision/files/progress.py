"""Progress of long-running commands: a bar on a terminal, otherwise a log line every 30 seconds."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

SECONDS = 30  # between log lines


@contextlib.contextmanager
def show_progress(total: int | None, done: int, bar: bool, what: str = "photos") -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of photos just done.

    total: None if unknown. done: number finished before this start. bar: draw a bar on standard error. what: text
    beside the bar.
    """
    with _bar(total, done, what) if bar else contextlib.nullcontext(_lines(total, done)) as advance:
        yield advance


@contextlib.contextmanager
def _bar(total: int | None, done: int, what: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn() if total is None else TimeRemainingColumn(),
    )  # fmt: skip
    rate = _rate()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done, rate="")
        yield lambda num: progress.update(task, advance=num, rate=f"{rate(num)} a second")


def _lines(total: int | None, done: int) -> Callable[[int], None]:
    rate = _rate()
    last = time.monotonic()

    def advance(num: int) -> None:
        nonlocal done, last
        done += num
        speed = rate(num)
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            log.info("%s%s photos, %s a second", f"{done:,}", "" if total is None else f" of {total:,}", speed)

    return advance


def _rate() -> Callable[[int], str]:
    start, done = time.monotonic(), 0

    def rate(num: int) -> str:
        nonlocal done
        done += num
        return f"{done / max(1e-9, time.monotonic() - start):,.0f}"

    return rate
