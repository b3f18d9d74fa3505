"""Progress of long-running commands: bars, or a log line every 30 seconds where nobody watches."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

SECONDS = 30  # between log lines


@contextlib.contextmanager
def show_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Draw a bar on standard error that stays when done; nothing for a total of 0.

    what: the text beside it. Yields a function to call with the number just done and, if it changes, the text.
    """
    if not total:
        yield lambda num, what=None: None
        return
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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num, what=None: progress.update(task, advance=num, description=what)


@contextlib.contextmanager
def show_bytes(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw a bar of bytes on standard output. total: None if unknown. Yields a function to call with the last ones."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num: progress.advance(task, num)


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
