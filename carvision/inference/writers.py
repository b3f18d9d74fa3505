"""Write rows to CSV, TSV, JSON Lines or Parquet: complete or not at all, and resumed where a killed command stopped.

While it is written, an output FILE is FILE.partial with the rows and FILE.partial.json with the settings that determine
them; the writing process holds a lock on the latter.

All outputs have the same methods:
    rows()        call once, and exhaust: {column: value} of the rows that an earlier command wrote, without the
                  vectors; only complete batches, so that a resumed output equals an uninterrupted one bit for bit
    write(rows)   append rows, in order
    finish()      rename the output to its own name
    close()       call in any case; an unfinished output stays and can be resumed
"""

import contextlib
import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, create_folder, open_kept, open_new, rename
from carvision.files.folders import shorten
from carvision.files.locks import try_lock
from carvision.inference.rows import JSON_LINES, SEPARATORS, Kind, header, read_rows, to_text

PARQUET = ".parquet"
SUFFIXES = (*SEPARATORS, JSON_LINES, PARQUET)
METADATA = "carvision"  # the key of the Parquet schema's metadata: JSON {"classes": {head: {"ids", "names"}}}
# Limits of a part of a Parquet file, the first one reached counts: rows, numbers (16 MB of vectors), seconds
PART_ROWS, PART_NUMBERS, PART_SECONDS = 8192, 4_000_000, 30
PART = re.compile(r"\d{12}\.(parquet|unfinished)|whole")  # files in the folder of an unfinished Parquet file


def check_suffix(file: Path) -> None:
    """Raise InputError for a file whose suffix is not one of SUFFIXES."""
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out: {file.name!r} does not end in one of {', '.join(SUFFIXES)}")


def open_output(
    file: Path | None, columns: dict[str, Kind], classes: dict, settings: dict, overwrite: bool, batch_size: int
) -> "Output":
    """Open the output of `file`; None: CSV on standard output.

    classes: {head: {"ids", "names"}}, stored in a Parquet file. batch_size: number of rows written at a time. settings,
    and errors: see claim.
    """
    if file is None:
        return StandardOutput(columns)
    check_suffix(file)
    opened = claim(file, settings, overwrite)
    try:
        with oserror_as_input_error(file):
            if file.suffix.lower() == PARQUET:
                return ParquetFile(file, columns, classes, opened)
            return TextFile(file, columns, batch_size, opened)
    except InputError:
        opened.close()
        raise


class StandardOutput:
    """CSV on standard output; can't be resumed."""

    def __init__(self, columns: dict[str, Kind]):
        self.columns = columns
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")

    def rows(self) -> Iterator[dict]:
        sys.stdout.write(header(self.columns, ".csv"))
        yield from ()

    def write(self, rows: list[dict]) -> None:
        sys.stdout.write(to_text(rows, self.columns, ".csv"))
        sys.stdout.flush()

    def finish(self) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        pass


class TextFile:
    """CSV, TSV or JSON Lines; unfinished, it is a single file."""

    def __init__(self, file: Path, columns: dict[str, Kind], batch_size: int, opened: IO[str]):
        self.file, self.columns, self.suffix, self.opened = file, columns, file.suffix.lower(), opened
        self.batch_size = batch_size
        self.stream = open_kept(partial_path(file), "a+b")

    def rows(self) -> Iterator[dict]:
        self.stream.seek(0)
        end, batch = 0, []
        for row, row_end in read_rows(self.stream, self.columns, self.suffix, str(partial_path(self.file))):
            batch += [row] if row else []
            if not row or len(batch) == self.batch_size:
                yield from batch
                end, batch = row_end, []
        with oserror_as_input_error(self.file):
            self.stream.truncate(end)
            if end == 0:
                self.stream.write(header(self.columns, self.suffix).encode())

    def write(self, rows: list[dict]) -> None:
        with oserror_as_input_error(self.file):
            self.stream.write(to_text(rows, self.columns, self.suffix).encode())
            self.stream.flush()

    def finish(self) -> None:
        with oserror_as_input_error(self.file):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            rename(partial_path(self.file), self.file)
            release(self.file, self.opened)

    def close(self) -> None:
        self.stream.close()
        self.opened.close()


