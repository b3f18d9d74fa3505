"""Read tables that people write, row by row: those of data=manifest, carvision.predict --list and data.split.file.

CSV and TSV are UTF-8, with or without a byte-order mark, separated by comma, semicolon or tab, whatever their suffix;
where the comma does not separate, it may be the decimal point. The first line names the columns.
"""

import csv
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow
import pyarrow.parquet

from carvision.data.paths import is_utf8, nfc, text_of_path
from carvision.data.readers.disk import UTF16
from carvision.data.table import BOX
from carvision.errors import InputError, one_line

SEPARATORS = {".csv": ",;\t", ".tsv": "\t,;"}  # the likeliest first
PARQUET = ".parquet"
NO_SEPARATOR = "\x1f"  # for a table with one column, where the whole line is its cell
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class TableFile:
    """A CSV, TSV or Parquet file.

    columns: their names, without blanks around them. separator: "" for Parquet.
    """

    def __init__(self, file: Path, key: str, needed: Sequence[str] = ("path",), hint: str = ""):
        """Read the names of the columns.

        key: the option that names the file, and hint: how to give it, for errors. needed: columns that tell which
        separator is right. Raises InputError for a file that can't be read or is no table.
        """
        self.file, self.key = file, key
        suffix = file.suffix.lower()
        if suffix not in SEPARATORS and suffix != PARQUET:
            raise InputError(f"{key}: {file.name!r} does not end in one of {', '.join(SEPARATORS)}, {PARQUET}")
        if not file.is_file():
            raise InputError(f"{key}: {file} does not exist; {hint or 'give a file that does'}")
        if suffix == PARQUET:
            self.separator, self.columns = "", [nfc(name.strip()) for name in self._parquet_schema().names]
            return
        headers = [(separator, self._header(separator)) for separator in SEPARATORS[suffix]]
        fitting = [header for header in headers if set(map(nfc, needed)) <= set(header[1])]
        self.separator, self.columns = fitting[0] if fitting else max(headers, key=lambda header: len(header[1]))
        self.separator = self.separator if len(self.columns) > 1 else NO_SEPARATOR

    def require(self, names: Iterable[str]) -> None:
        """Raise InputError for a column that is absent or there twice, and for boxes without all four sides."""
        sides = BOX if any(name in self.columns for name in BOX) else []
        for name in map(nfc, [*sides, *names]):
            if name not in self.columns:
                box = f", and a box needs {', '.join(BOX)}" if name in sides else ""
                there = ", ".join(self.columns) or "none"
                raise InputError(f"{self.key}: {self.file} has no column {name!r}{box}; its columns: {there}")
            if self.columns.count(name) > 1:
                raise InputError(f"{self.key}: {self.file} has two columns {name!r}; rename one")

    @property
    def has_boxes(self) -> bool:
        return BOX[0] in self.columns

    def rows(self, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield each row that is not empty: its line (for Parquet its number from 1) and {column: cell}.

        Blanks around a cell are stripped, except for the path, whose name may have them. Raises InputError for what is
        no table or not UTF-8; only a path may hold other bytes, as surrogates, because file names may.
        """
        indices = {name: self.columns.index(nfc(name)) for name in wanted}
        rows = self._text_rows() if self.separator else self._parquet_rows(sorted(set(indices.values())))
        for line, cells in rows:
            row = {name: cells[i] if i < len(cells) else "" for name, i in indices.items()}
            for name, cell in row.items():
                is_path = name == "path"
                if is_path and not cell.strip():
                    raise InputError(f"{self.location(line)} has no path; fill the column path")
                if "\0" in cell if is_path else not is_utf8(cell):
                    raise self.not_utf8(line, cell)
                row[name] = cell if is_path else cell.strip()
            yield line, row

    def number(self, row: dict[str, str], name: str, line: int) -> float:
        """Return the number in a cell; NaN if it is empty."""
        text = row[name]
        if not text or text.lower() == "nan":
            return float("nan")
        plain = text.replace(",", ".") if self.separator != "," and text.count(",") == 1 and "." not in text else text
        if not NUMBER.fullmatch(plain):
            raise InputError(f"{self.location(line)}: {name} is {text!r}, no number; correct it, or leave it empty")
        return float(plain)

    def box(self, row: dict[str, str], line: int) -> tuple[float, float, float, float] | None:
        """Return left, top, right, bottom; None if all are empty."""
        left, top, right, bottom = (self.number(row, name, line) for name in BOX)
        num_empty = sum(map(math.isnan, (left, top, right, bottom)))
        if num_empty in (1, 2, 3):
            given = " ".join(row[name] or "-" for name in BOX)
            raise InputError(f"{self.location(line)}: the box {given} is not four numbers; fill it, or leave all empty")
        return None if num_empty else (left, top, right, bottom)

    def split(self, row: dict[str, str], line: int) -> str:
        """Return the split: train, val, test or ""."""
        word = row["split"].lower()
        if word and word not in SPLIT_WORDS:
            words = ", ".join(SPLIT_WORDS)
            raise InputError(f"{self.location(line)}: split {row['split']!r} is not one of {words}, or empty")
        return SPLIT_WORDS.get(word, "")

    def location(self, line: int) -> str:
        return f"{self.key}: {self.file}, {'row' if self.file.suffix.lower() == PARQUET else 'line'} {line}"

    def not_utf8(self, line: int, cell: str) -> InputError:
        cell = text_of_path(cell)
        return InputError(f"{self.location(line)}: '{cell}' is not in the encoding UTF-8; save the table as UTF-8")

    def two_classes(self, label: str, one: tuple[int, str, str], other: tuple[int, str, str]) -> InputError:
        """Return the error for a photo of two classes. one, other: line, path as it is written there, and class."""
        (line, path, ours), (other_line, other_path, theirs) = one, other
        return InputError(
            f"{self.key}: {self.file}: one photo has two classes: {label} is {ours!r} of {text_of_path(path)} in line "
            f"{line}, and {theirs!r} of {text_of_path(other_path)} in line {other_line}; keep the right one"
        )

    def _records(self, separator: str, strict: bool = True) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the line number and the cells of each row that is not empty. strict: stray quotes are errors."""
        with _open_text(self.file, self.key) as text:
            # After "path, class", blanks behind separators mean nothing, even before a quoted cell
            spaced = re.match(rf"[^\n]*{re.escape(separator)} ", text.readline()) is not None
            text.seek(0)
            reader = csv.reader(text, delimiter=separator, strict=strict, skipinitialspace=spaced)
            try:
                for record in reader:
                    if any(cell and not cell.isspace() for cell in record):
                        yield reader.line_num, record
            except csv.Error as error:
                line = self.location(reader.line_num)
                raise InputError(f"{line} can't be read as CSV ({error}); correct it") from None

    def _header(self, separator: str) -> list[str]:
        line, record = next(self._records(separator, strict=False), (1, []))
        names = [nfc(cell.strip()) for cell in record]
        while names and not names[-1]:
            names.pop()
        for name in names:
            if not is_utf8(name) or "\0" in name:
                raise self.not_utf8(line, name)
        return names

    def _text_rows(self) -> Iterator[tuple[int, Sequence[str]]]:
        num_columns = len(self.columns)
        for line, cells in itertools.islice(self._records(self.separator), 1, None):
            if any(cell.strip() for cell in cells[num_columns:]):
                raise InputError(
                    f"{self.location(line)} has {len(cells)} cells and the first line {num_columns}; put double quotes "
                    f"around a cell that holds the separator {self.separator!r}"
                )
            yield line, cells

    def _parquet_schema(self) -> pyarrow.Schema:
        try:
            return pyarrow.parquet.read_schema(self.file)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._no_parquet(error) from None

    def _parquet_rows(self, wanted: list[int]) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield rows in which all cells but those of the columns `wanted` (indices) are empty."""
        line, names = 0, self._parquet_schema().names
        try:
            with pyarrow.parquet.ParquetFile(self.file) as table:
                for batch in table.iter_batches(batch_size=4096, columns=[names[i] for i in wanted]):
                    columns = [[""] * batch.num_rows] * len(names)
                    for i, values in zip(wanted, batch.columns, strict=True):
                        columns[i] = [_text(value) for value in values.to_pylist()]
                    for cells in zip(*columns, strict=True):
                        line += 1
                        yield line, cells
        except (pyarrow.ArrowException, OSError) as error:
            raise self._no_parquet(error) from None

    def _no_parquet(self, error: Exception) -> InputError:
        return InputError(f"{self.key}: {self.file} can't be read as Parquet ({one_line(error, 200)})")


def _open_text(file: Path, key: str) -> IO[str]:
    """Open the file as UTF-8 without its byte-order mark: other bytes become surrogates, line ends stay."""
    try:
        with file.open("rb") as binary:
            if binary.read(2) in UTF16:
                raise InputError(f"{key}: {file} is UTF-16 text; save it as UTF-8")
        return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise InputError(f"{key}: {file} can't be read ({error.strerror or error})") from None


def _text(value) -> str:
    """Return a value as CSV has it: "" for None and NaN; "3" for 3.0, a whole number made float by empty cells."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
