"""Write rows to CSV, TSV, JSON Lines or Parquet: complete or not at all, and resumed where a killed command stopped.

While it is written, an output FILE is FILE.partial, whatever its suffix: a stream in Arrow's IPC format, with the
settings that determine the rows in its schema, then a record batch for each batch of rows. The writing process holds a
lock on it.

All outputs have the same methods:
    rows()        call once, and exhaust: the rows that an earlier command wrote, without their probs; only complete
                  batches, so that a resumed output equals an uninterrupted one bit for bit
    write(rows)   append a batch of rows
    finish()      write the output under its own name
    close()       call in any case; an unfinished output stays and can be resumed
"""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from carvision.data.readers.table_file import PARQUET
from carvision.errors import InputError
from carvision.files.atomic import PARTIAL, open_kept, open_new, rename
from carvision.files.folders import shorten
from carvision.files.locks import try_lock
from carvision.inference.rows import DELIMITERS, JSON_LINES, Layout, Row, flatten, header, to_text

SUFFIXES = (*DELIMITERS, JSON_LINES, PARQUET)
# The key of a schema's metadata, JSON: {"classes": {head: {"ids", "names"}}} of Parquet, the settings of FILE.partial
METADATA = b"carvision"
# Limits of a row group of Parquet, the first one reached counts: rows, numbers (16 MB of vectors)
GROUP_ROWS, GROUP_NUMBERS = 8192, 4_000_000


def check_out(file: Path, overwrite: bool) -> None:
    """Raise InputError if the suffix is not one of SUFFIXES, or `file` is a folder or exists and must not be
    overwritten."""
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out: {file.name!r} does not end in one of {', '.join(SUFFIXES)}")
    with oserror_as_input_error(file):
        is_folder, is_there = file.is_dir(), file.exists()
    if is_folder:
        raise InputError(f"--out: {file} is a folder; give a file's name in it, such as {file / 'predictions.csv'}")
    if is_there and not overwrite:
        raise InputError(f"--out: {file} exists; give another name, or replace it with --overwrite")


class StandardOutput:
    """CSV on standard output; can't be resumed."""

    def __init__(self, layout: Layout):
        self.columns = layout.columns
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")

    def rows(self) -> Iterator[Row]:
        sys.stdout.write(header(self.columns, ".csv"))
        yield from ()

    def write(self, rows: list[Row]) -> None:
        sys.stdout.write(to_text(rows, self.columns, ".csv"))
        sys.stdout.flush()

    def finish(self) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        pass


