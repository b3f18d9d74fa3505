"""A folder that a command fills: where it was killed, the same command takes it again, and begins anew."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from carvision.files.atomic import PARTIAL, write_text
from carvision.files.folders import LOCK, claim_folder
from carvision.files.locks import lock_folder

log = logging.getLogger(__name__)

MARK = ".unfinished"  # holds the command's name; there from the first to the last moment
# By these commands, here by each one's name
WRITTEN = {
    "evaluate": (
        "evaluation.*", "predictions.csv", "bad_images.csv", "unmatched.csv", "results.txt", "coverage.png",
        "per_class_*.csv", "confusion_*.*", "confused_*.*", "reliability_*.png",
    ),
    "embeddings": ("embeddings.*", "index.csv"),
    "retrievals": ("retrieval.json", "knn.csv", "per_class.csv", "neighbours.*"),
    "verifications": ("verification.*", "pairs_*.csv", "roc.png"),
}  # fmt: skip


@contextmanager
def output_folder(wanted: Path | None, parent: Path, command: str, prefix: str = "") -> Iterator[Path]:
    """`wanted`, or a new one below `parent` (see claim_folder), which holds MARK and a lock meanwhile. command: of
    WRITTEN.

    Where the same command was killed in `wanted`, it is taken again, and what was written there, which may be of other
    options, goes. After an error before anything was written the folder goes. Raises InputError for a folder with
    anything else in it, a finished output too, and one that another process fills now.
    """
    folder = Path(wanted) if wanted else None
    again = folder is not None and _is_unfinished(folder, command)
    if not again:
        folder = claim_folder(wanted, parent, prefix, "--out", (LOCK, f"{MARK}{PARTIAL}"))
    lock = lock_folder(folder, f"--out: another command is writing into {folder} now; wait for it, or give another")
    try:
        if again:
            log.info("%s is of a start that did not end; beginning anew in it", folder)
            for pattern in WRITTEN[command]:
                for file in [*folder.glob(pattern), *folder.glob(f"{pattern}{PARTIAL}")]:
                    file.unlink(missing_ok=True)
        write_text(folder / MARK, command)
        yield folder
        (folder / MARK).unlink()
        (folder / LOCK).unlink(missing_ok=True)
    except BaseException:
        if not any(path.name not in (MARK, LOCK) for path in folder.iterdir()):
            (folder / MARK).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        raise
    finally:
        if lock:
            lock.close()


def _is_unfinished(folder: Path, command: str) -> bool:
    try:
        return (folder / MARK).read_text(encoding="utf-8") == command
    except (OSError, ValueError):
        return False
