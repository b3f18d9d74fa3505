"""Fill an output folder: complete or marked as unfinished, and refilled by the same command after a kill."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from carvision.files.atomic import PARTIAL, write_text
from carvision.files.folders import LOCK, claim_folder
from carvision.files.locks import lock_folder

log = logging.getLogger(__name__)

MARK = ".unfinished"  # holds the command's name while the folder is being filled
# Patterns of the files that each command writes
WRITTEN = {
    "evaluate": (
        "evaluation.*", "predictions.csv", "bad_images.csv", "unmatched.csv", "results.txt", "coverage.png",
        "per_class_*.csv", "confusion_*.*", "confused_*.*", "reliability_*.png",
    ),
    "embeddings": ("embeddings.*", "index.csv"),
    "retrievals": ("retrieval.json", "knn.csv", "per_class.csv", "neighbours.*"),
    "explanations": ("*.cam.png",),
    "verifications": ("verification.*", "pairs_*.csv", "roc.png"),
}  # fmt: skip


@contextmanager
def output_folder(wanted: Path | None, parent: Path, command: str, prefix: str = "") -> Iterator[Path]:
    """Yield the folder to fill: `wanted`, or a new one below `parent` (see claim_folder). It is locked meanwhile.

    command: a key of WRITTEN. If the same command was killed in `wanted`, the files that it wrote, perhaps with other
    options, are removed first. After an error before anything was written, the folder is removed. Raises InputError for
    a folder that holds anything else, also a finished output, or that another process is filling.
    """
    folder = Path(wanted) if wanted else None
    again = folder is not None and _is_unfinished(folder, command)
    if not again:
        folder = claim_folder(wanted, parent, prefix, "--out", (LOCK, f"{MARK}{PARTIAL}"))
    lock = lock_folder(folder, f"--out: another command is writing into {folder} now; wait for it, or give another")
    try:
        if again:
            log.info("%s was left unfinished by an earlier start; beginning anew in it", folder)
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
