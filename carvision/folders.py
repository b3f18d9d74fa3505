"""Folders that a command makes for what it writes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from carvision.errors import InputError


def cache_folder() -> Path:
    """Of what can be made again: $CARVISION_CACHE, else $XDG_CACHE_HOME/carvision, else ~/.cache/carvision."""
    own, common = os.environ.get("CARVISION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(common or "~/.cache") / "carvision").expanduser()


@contextmanager
def left_when_used(folder: Path) -> Iterator[Path]:
    """The folder, which goes again where an error comes before anything was written to it: the mended command may name
    the same one."""
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # it holds something
            folder.rmdir()
        raise


def claim_folder(
    wanted: str | Path | None, parent: Path, prefix: str = "", key: str = "run.dir", leftovers: tuple[str, ...] = ()
) -> Path:
    """A new folder: `wanted`, or <parent>/<prefix><time>. Two commands never get the same one.

    leftovers: names of what a command that was killed at once may have left in `wanted`.
    Raises InputError, which names `key`, where `wanted` holds something already, or can't be made.
    """
    stamp = f"{prefix}{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder = Path(wanted) if wanted else parent / stamp
    for number in range(2, 1000):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if wanted and folder.is_dir() and all(path.name in leftovers for path in folder.iterdir()):
                return folder
            if wanted:
                raise InputError(f"{key}: {folder} exists already; give a folder that does not, or remove it") from None
            folder = parent / f"{stamp}_{number}"  # another command began within the same second
        except OSError as error:
            raise InputError(f"{key}: {folder} can't be made ({error.strerror}); choose another with {key}") from None
    raise InputError(f"{key}: no free name left beside {folder}")