class FileOutput:
    """A file of one of SUFFIXES.

    classes: {head: {"ids", "names"}}, stored in a Parquet file. settings: {name: plain value} that determine the rows.
    batch_size: number of rows written at a time. Raises InputError if `file` exists and must not be overwritten,
    another process writes it, or it was begun with other settings.
    """

    def __init__(self, file: Path, layout: Layout, classes: dict, settings: dict, overwrite: bool, batch_size: int):
        self.file, self.layout, self.classes, self.batch_size = file, layout, classes, batch_size
        self.schema = schema_of_rows(layout)
        with oserror_as_input_error(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = _lock(file)
            try:
                check_out(file, overwrite)  # the process that held the lock may have finished it
                self._begin(settings, overwrite)
            except (InputError, OSError):
                if os.fstat(self.stream.fileno()).st_size == 0:  # we have just created it
                    self._remove_stream()
                self.close()
                raise

    def rows(self) -> Iterator[Row]:
        for batch in self._batches():
            if len(batch) < self.batch_size:
                break
            yield from (Row(**each) for each in batch.drop_columns(["probs"]).to_pylist())
        with oserror_as_input_error(self.file):
            self.stream.truncate(self.end)

    def write(self, rows: list[Row]) -> None:
        batch = pa.RecordBatch.from_pylist([row._asdict() for row in rows], schema=self.schema)
        with oserror_as_input_error(self.file):
            self.stream.write(batch.serialize())
            self.stream.flush()

    def finish(self) -> None:
        whole = self.file.with_name(f"{self.file.name}{PARTIAL}.whole")
        with oserror_as_input_error(self.file):
            with open_new(whole) as out:
                if self.file.suffix.lower() == PARQUET:
                    self._write_parquet(out)
                else:
                    self._write_text(out)
                out.flush()
                os.fsync(out.fileno())
            rename(whole, self.file)
            self._remove_stream()

    def close(self) -> None:
        self.stream.close()

    def _begin(self, settings: dict, overwrite: bool) -> None:
        """Write the beginning of the stream, unless it has one of the same settings."""
        beginning = self.schema.with_metadata({METADATA: json.dumps(settings)}).serialize().to_pybytes()
        written = self.stream.read(len(beginning))
        if written == beginning:
            return
        if not beginning.startswith(written):  # as that of a new one, or of one that was torn there
            before = _settings_in(self.stream, self.file)
            differing = [what for what in settings if before.get(what) != settings[what]]
            if not differing:  # another version of Arrow wrote it
                return
            if not overwrite:
                what = differing[0]
                raise InputError(
                    f"{partial_path(self.file)} was begun with {what} {_shortened(before.get(what))}, not "
                    f"{_shortened(settings[what])}; give the same again, another --out, or --overwrite to start over"
                )
        self.stream.truncate(0)
        self.stream.write(beginning)
        self.stream.flush()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches of rows that are complete. self.end: the offset behind those that were consumed."""
        self.stream.seek(0)
        stream = pa.PythonFile(self.stream, mode="r")
        schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        self.end = self.stream.tell()
        with contextlib.suppress(EOFError, OSError, pa.ArrowException):  # at its end, or torn there
            while True:
                yield pa.ipc.read_record_batch(pa.ipc.read_message(stream), schema)
                self.end = self.stream.tell()

    def _write_text(self, out: IO[bytes]) -> None:
        columns, suffix = self.layout.columns, self.file.suffix.lower()
        out.write(header(columns, suffix).encode())
        for batch in self._batches():
            out.write(to_text((Row(**each) for each in batch.to_pylist()), columns, suffix).encode())

    def _write_parquet(self, out: IO[bytes]) -> None:
        columns = self.layout.columns
        num_values = sum(1 if isinstance(kind, str) else len(kind) for kind in columns.values())
        group_rows = max(1, min(GROUP_ROWS, GROUP_NUMBERS // num_values))
        schema = schema_of_table(self.layout, self.classes)
        with pq.ParquetWriter(out, schema) as writer:
            waiting: list[pa.Table] = []
            for batch in self._batches():
                waiting.append(_flat(batch, self.layout, schema))
                if sum(len(table) for table in waiting) >= group_rows:
                    writer.write_table(pa.concat_tables(waiting).combine_chunks())
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())

    def _remove_stream(self) -> None:
        """Remove FILE.partial, and release its lock."""
        if os.name == "nt":
            self.stream.close()  # Windows can't delete an open file
        partial_path(self.file).unlink(missing_ok=True)
        self.stream.close()


Output = StandardOutput | FileOutput


def schema_of_rows(layout: Layout) -> pa.Schema:
    """Return the Arrow schema of a Row."""
    text, number = pa.string(), pa.float32()
    classes = pa.list_(pa.struct({"id": text, "name": text, "prob": number}))
    vectors = dict.fromkeys(layout.class_ids if layout.probs else (), pa.list_(number))
    fields = {
        "path": text,
        "labels": pa.struct({label: classes if label in layout.class_ids else number for label in layout.labels}),
        "error": text,
        "truth": pa.struct(dict.fromkeys(layout.true_heads, text)),
        "probs": pa.struct(vectors),
    }
    return pa.schema([(name, fields[name]) for name in Row._fields])


def schema_of_table(layout: Layout, classes: dict) -> pa.Schema:
    """Return the Arrow schema of the table's columns, with the classes as metadata."""
    kinds = {"text": pa.string(), "number": pa.float32()}
    fields = [
        (name, kinds[kind] if isinstance(kind, str) else pa.list_(pa.float32()))
        for name, kind in layout.columns.items()
    ]
    return pa.schema(fields, metadata={METADATA: json.dumps({"classes": classes})})


def _flat(batch: pa.RecordBatch, layout: Layout, schema: pa.Schema) -> pa.Table:
    """Return the table of a batch of rows; vectors stay in Arrow's memory, as they may have thousands of numbers."""
    vectors = {f"{head}_probs": batch["probs"].field(head) for head in layout.class_ids if layout.probs}
    short = [name for name in layout.columns if name not in vectors]
    rows = [flatten(Row(**each), short) for each in batch.drop_columns(["probs"]).to_pylist()]
    columns = {name: pa.array([row[name] for row in rows], schema.field(name).type) for name in short}
    return pa.table([vectors.get(name, columns.get(name)) for name in layout.columns], schema=schema)


def partial_path(file: Path) -> Path:
    return file.with_name(f"{file.name}{PARTIAL}")


@contextlib.contextmanager
def oserror_as_input_error(file: Path) -> Iterator[None]:
    """Turn an OSError into an InputError."""
    try:
        yield
    except OSError as error:
        name, reason = shorten(str(file)), error.strerror or error
        fix = "give a shorter one" if error.errno == errno.ENAMETOOLONG else "fix that, and the same command resumes"
        raise InputError(f"--out: {name} can't be written ({reason}); {fix}") from None


def _lock(file: Path) -> IO[bytes]:
    """Open FILE.partial and lock it."""
    while True:
        opened = open_kept(partial_path(file), "a+b")
        opened.seek(0)
        if not try_lock(opened):
            opened.close()
            raise InputError(f"--out: another command is writing {file} now; wait for it, or give another name")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), partial_path(file).stat()):
                return opened
        opened.close()  # deleted between opening and locking


def _settings_in(stream: IO[bytes], file: Path) -> dict:
    """Return the settings that FILE.partial was begun with."""
    stream.seek(0)
    is_stream = stream.read(4) == b"\xff" * 4  # other bytes would be read as a length, perhaps of gigabytes
    stream.seek(0)
    settings = None
    with contextlib.suppress(EOFError, OSError, ValueError, TypeError, KeyError):  # torn, or not ours
        if is_stream:
            schema = pa.ipc.read_schema(pa.ipc.read_message(pa.PythonFile(stream, mode="r")))
            settings = json.loads(schema.metadata[METADATA])
    if not isinstance(settings, dict):
        raise InputError(f"{partial_path(file)} was not written by this command; give another --out")
    return settings


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
