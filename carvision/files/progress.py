"""Show the progress of long-running commands: a bar, or a log line every 30 seconds without a terminal."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

LOG_EVERY_S = 30  # between log lines


@contextlib.contextmanager
def show_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Draw a bar on standard error that stays when done; nothing for a total of 0.

    what: the text beside it. Yields a function to call with the number just done and, if it changes, the text.
    """
    if not total:
        yield lambda num, what=None: None
        return
    import rich.progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num, what=None: progress.update(task, advance=num, description=what)


@contextlib.contextmanager
def show_bytes(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw a bar of bytes on standard output. Yields a function to call with the number just received.

    total: None if unknown.
    """
    import rich.progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns) as progress:
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
    import rich.progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn() if total is None else rich.TimeRemainingColumn(),
    )
    rate = _rate()
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done, rate="")
        yield lambda num: progress.update(task, advance=num, rate=f"{rate(num)} a second")


def _lines(total: int | None, done: int) -> Callable[[int], None]:
    rate = _rate()
    last = time.monotonic()

    def advance(num: int) -> None:
        nonlocal done, last
        done += num
        speed = rate(num)
        if time.monotonic() - last > LOG_EVERY_S:
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
