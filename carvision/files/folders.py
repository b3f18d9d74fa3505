"""Create and fill the folder of a command's output, and recognise what is carvision's before anything is replaced."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from carvision.errors import InputError
from carvision.files.atomic import PARTIAL, refuse_link_out, write_text
from carvision.files.locks import LOCK, lock_folder

log = logging.getLogger(__name__)

PROGRAM = "carvision"  # value of "Software" in the pictures that save_figure writes
LAST, BEST = "last.ckpt", "best.ckpt"  # in a run's checkpoints/
PREVIOUS = "previous.ckpt"  # the one before LAST, of runs of earlier versions
CONFIG = "config.yaml"
RUNS, LATEST = Path("runs"), "latest"  # where runs are written by default, and the name of the newest one
RESULTS = ("model.json", "embeddings.json")  # in folders below which other commands write by default
GROUPS = ("data", "model", "loss", "augment", "optimizer", "schedule", "trainer", "callbacks", "run")  # in CONFIG
# Files that a run writes before the end of its first epoch
BEGINNING = (
    LOCK, CONFIG, "run.log", "splits.csv", "summary.txt", "environment.json", "seconds.json", "bad_images.csv",
    f"checkpoints/{BEST}{PARTIAL}", f"checkpoints/{LAST}{PARTIAL}", "profile.txt", "profile/*.trace.json.gz",
    "tensorboard/hparams.yaml", "tensorboard/events.out.tfevents.*",
)  # fmt: skip

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


def cache_folder() -> Path:
    """Return the folder for files that can be recomputed: $CARVISION_CACHE, else $XDG_CACHE_HOME/carvision, else
    ~/.cache/carvision."""
    own, common = os.environ.get("CARVISION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(common or "~/.cache") / "carvision").expanduser()


def claim_folder(
    wanted: str | Path | None, parent: Path, prefix: str = "", key: str = "run.dir", leftovers: tuple[str, ...] = ()
) -> Path:
    """Create and return a folder: `wanted`, or <parent>/<prefix><time>. Two commands never get the same one.

    key: the option or key that gives `wanted`, for messages. leftovers: names of files that a command killed right at
    its start may have left in `wanted`. Raises InputError if `wanted` holds anything else or can't be created, or if
    `parent` is a symbolic link that leads out of the run's folder.
    """
    if not wanted and any((parent.parent / name).exists() for name in RESULTS):
        refuse_link_out(parent)
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
                raise InputError(
                    f"{key}: {folder} exists already and holds something else; give a folder that is new or empty"
                ) from None
            folder = parent / f"{stamp}_{number}"  # another command started within the same second
        except OSError as error:
            named = shorten(str(folder))
            raise InputError(f"{key}: {named} can't be made ({error.strerror}); choose another with {key}") from None
    raise InputError(f"{key}: no free name left beside {folder}")


@contextmanager
def output_folder(wanted: Path | None, parent: Path, command: str, prefix: str = "") -> Iterator[Path]:
    """Yield the folder to fill: `wanted`, or a new one below `parent` (see claim_folder). It is locked meanwhile.

    command: a key of WRITTEN. If the same command was killed in `wanted`, the files that it wrote, perhaps with other
    options, are removed first. After an error before anything was written, the folder is removed. Raises InputError for
    a folder that holds anything else, also a finished output, or that another process is filling.
    """
    again = False
    with suppress(OSError, ValueError):
        again = wanted is not None and (wanted / MARK).read_text(encoding="utf-8") == command
    folder = wanted if wanted and again else claim_folder(wanted, parent, prefix, "--out", (LOCK, f"{MARK}{PARTIAL}"))
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
        lock.close()


def shorten(text: str) -> str:
    """Return the text for use in a message: at most 200 characters."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_run(folder: Path) -> bool:
    """Return whether the folder is a run's."""
    return read_run_config(folder) is not None


