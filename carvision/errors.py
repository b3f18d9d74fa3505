"""The error that a user sees as one line without a traceback, and helpers for its message."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from carvision.system.runtime import set_thread_defaults, use_utf8
from carvision.system.terminal import fold


class InputError(ValueError):
    """Report something wrong that a user gave. The message names the value, what was allowed, and the fix."""

    def __init__(self, message: str):
        # File names and cells may hold anything: bytes that are not UTF-8 (as surrogates), control codes of a terminal
        text = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        super().__init__(re.sub(r"[\x00-\x1f\x7f]", lambda code: repr(code[0])[1:-1], text))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Run a command inside this: an InputError, or a name too long for the disk, ends it with one line and exit status
    1; Ctrl-C with 130.

    CARVISION_DEBUG=1 shows the traceback instead. Output becomes UTF-8, and the thread settings are put into the
    environment, so this must come before torch is imported.
    """
    use_utf8()
    set_thread_defaults()
    try:
        yield
    except InputError as error:
        if os.environ.get("CARVISION_DEBUG"):
            raise
        sys.exit(fold(f"error: {error}", sys.stderr))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or os.environ.get("CARVISION_DEBUG"):
            raise
        name = os.fsdecode(error.filename or "")
        text = f"error: {InputError(name[:100])}...: the name is too long for this disk; give a shorter one"
        sys.exit(fold(text, sys.stderr))
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error: object, max_chars: int | None = None) -> str:
    """Return the text of an error on one line, its first `max_chars` characters; its type's name if it has no text."""
    text = " ".join(str(error).split())
    return text[:max_chars] or (type(error).__name__ if isinstance(error, BaseException) else "")


def suggest(value: str, allowed: Iterable[str], count: int = 3) -> str:
    """Return "; nearest: a, b" with the allowed words most like `value`, or an empty string."""
    by_lower = {word.lower(): word for word in allowed}
    hits = difflib.get_close_matches(value.lower(), by_lower, n=count, cutoff=0.5)
    return f"; nearest: {', '.join(by_lower[hit] for hit in hits)}" if hits else ""


def drop_output() -> None:
    """Discard further output after a BrokenPipeError, as from `| head`; else Python reports it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
