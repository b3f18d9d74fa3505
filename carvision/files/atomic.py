"""Write files atomically: they appear complete or not at all, even if the machine stops in the middle.

Files get the permissions of the umask, and nothing is written through a symbolic link: a folder that another user made
may hold links to anything.
"""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from carvision.errors import InputError

PARTIAL = ".partial"  # ends the name of a file that is being written
MAX_STEM_BYTES = 100  # of a head's name in a file name; disks allow 255 in all


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield an empty file beside `file` to write to; at the end flush it to the disk and rename it to `file`.

    If anything fails, `file` stays as it was and nothing else is left. Two processes must not write the same file at
    once.
    """
    partial = file.with_name(file.name + PARTIAL)
    try:
        with open_new(partial) as opened:
            mode = os.fstat(opened.fileno()).st_mode
        yield partial
        if partial.lstat().st_mode != mode:  # a library has replaced it by a file of its own, as safetensors does
            partial.chmod(stat.S_IMODE(mode))
        flush(partial)
        rename(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_text(file: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, content: object) -> None:
    """Write plain Python values as JSON, atomically."""
    write_text(file, json.dumps(content, indent=1))


def write_csv(file: Path, frame, index: bool = False, **kwargs) -> None:
    """Write a DataFrame as CSV, atomically. kwargs: for its to_csv."""
    with atomic_file(file) as partial:
        frame.to_csv(partial, index=index, **kwargs)


def link_or_copy(source: Path, wanted: Path) -> None:
    """Replace `wanted` by a hard link to `source`, or by a copy if the file system has no links; atomic."""
    partial = wanted.with_name(f"{wanted.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # a file system without links
        shutil.copyfile(source, partial)
        flush(partial)
    rename(partial, wanted)


def rename(path: Path, wanted: Path) -> None:
    """Rename within a folder, replacing an existing file; a loss of power after the return does not undo it."""
    path.replace(wanted)
    if os.name == "posix":  # other systems can't open folders
        flush(wanted.parent)


def flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    # Windows flushes only what is open for writing; no system opens folders for that
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_new(path: Path, mode: str = "wb", **kwargs) -> IO:
    """Create a file and open it, replacing a file or link of that name, which a killed process may have left."""
    path.unlink(missing_ok=True)
    return path.open(mode.replace("w", "x"), **kwargs)  # x follows no link


def open_kept(path: Path, mode: str, **kwargs) -> IO:
    """Open a file without truncating it, to lock or extend it (mode "a" or "a+"). Raises InputError for a symbolic
    link."""
    try:
        return open(path, mode, opener=_open_itself, **kwargs)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a symbolic link, and nothing is written through one; replace it by a file of "
                             "its own, or choose another folder") from None  # fmt: skip
        raise


def _open_itself(path: str, flags: int) -> int:
    # Not blocking: opening a named pipe would wait for its reader forever
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def create_folder(folder: Path) -> Path:
    """Create a folder inside one of ours unless it exists, and return it. Raises InputError as refuse_link_out does."""
    refuse_link_out(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_link_out(folder: Path) -> None:
    """Raise InputError if the folder is a symbolic link that leads out of its parent."""
    if folder.is_symlink():
        target, parent = (Path(os.path.realpath(path)) for path in (folder, folder.parent))
        if not target.is_relative_to(parent):
            raise InputError(
                f"{folder} is a symbolic link to {target}, outside of {parent}, and nothing is written through it; "
                "replace it by a folder of its own, or choose another folder"
            )


def file_stems(heads: Sequence[str]) -> dict[str, str]:
    """Return {head: its name for use in file names}: its own if possible.

    Characters that don't suit a file name become "_", a very long name its beginning and a digest, and names that would
    clash, also on disks that ignore case, get a number.
    """
    plain = {head: _file_stem(head) for head in heads}
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for head in sorted(heads, key=lambda head: plain[head] != head):
        names = itertools.chain([plain[head]], (f"{plain[head]}_{number}" for number in itertools.count(2)))
        stems[head] = next(name for name in names if name.casefold() not in taken)
        taken.add(stems[head].casefold())
    return stems


def _file_stem(name: str) -> str:
    stem = re.sub(r"[^\w.-]+", "_", name)
    if len(stem.encode(errors="replace")) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem.encode(errors='replace')[:MAX_STEM_BYTES].decode(errors='ignore')}_{digest}"
