"""Convert rows to lines of CSV, TSV or JSON, and read them back."""

import csv
import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from carvision.errors import InputError
from carvision.inference.rows import Kind

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = ".jsonl"


def header(columns: dict[str, Kind], suffix: str) -> str:
    """Return the header line, "" for JSON Lines. The vector make_probs becomes one column make_prob:<id> per class."""
    if suffix == JSON_LINES:
        return ""
    names = []
    for name, kind in columns.items():
        names += [name] if isinstance(kind, str) else [f"{name.removesuffix('s')}:{one}" for one in kind]
    return _delimited([names], suffix)


def to_text(rows: list[dict], columns: dict[str, Kind], suffix: str) -> str:
    """Return one line per row; missing values are empty cells, null in JSON. Numbers have six significant digits."""
    if suffix == JSON_LINES:
        return "".join(json.dumps(_json_row(row, columns), ensure_ascii=False) + "\n" for row in rows)
    return _delimited([_cells(row, columns) for row in rows], suffix)


def read_rows(file: BinaryIO, columns: dict[str, Kind], suffix: str, name: str) -> Iterator[tuple[dict, int]]:
    """Yield (row, end offset in bytes) for the complete rows of a file written with `header` and `to_text`.

    The header yields an empty row; the cells of CSV are text; an incomplete last line is skipped. name: of the file,
    for errors. Raises InputError for any other content.
    """
    records = _complete_records(file, quoted=suffix != JSON_LINES)
    head, names = header(columns, suffix), []
    try:
        if head:
            record, end = next(records, (None, 0))
            if record is None:
                return
            if record != head.encode():
                raise ValueError("it has other columns")
            names = _cells_of(record, suffix)
            yield {}, end
        for record, end in records:
            row = dict(zip(names, _cells_of(record, suffix), strict=True)) if head else json.loads(record)
            if not isinstance(row, dict) or "path" not in row:
                raise ValueError("a line without a path")
            yield row, end
    except (ValueError, csv.Error) as error:  # invalid JSON or UTF-8, or a wrong number of cells
        raise InputError(f"{name} was not written by this command ({error}); give another --out") from None


def _complete_records(file: BinaryIO, quoted: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (record, end offset), joining lines of a quoted cell that contains newlines."""
    record, end = b"", 0
    for line in file:
        record += line
        end += len(line)
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record, end
            record = b""


def _delimited(records: list[list[str]], suffix: str) -> str:
    """Quote as RFC 4180 requires. Not with the csv module, which left "\\r" unquoted before Python 3.13."""
    separator = SEPARATORS[suffix]
    special = (separator, '"', "\n", "\r")

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(one in cell for one in special) else cell

    return "".join(separator.join(map(quoted, record)) + "\n" for record in records)


def _cells_of(record: bytes, suffix: str) -> list[str]:
    return next(csv.reader(io.StringIO(record.decode(), newline=""), delimiter=SEPARATORS[suffix]))


def _cells(row: dict, columns: dict[str, Kind]) -> list[str]:
    cells = []
    for name, kind in columns.items():
        value = row.get(name)
        if not isinstance(kind, str):
            cells += [""] * len(kind) if value is None else [f"{one:.6g}" for one in value.tolist()]
        else:
            cells.append("" if value is None else f"{value:.6g}" if kind == "number" else value)
    return cells


def _json_row(row: dict, columns: dict[str, Kind]) -> dict:
    plain = dict.fromkeys(columns)
    for name, kind in columns.items():
        value = row.get(name)
        if value is not None and kind != "text":
            value = float(f"{value:.6g}") if kind == "number" else [float(f"{one:.6g}") for one in value.tolist()]
        plain[name] = value
    return plain
