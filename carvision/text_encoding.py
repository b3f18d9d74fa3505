"""UTF-8 on standard output and in file names, in every locale."""

import contextlib
import io
import os
import sys
from typing import cast


def use_utf8() -> None:
    """Print UTF-8 from here on, whatever the locale and PYTHONIOENCODING are.

    Where the locale's encoding is another one, Python has decoded the arguments by it, could not even name most files,
    and would hand that to every process it starts. There the command begins again, in Python's UTF-8 mode; its process
    stays the same. It must be called before a command has done anything.
    """
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Bytes of file names that are no UTF-8 are printed as they are on standard output, which programs read.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        with contextlib.suppress(AttributeError, ValueError):  # something else in its place, or closed
            cast(io.TextIOWrapper, stream).reconfigure(encoding="utf-8", errors=errors)