class ParquetFile:
    """Parquet; unfinished, it is a folder of complete Parquet files named by their first row.

    Rows that a killed command had not written to one are predicted again.
    """

    def __init__(self, file: Path, columns: dict[str, Kind], classes: dict, opened: IO[str]):
        self.file, self.opened, self.folder = file, opened, partial_path(file)
        create_folder(self.folder)
        self.schema = schema_of(columns, classes)
        self.columns = columns
        num_values = sum(1 if isinstance(kind, str) else len(kind) for kind in columns.values())
        self.part_rows = max(1, min(PART_ROWS, PART_NUMBERS // num_values))
        self.num_rows = 0  # in the parts written
        self.waiting: list[pa.Table] = []
        self.since = time.monotonic()

    def rows(self) -> Iterator[dict]:
        short = [name for name, kind in self.columns.items() if isinstance(kind, str)]
        for part in self._parts():
            try:
                if int(part.stem) != self.num_rows or not pq.read_schema(part).equals(self.schema):
                    raise ValueError("its parts are not consecutive")
                rows = pq.read_table(part, columns=short).to_pylist()
            except (ValueError, OSError, pa.ArrowException) as error:
                text = one_line(error, 200)
                raise InputError(f"{part} was not written by this command ({text}); give another --out") from None
            self.num_rows += len(rows)
            yield from rows

    def write(self, rows: list[dict]) -> None:
        self.waiting.append(pa.Table.from_pylist([self._cells(row) for row in rows], schema=self.schema))
        num_waiting = sum(len(table) for table in self.waiting)
        if num_waiting >= self.part_rows or time.monotonic() - self.since > PART_SECONDS:
            self._write_part()

    def finish(self) -> None:
        self._write_part()
        whole = self.folder / "whole"
        with oserror_as_input_error(self.file):
            with open_new(whole) as out:
                with pq.ParquetWriter(out, self.schema) as writer:
                    for table in self._coalesced():
                        writer.write_table(table)
                out.flush()
                os.fsync(out.fileno())
            rename(whole, self.file)
            discard(self.file)
            release(self.file, self.opened)

    def close(self) -> None:
        self.opened.close()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{'[0-9]' * 12}.parquet"))

    def _cells(self, row: dict) -> dict:
        return {name: row.get(name) for name in self.columns}

    def _write_part(self) -> None:
        self.since = time.monotonic()
        if not self.waiting:
            return
        table = pa.concat_tables(self.waiting)
        with oserror_as_input_error(self.file):
            part = self.folder / f"{self.num_rows:012d}.parquet"
            with open_new(part.with_suffix(".unfinished")) as out:
                pq.write_table(table, out)
            part.with_suffix(".unfinished").replace(part)
        self.num_rows += len(table)
        self.waiting = []

    def _coalesced(self) -> Iterator[pa.Table]:
        """Yield the parts in order, joining small ones, as each becomes a row group."""
        tables: list[pa.Table] = []
        for part in self._parts():
            tables.append(pq.read_table(part, schema=self.schema))
            if sum(len(table) for table in tables) >= self.part_rows:
                yield pa.concat_tables(tables)
                tables = []
        if tables:
            yield pa.concat_tables(tables)


Output = StandardOutput | TextFile | ParquetFile


def schema_of(columns: dict[str, Kind], classes: dict) -> pa.Schema:
    """Return the Arrow schema of the columns, with the classes as metadata."""
    kinds = {"text": pa.string(), "number": pa.float32()}
    fields = [
        (name, kinds[kind] if isinstance(kind, str) else pa.list_(pa.float32())) for name, kind in columns.items()
    ]
    return pa.schema(fields, metadata={METADATA: json.dumps({"classes": classes})})


def partial_path(file: Path) -> Path:
    return file.with_name(f"{file.name}{PARTIAL}")


def settings_path(file: Path) -> Path:
    return file.with_name(f"{file.name}{PARTIAL}.json")


def refuse_existing(file: Path, overwrite: bool) -> None:
    """Raise InputError if `file` is a folder, or exists and must not be overwritten."""
    with oserror_as_input_error(file):
        is_folder, is_there = file.is_dir(), file.exists()
    if is_folder:
        raise InputError(
            f"--out: {file} is a folder; give the name of a file in it, such as {file / 'predictions.csv'}"
        )
    if is_there and not overwrite:
        raise InputError(f"--out: {file} exists; give another name, or replace it with --overwrite")


def claim(file: Path, settings: dict, overwrite: bool) -> IO[str]:
    """Lock `file` for writing; return the open settings file, which holds the lock while it is open.

    settings: {name: plain value} that determine the rows. Raises InputError if `file` exists and must not be
    overwritten, another process writes it, or it was begun with other settings.
    """
    refuse_existing(file, overwrite)
    with oserror_as_input_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = _lock(file)
    written = opened.read()
    try:
        refuse_existing(file, overwrite)  # the process that held the lock may have finished it
        if not _is_continued(file, written, settings, overwrite):
            with oserror_as_input_error(file):
                opened.seek(0)
                opened.truncate()
                json.dump(settings, opened, indent=1)
                opened.flush()
    except InputError:
        opened.close()
        if not written:  # we have just created it
            settings_path(file).unlink(missing_ok=True)
        raise
    return opened


def release(file: Path, opened: IO[str]) -> None:
    """Remove the settings file and its lock, once `file` is complete."""
    if os.name == "nt":
        opened.close()  # Windows can't delete an open file
    settings_path(file).unlink(missing_ok=True)
    opened.close()


@contextlib.contextmanager
def oserror_as_input_error(file: Path) -> Iterator[None]:
    """Turn an OSError into an InputError."""
    try:
        yield
    except OSError as error:
        name, reason = shorten(str(file)), error.strerror or error
        fix = "give a shorter one" if error.errno == errno.ENAMETOOLONG else "fix that, and the same command resumes"
        raise InputError(f"--out: {name} can't be written ({reason}); {fix}") from None


def _lock(file: Path) -> IO[str]:
    while True:
        opened = open_kept(settings_path(file), "a+", encoding="utf-8")
        opened.seek(0)
        if not try_lock(opened):
            opened.close()
            raise InputError(f"--out: another command is writing {file} now; wait for it, or give another name")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), settings_path(file).stat()):
                return opened
        opened.close()  # deleted between opening and locking


