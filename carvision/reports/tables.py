"""Tables of text in three forms: on the terminal, in Markdown, and (by page.html) in HTML."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

JOINT = {"joint/top1": "all heads right", "joint/consistent": "parent and child consistent"}  # metrics of all heads
BEST, OVERALL = "best", "overall"
STYLES = {BEST: "bold green", OVERALL: "bold black on green", "": ""}
STARS = {BEST: "*", OVERALL: "**", "": ""}  # on a terminal without colour
EMPHASIS = {BEST: "**{}**", OVERALL: "***{}***", "": "{}"}
NAME_SHARE = 0.44  # of a terminal line, at most, for the first column; longer names wrap
NUMBERS = re.compile(r"[-–\d.,± ()ofe+]*")  # a cell of a column of numbers
# CommonMark and GitHub's tables, strikethrough, formulas and entities; "://" and "www." become links automatically.
# "_" means nothing between letters.
SPECIAL = re.compile(r"[\\`*\[\]<|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
FIRST = re.compile(r">|[-+=](?=[-+=\s]|$)|\d+(?=[.)](?:\s|$))")  # begins a quotation or list, underlines a heading


@dataclass(frozen=True)
class TextTable:
    """A table of text. Columns of numbers are aligned to the right, in each form.

    header: names of the columns, of which the first names the rows. marks: of the rows' shape, "", "best" or "overall";
    none: no marks. breaks: rows with a line above them. notes: lines below. shades: of the rows' cells but the first,
    0..1 or NaN: how strongly a page shades them.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    marks: list[list[str]] = field(default_factory=list)
    breaks: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    shades: list[list[float]] = field(default_factory=list)

    def is_numeric(self) -> list[bool]:
        """Return whether each column is one of numbers; the first never is."""
        cells = range(1, len(self.header))
        return [False, *(all(NUMBERS.fullmatch(row[i]) for row in self.rows) for i in cells)]

    def marked_rows(self) -> Iterator[tuple[list[str], list[str]]]:
        """Iterate over the rows, each with its marks."""
        return zip(self.rows, self.marks or [[""] * len(self.header)] * len(self.rows), strict=True)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction in percent, with so many digits after the point; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def has_rank(name: str, num_classes: int) -> bool:
    """Return whether a metric says something with so many classes: of three, the true one is always in the top 3."""
    return name not in ("top3", "top5") or num_classes > int(name[-1])


def without_nan(value: Any) -> Any:
    """Return the value with None for each NaN in it, in dicts and lists too, as JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def best_of_columns(shown: "pd.DataFrame", lowest: Sequence[str] = ()) -> list[list[str]]:
    """Return "best" or "" for each value of a frame: the largest of its column, or the lowest in those named.

    shown: values as displayed, so that ties are those that a reader sees. A single row has no best.
    """
    extremes = [shown[name].min() if name in lowest else shown[name].max() for name in shown]
    return [[BEST if len(shown) > 1 and v == e else "" for v, e in zip(row, extremes, strict=True)]
            for row in shown.to_numpy().tolist()]  # fmt: skip


def print_table(table: TextTable, console: Console) -> None:
    """Print a table. Without colour, one star marks the best and two the best of all."""
    console.print(Text(f"\n{table.title}", "bold"))  # rich would wrap a table title to the table's width
    console.print(_rich(table, console))
    for note in table.notes:
        console.print(Text(note, "dim"))


def fits(table: TextTable, console: Console) -> bool:
    """Return whether the table fits the terminal's width, with its long names wrapped."""
    options = console.options.update(max_width=10_000)
    return Measurement.get(console, options, _rich(table, console)).maximum <= console.width


def _rich(table: TextTable, console: Console) -> RichTable:
    coloured = console.color_system is not None and not console.no_color
    stars = 0 if coloured else max((len(STARS[mark]) for marks in table.marks for mark in marks), default=0)
    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    width = 10 if len(table.header) > 4 else 18
    for i, (name, is_numeric) in enumerate(zip(table.header, table.is_numeric(), strict=True)):
        text = Text(_wrap_name(name, width) if i else name)
        shown.add_column(text, justify="right" if is_numeric else "left", overflow="fold")
    for i, ((name, *cells), marks) in enumerate(table.marked_rows()):
        if i in table.breaks:
            shown.add_section()
        texts = [
            Text(cell if coloured else cell + STARS[mark].ljust(stars), STYLES[mark])
            for cell, mark in zip(cells, marks[1:], strict=True)
        ]
        shown.add_row(Text(_wrap_name(name, int(NAME_SHARE * console.width))), *texts)
    return shown


def _wrap_name(name: str, width: int) -> str:
    """Break a name at spaces, and words that are too long after "_", "." and "/"."""
    pieces = re.findall(r"\([^)]*\) ?|[^ ]+ ?", name)
    pieces = [p for piece in pieces for p in ([piece] if len(piece) <= width else re.findall("[^_/.]*[_/.]?", piece))]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def escape_markdown(text: object) -> str:
    """Return one line that Markdown shows literally wherever it stands: no markup, no HTML, no end of a table cell."""
    line = " ".join(str(text).replace("\0", "\ufffd").split())
    line = SPECIAL.sub(lambda match: f"\\{match[0]}", line)
    start = FIRST.match(line)
    if start is None:
        return line
    return f"\\{line}" if start[0] in ">-+=" else f"{start[0]}\\{line[start.end() :]}"


def code_block(text: str, language: str = "") -> str:
    """Return a fenced code block whose fence does not occur in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def to_markdown(table: TextTable) -> str:
    """Return the table as Markdown, without its title and notes."""

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    lines = [line([escape_markdown(name) for name in table.header])]
    lines.append(line(["---:" if is_numeric else "---" for is_numeric in table.is_numeric()]))
    for cells, marks in table.marked_rows():
        lines.append(line([EMPHASIS[mark].format(escape_markdown(c)) for c, mark in zip(cells, marks, strict=True)]))
    return "\n".join(lines)
