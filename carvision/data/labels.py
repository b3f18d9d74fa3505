"""What the configuration makes of a table's classes: names to show them by, and one of them against the rest."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from carvision.data.disk import read_text
from carvision.data.photo_paths import nfc
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.errors import InputError, nearest

log = logging.getLogger(__name__)

REST = "rest"  # id and name of all other classes


def with_names(table: Table, file: Path) -> Table:
    """The table with the names that a CSV file gives to the classes of its finest label; ids stay as they are.

    The file has a header with id and name, or two columns without one; commas, semicolons or tabs. Ids that the table
    lacks are logged, as a list may be of more classes. Raises InputError for a class of the table without a name.
    """
    label = table.finest_classes
    names = _read_names(file)
    missing = [i for i in label.ids if nfc(i) not in names]
    if missing:
        raise InputError(
            f"data.names: {file} has no name for {len(missing)} of the {len(label)} classes of {table.finest} (first: "
            f"{missing[0]}{nearest(missing[0], names)}); add a line <id>,<name> for each, the id as the data have it"
        )
    unknown = names.keys() - {nfc(i) for i in label.ids}
    if unknown:
        log.info(
            "data.names: %d of the %d ids in %s are no %s of %s (first: %s)",
            len(unknown), len(names), file, table.finest, table.name, min(unknown),
        )  # fmt: skip
    named = replace(label, names=tuple(names[nfc(i)] for i in label.ids))
    return replace(table, labels={**table.labels, table.finest: named})


def _read_names(file: Path) -> dict[str, str]:
    text = read_text(file, "data.names is a CSV file of ids and names; null shows the ids").lstrip()
    line = text.partition("\n")[0]
    separator = min((each for each in ",;\t" if each in line), key=line.index, default=",")
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), 1) if row]
    columns, names = (0, 1), {}
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    has_header = {"id", "name"} <= set(header)
    if has_header:
        columns, rows = (header.index("id"), header.index("name")), rows[1:]
    for number, row in rows:
        if len(row) <= max(columns) or (len(row) > 2 and not has_header):
            raise InputError(f"data.names: line {number} of {file} is {separator.join(row)!r}, not <id>,<name>")
        key, name = (row[column].strip() for column in columns)
        if not key or not name:
            raise InputError(f"data.names: line {number} of {file} has no {'name' if key else 'id'}; fill it in")
        if names.setdefault(nfc(key), name) != name:
            raise InputError(f"data.names: line {number} of {file} gives {key} a second name; keep one")
    if not names:
        raise InputError(f"data.names: {file} is empty; give lines of <id>,<name>")
    return names


def one_against_rest(table: Table, wanted: str) -> Table:
    """The table with two classes in place of a label's: the one given by id or name, and "rest".

    The label is the finest one that has the class, and becomes the finest; other labels stay, and those whose parent
    it is now follow from the two. Raises InputError where there is no such class, or nothing beside it.
    """
    name, code = _find_class(table, wanted)
    label, codes = table.class_labels[name], table.rows[name].to_numpy()
    if not (codes == code).any() or not ((codes != code) & (codes != UNKNOWN)).any():
        raise InputError(f"data.one_against_rest: {table.name} has photos of {wanted!r} or of others, not of both")
    rest = REST if label.ids[code] != REST else f"not {REST}"
    rows = table.rows.copy(deep=False)
    rows[name] = np.where(codes == UNKNOWN, UNKNOWN, codes != code).astype(np.int32)
    labels = {**table.labels, name: Classes((label.ids[code], rest), (label.names[code], rest))}
    for child, other in table.class_labels.items():
        if other.parent == name:
            labels[child] = replace(other, parent_codes=tuple(int(parent != code) for parent in other.parent_codes))
    return replace(table, rows=rows, labels=labels, finest=name)


def _find_class(table: Table, wanted: str) -> tuple[str, int]:
    """Label and code of the class with this id or name."""
    known: set[str] = set()
    for name in (table.finest, *(name for name in table.class_labels if name != table.finest)):
        label = table.class_labels[name]
        of_ids, of_names = (
            [i for i, v in enumerate(values) if nfc(v) == nfc(wanted)] for values in (label.ids, label.names)
        )
        found = of_ids or of_names
        if len(found) > 1:
            ids = ", ".join(label.ids[i] for i in found)
            raise InputError(
                f"data.one_against_rest: {len(found)} classes of {name} are called {wanted!r}; give an id: {ids}"
            )
        if found:
            return name, found[0]
        known |= {*label.ids, *label.names}
    raise InputError(
        f"data.one_against_rest: {wanted!r} is no class of {table.name} (id or name){nearest(wanted, known)}"
    )