def read_run_config(folder: Path) -> dict | None:
    """Return a run's config.yaml; None if the folder is not a run's, recognised by the keys of that file, whose name
    others use, too."""
    try:
        if not (folder / CONFIG).is_file():
            return None
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(config, dict) or not all(isinstance(config.get(group), dict) for group in GROUPS):
        return None
    return config if "backbone" in config["model"] and "dir" in config["run"] else None


def find_run(text: str | Path) -> Path:
    """Return the run that the text names: the path of its folder or model file; `latest`, the newest finished run below
    runs/; or a folder that holds runs, the newest finished one in it. One log line reports which.

    A path without a run is returned as it is: what reads it reports that. Raises InputError if `latest` finds none.
    """
    path = Path(text)
    is_latest = str(text) == LATEST and not os.path.lexists(text)
    parent = RUNS if is_latest else path
    if not os.path.isdir(parent) or any((parent / name).exists() for name in RESULTS) or is_run(parent):  # noqa: PTH112
        newest = None  # Path.is_dir raises for names that are too long
    else:
        newest = _newest_run(parent)
    if newest is not None:
        log.info("%s: %s is the newest run", text, newest)
        return newest
    if is_latest:
        raise InputError(f"{LATEST}: there is no finished run below {RUNS.absolute()}; give a run's folder")
    return path


def _newest_run(parent: Path) -> Path | None:
    """Return the folder below `parent` whose model was written last; None if there is no model."""
    times = {}
    for folder, folders, files in os.walk(parent):
        if RESULTS[0] in files:
            times[Path(folder)] = (Path(folder) / RESULTS[0]).stat().st_mtime_ns
            folders.clear()  # such as its exports
    return max(times, key=lambda folder: (times[folder], folder), default=None)


def remove_beginning(folder: Path, made: bool) -> None:
    """Remove the files of a run, and of its folds or seeds, that ended before its first epoch was complete.

    made: the run created the folder, which is removed if nothing else is in it.
    """
    for part in [*folder.glob("fold_*"), *folder.glob("seed_*")]:
        remove_beginning(part, made=True)
    for name in BEGINNING:
        for file in [*folder.glob(name), *folder.glob(f"{name}{PARTIAL}")]:
            with suppress(OSError):
                file.unlink()
    for inner in ("checkpoints", "tensorboard", "profile", ".")[: 4 if made else 3]:
        with suppress(OSError):  # it holds something, or is a link
            (folder / inner).rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, and their folder if nothing else is in it."""
    with suppress(OSError, InputError):
        refuse_link_out(folder)
        for name in (LAST, PREVIOUS, BEST):
            for file in (folder / name, folder / f"{name}{PARTIAL}"):
                file.unlink(missing_ok=True)
        folder.rmdir()


def refuse_foreign_folder(folder: Path, key: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise InputError if the folder holds files that the same command did not write.

    key: the option or key that gives the folder, for messages. is_ours: recognises the command's output.
    """
    try:
        strange = next(folder.iterdir(), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{key}: {folder} is no folder to write to ({error.strerror}); choose another") from None
    if strange and not is_ours(folder):
        raise InputError(
            f"{key}: {folder} holds something that this command did not write ({strange.name}); give a folder that is "
            "new or empty"
        )


def refuse_foreign_picture(file: Path, key: str) -> None:
    """Raise InputError if the file exists and was not written by save_figure, or can't have that name."""
    partial = file.with_name(f"{file.name}{PARTIAL}")
    try:
        there = _is_there(partial), _is_there(file)
    except OSError as error:
        raise InputError(
            f"{key}: {shorten(str(file))} can't be written ({error.strerror}); give another name"
        ) from None
    if there[0]:
        raise InputError(f"{key}: {partial} exists, through which {file.name} would be written; give another name")
    if not there[1]:
        return
    from PIL import Image  # only needed if there is a picture

    with suppress(OSError, ValueError, SyntaxError), Image.open(file, formats=["PNG"]) as image:
        if image.info.get("Software") == PROGRAM:
            return
    raise InputError(f"{key}: {file} exists and is no picture of carvision's; give another name")


def _is_there(path: Path) -> bool:
    """Return whether the path exists, also as a dangling link. Raises OSError for an impossible name."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
