"""Export files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carvision.errors import InputError
from carvision.folders import shorten


def require_absent(path: Path) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{shorten(str(path))} can't be written ({error.strerror}); give another path with --out"
        ) from None
    raise InputError(f"{path} exists already; give another path with --out")


@contextmanager
def atomic_export(path: Path) -> Iterator[Path]:
    """Gives a place for the file or folder `path`, of the same name, in a hidden folder beside it. What stands there at
    the end is renamed to `path`, with any other files there (the weights of a large ONNX file); if anything fails,
    nothing is left.

    Raises InputError where `path` exists already or can't be written.
    """
    require_absent(path)
    hidden = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        hidden.mkdir(parents=True)
        try:
            yield hidden / path.name
            others = [file for file in hidden.iterdir() if file.name != path.name]
            for file in [*others, hidden / path.name]:  # what names the others comes last
                require_absent(path.parent / file.name)
                file.rename(path.parent / file.name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{path} can't be written ({reason}); give another place with --out") from None
