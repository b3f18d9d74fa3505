"""Arrays on disk: .npy files, written atomically block by block, and read as mapped memory.

Behind the array a file may hold a note, plain values as JSON, and a checksum of the whole; numpy ignores both.
"""

import errno
import io
import json
import os
import shutil
import uuid
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from carvision.files.atomic import PARTIAL, flush, open_new, rename


class ArrayWriter:
    """A context that writes an array (N, ...): append() blocks of its rows, then finish(); otherwise nothing is left.

    num_bytes: of the whole array, reserved on the disk when the context is entered, so that append() can't fill it; 0:
    unknown. Several processes may write the same file at once. All methods raise OSError if the file can't be written.
    """

    opened: IO[bytes]

    def __init__(self, file: Path, dtype: str, num_bytes: int = 0):
        self.file, self.dtype, self.num_bytes = file, np.dtype(dtype).newbyteorder("<"), num_bytes
        self.partial = file.with_name(f"{file.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        self.shape: tuple[int, ...] = ()
        self.checksum = 0  # of the blocks so far

    def __enter__(self) -> "ArrayWriter":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.opened = open_new(self.partial)
        try:
            _reserve(self.opened.fileno(), self.num_bytes, self.file.parent)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.opened.close()
        self.partial.unlink(missing_ok=True)

    def append(self, block: np.ndarray) -> None:
        """Write rows (B, ...)."""
        if not self.shape:
            self.shape = (0, *block.shape[1:])
            self.opened.write(self._header())
        rows = np.ascontiguousarray(block, self.dtype).data
        self.opened.write(rows)
        self.checksum = zlib.crc32(rows, self.checksum)
        self.shape = (self.shape[0] + len(block), *self.shape[1:])

    def finish(self, note: dict | None = None) -> None:
        """Complete the file, at least one block long, and move it to its name. note: for read_array."""
        if note is not None:
            text = json.dumps(note).encode()
            self.opened.write(text + _checksum(self._header(), text, self.checksum))
        self.opened.truncate()
        self.opened.seek(0)
        self.opened.write(self._header())  # as long as the first one: numpy leaves room for any number of rows
        self.opened.close()
        flush(self.partial)
        rename(self.partial, self.file)

    def _header(self) -> bytes:
        header = io.BytesIO()
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()


def read_array(file: Path) -> tuple[np.ndarray, dict]:
    """Map the array of a file into memory, copy on write, and return it with the note.

    Raises OSError, ValueError or EOFError for a file that is damaged, or was finished without a note.
    """
    rows = np.load(file, mmap_mode="c", allow_pickle=False)
    with file.open("rb") as opened:
        header = opened.read(rows.offset)
        opened.seek(rows.offset + rows.nbytes)
        text, checksum = (tail := opened.read())[:-8], tail[-8:]
    if checksum != _checksum(header, text, zlib.crc32(rows.data)):
        raise ValueError("its checksum is wrong")
    return rows, json.loads(text)


def _checksum(header: bytes, text: bytes, of_rows: int) -> bytes:
    return b"%08x" % zlib.crc32(header + text, of_rows)


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
