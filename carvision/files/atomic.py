"""Files that appear whole or not at all, also where the machine stops in the middle.

They have the permissions that the umask gives, and nothing is written through a symbolic link: a folder that somebody
else made may hold links to anything.
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

PARTIAL = ".partial"  # ends the name of a file while it is being written
MOST_BYTES = 100  # of a name's part in a file's name; disks take 255 for all of it


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give an empty file beside `file` to write to. At the end it is flushed to the disk and renamed to `file`; if
    anything fails, `file` is what it was before and nothing else is left. Two processes must not write the same file at
    once.
    """
    partial = file.with_name(file.name + PARTIAL)
    try:
        with open_new(partial) as opened:
            mode = os.fstat(opened.fileno()).st_mode
        yield partial
        if partial.lstat().st_mode != mode:  # a library has put a file of its own there, as safetensors does
            partial.chmod(stat.S_IMODE(mode))
        flush(partial)
        rename(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def open_new(path: Path, mode: str = "wb", **kwargs) -> IO:
    """Open a file that this call creates; a file or link of that name, left by a killed process, gives way."""
    path.unlink(missing_ok=True)
    return path.open(mode.replace("w", "x"), **kwargs)  # x follows no link


def open_kept(path: Path, mode: str, **kwargs) -> IO:
    """Open a file that keeps what it holds, to lock or continue it (mode "a" or "a+"). Raises InputError where it is a
    symbolic link."""
    try:
        return open(path, mode, opener=_open_itself, **kwargs)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a symbolic link, and nothing is written through one; replace it by a file of "
                             "its own, or choose another folder") from None  # fmt: skip
        raise


def _open_itself(path: str, flags: int) -> int:
    # Not blocking: a named pipe would wait for its reader for ever
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def own_folder(folder: Path) -> Path:
    """Make a folder inside one of ours, where it is missing. Raises as refuse_link_out does."""
    refuse_link_out(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_link_out(folder: Path) -> None:
    """Raise InputError where the folder is a symbolic link that leads out of its parent."""
    if folder.is_symlink():
        target, parent = (Path(os.path.realpath(path)) for path in (folder, folder.parent))
        if not target.is_relative_to(parent):
            raise InputError(
                f"{folder} is a symbolic link to {target}, outside of {parent}, and nothing is written through it; "
                "replace it by a folder of its own, or choose another folder"
            )


def file_stems(heads: Sequence[str]) -> dict[str, str]:
    """{head: what stands for it in names of files}: "_" for all that a name can't hold, and a number at the end where
    two would be one file, also where upper and lower case are the same. A head that needs no change has its own name;
    a very long one its beginning and a digest.
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
    if len(stem.encode(errors="replace")) <= MOST_BYTES:
        return stem
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem.encode(errors='replace')[:MOST_BYTES].decode(errors='ignore')}_{digest}"


def write_text(file: Path, text: str) -> None:
    """As UTF-8."""
    with written_whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, content) -> None:
    write_text(file, json.dumps(content, indent=1))


def flush(path: Path) -> None:
    """What was written to a file, or the names in a folder, reaches the disk before this returns."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def rename(path: Path, wanted: Path) -> None:
    """In the same folder; takes the place of a file that is there. Survives a loss of power once it has returned."""
    path.replace(wanted)
    if os.name == "posix":  # elsewhere folders can't be opened
        flush(wanted.parent)


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


def write_csv(file: Path, frame, index: bool = False, **kwargs) -> None:
    """A DataFrame; kwargs: of its to_csv."""
    with written_whole(file) as partial:
        frame.to_csv(partial, index=index, **kwargs)
