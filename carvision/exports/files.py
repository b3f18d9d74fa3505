"""Write export files and folders completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carvision.errors import InputError
from carvision.folders import shorten


def require_absent(path: Path) -> None:
    """Raise InputError if the path exists or can't be checked."""
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
    """Yield a temporary path, in a hidden folder beside `path`, for the file or folder to write.

    On success it is renamed to `path`, together with any other files written beside it (the weights of a large ONNX
    file); on failure nothing is left. Raises InputError if `path` already exists or can't be written.
    """
    require_absent(path)
    hidden = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        hidden.mkdir(parents=True)
        try:
            yield hidden / path.name
            others = [file for file in hidden.iterdir() if file.name != path.name]
            for file in [*others, hidden / path.name]:  # last, as it refers to the others
                require_absent(path.parent / file.name)
                file.rename(path.parent / file.name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{path} can't be written ({reason}); give another path with --out") from None