def _is_continued(file: Path, written: str, settings: dict, overwrite: bool) -> bool:
    """Return whether an output begun with these settings exists.

    written: the settings that it was begun with, "" if none. Raises InputError for files of another origin. An output
    begun with other settings is discarded if it may be overwritten, else refused.
    """
    partial, exists = partial_path(file), os.path.lexists(partial_path(file))
    if not exists and not written:
        return False
    try:
        before = json.loads(written)
    except ValueError:
        before = None
    if not isinstance(before, dict) or not before.keys() & settings.keys():
        unknown_file = partial if exists else settings_path(file)
        raise InputError(
            f"{unknown_file} was not written by this command, or the settings it was begun with are lost "
            f"({settings_path(file)}); give another --out"
        )
    differing = [what for what in settings if before.get(what) != settings[what]]
    if differing and exists and not overwrite:
        what = differing[0]
        raise InputError(
            f"{partial} was begun with {what} {_shortened(before.get(what))}, not {_shortened(settings[what])}; "
            "give the same again, another --out, or --overwrite to start over"
        )
    if differing and exists:
        discard(file)
    return exists and not differing


def discard(file: Path) -> None:
    """Remove the unfinished output of `file`."""
    partial = partial_path(file)
    if partial.is_symlink() or not partial.is_dir():
        partial.unlink(missing_ok=True)
        return
    for part in partial.iterdir():
        if PART.fullmatch(part.name):
            part.unlink()
    with contextlib.suppress(OSError):  # it holds files that are not ours
        partial.rmdir()


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
