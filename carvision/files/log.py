"""carvision's messages: on the terminal, and in a run's run.log."""

import contextlib
import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from carvision.files.atomic import open_kept


def start_log(folder: Path | None, quiet: bool = False) -> None:
    """carvision's messages go to the terminal and, with the time, to run.log in the folder.

    quiet: only errors are shown, by the further processes of a run of several.
    """
    root = logging.getLogger("carvision")
    root.setLevel(logging.ERROR if quiet else logging.INFO)
    root.propagate = False
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(terminal)
    if folder is not None:
        file = LogFile(folder / "run.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


class LogFile(logging.FileHandler):
    """A disk that can't be written to costs a line on the terminal, once, rather than a traceback a message."""

    told = False

    def _open(self) -> TextIOWrapper:
        return cast(TextIOWrapper, open_kept(Path(self.baseFilename), self.mode, encoding="utf-8"))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            print(f"{self.baseFilename} can't be written ({error.strerror}): see the messages here", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written before
            super().close()
