"""Log carvision's messages to the terminal and to a run's run.log."""

import contextlib
import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from carvision.files.atomic import open_kept
from carvision.system.terminal import fold


def start_log(folder: Path | None, quiet: bool = False) -> None:
    """Send carvision's messages to standard error and, with the time, to run.log in the folder.

    quiet: only errors, for all but the first process of a run.
    """
    root = logging.getLogger("carvision")
    root.setLevel(logging.ERROR if quiet else logging.INFO)
    root.propagate = False
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(Terminal())
    if folder is not None:
        file = LogFile(folder / "run.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


class Terminal(logging.Handler):
    """Print messages on standard error, above a progress bar if there is one, with line breaks between words.

    rich replaces sys.stderr while it draws a bar, so the handler must not keep the stream.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(fold(self.format(record), sys.stderr), file=sys.stderr, flush=True)
        except Exception:  # as logging's own handlers
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log file that reports a failing disk once, on the terminal, instead of with a traceback a message."""

    has_failed = False

    def _open(self) -> TextIOWrapper:
        return cast(TextIOWrapper, open_kept(Path(self.baseFilename), self.mode, encoding="utf-8"))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            print(f"{self.baseFilename} can't be written ({error.strerror}): see the messages here", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # from what is still buffered
            super().close()
