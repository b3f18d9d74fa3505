"""Folders that a command makes for what it writes, and how one of ours is told from somebody else's."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from carvision.errors import InputError
from carvision.files.atomic import PARTIAL, refuse_link_out

PROGRAM = "carvision"  # in the pictures that it has drawn
LOCK = ".lock"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"  # of a run, in its checkpoints/
NEW = "new.ckpt"  # in writing, or not yet read back
CONFIG = "config.yaml"
RESULTS = ("model.json", "embeddings.json")  # of a run, or of its photos, below which other commands write
GROUPS = ("data", "model", "loss", "augment", "optimizer", "schedule", "trainer", "callbacks", "run")  # in CONFIG
# What a run writes before its first epoch is over
BEGINNING = (
    LOCK, CONFIG, "run.log", "splits.csv", "summary.txt", "environment.json", "seconds.json", "bad_images.csv",
    f"checkpoints/{NEW}", "profile.txt", "profile/*.trace.json.gz",
    "tensorboard/hparams.yaml", "tensorboard/events.out.tfevents.*",
)  # fmt: skip


def cache_folder() -> Path:
    """Of what can be made again: $CARVISION_CACHE, else $XDG_CACHE_HOME/carvision, else ~/.cache/carvision."""
    own, common = os.environ.get("CARVISION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(common or "~/.cache") / "carvision").expanduser()


def claim_folder(
    wanted: str | Path | None, parent: Path, prefix: str = "", key: str = "run.dir", leftovers: tuple[str, ...] = ()
) -> Path:
    """A new folder: `wanted`, or <parent>/<prefix><time>. Two commands never get the same one.

    leftovers: names of what a command that was killed at once may have left in `wanted`.
    Raises InputError, which names `key`, where `wanted` holds something already, or can't be made; and where `parent`
    is a link that leads out of the run's folder it stands in.
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
            folder = parent / f"{stamp}_{number}"  # another command began within the same second
        except OSError as error:
            named = shorten(str(folder))
            raise InputError(f"{key}: {named} can't be made ({error.strerror}); choose another with {key}") from None
    raise InputError(f"{key}: no free name left beside {folder}")


def shorten(text: str) -> str:
    """The text, or the beginning of a long one, for a message."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_run(folder: Path) -> bool:
    """Whether a run has begun there, recognised by the keys of its config.yaml. Others have files of that name, too."""
    try:
        if not (folder / CONFIG).is_file():
            return False
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False
    if not isinstance(config, dict) or not all(isinstance(config.get(group), dict) for group in GROUPS):
        return False
    return "backbone" in config["model"] and "dir" in config["run"]


def remove_beginning(folder: Path, made: bool) -> None:
    """Remove what a run has written before its first epoch was over, and the folder itself if the run made it and
    nothing else is in it; also of the parts of a run, one a fold or seed."""
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
    """Remove a run's checkpoints, and their folder if it holds nothing else."""
    with suppress(OSError, InputError):
        refuse_link_out(folder)
        for name in (LAST, PREVIOUS, BEST, NEW):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def refuse_foreign_folder(folder: Path, key: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise InputError, which names `key`, where the folder holds something that the same command has not written."""
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
    """Raise InputError where there is a file that save_figure has not written, or the name can't be one."""
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
    from PIL import Image  # only where there is a picture

    with suppress(OSError, ValueError, SyntaxError), Image.open(file, formats=["PNG"]) as image:
        if image.info.get("Software") == PROGRAM:
            return
    raise InputError(f"{key}: {file} exists and is no picture of carvision's; give another name")


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name, a dangling link too. Raises OSError for a name that can't be."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
