"""Tables of text, and their three forms: on the terminal, in Markdown, and as a self-contained HTML page."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from carvision.files.atomic import write_text

JOINT = {"joint/top1": "all heads right", "joint/consistent": "parent and child consistent"}  # metrics of all heads
BEST, OVERALL = "best", "overall"
STYLES = {BEST: "bold green", OVERALL: "bold black on green", "": ""}
STARS = {BEST: "*", OVERALL: "**", "": ""}  # on a terminal without colour
EMPHASIS = {BEST: "**{}**", OVERALL: "***{}***", "": "{}"}
NAME_SHARE = 0.44  # of a terminal line, at most, for the first column; longer names wrap
# CommonMark and GitHub's tables, strikethrough, formulas and entities; "://" and "www." become links automatically.
# "_" means nothing between letters.
SPECIAL = re.compile(r"[\\`*\[\]<|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
FIRST = re.compile(r">|[-+=](?=[-+=\s]|$)|\d+(?=[.)](?:\s|$))")  # begins a quotation or list, underlines a heading
CSS = """
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #333; margin: 2.5rem auto;
  max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
.about, .note { color: #6b6b6b; font-size: .87rem; margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; } th { font-weight: 600; overflow-wrap: anywhere; min-width: 4rem; max-width: 14rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; } table.words th { text-align: left; }
thead th { border-bottom: 2px solid #999; } tbody tr:nth-child(even) td { background: #f7f7f7; }
tr.break td { border-top: 1px solid #bbb; }
td.best { font-weight: 700; color: #14692f; }
td.overall { font-weight: 700; color: #fff; background: #1b7a3a !important; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    rows, marks: of the same shape, marks "", "best" or "overall"; no marks: none. breaks: rows with a line above them.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    marks: list[list[str]] = field(default_factory=list)
    breaks: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not self.marks:
            self.marks.extend([""] * len(row) for row in self.rows)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction in percent, with so many digits after the point; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def without_nan(value: Any) -> Any:
    """Return the value with None for each NaN in it, in dicts and lists too, as JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def print_table(table: TextTable, console: Console) -> None:
    """Print a table. Without colour, one star marks the best and two the best of all."""
    coloured = console.color_system is not None and not console.no_color
    width = 0 if coloured else max((len(STARS[mark]) for marks in table.marks for mark in marks), default=0)
    wrapped = _wrapped(table, console.width)
    rich_table = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(wrapped.header):
        right = i > 0 and _is_numbers(row[i] for row in table.rows)
        rich_table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for i, (row, marks) in enumerate(zip(wrapped.rows, wrapped.marks, strict=True)):
        if i in table.breaks:
            rich_table.add_section()
        texts = [
            Text(cell + (STARS[mark].ljust(width) if j and not coloured else ""), STYLES[mark])
            for j, (cell, mark) in enumerate(zip(row, marks, strict=True))
        ]
        rich_table.add_row(*texts)
    console.print(Text(f"\n{table.title}", "bold"))  # rich would wrap a table title to the table's width
    console.print(rich_table)
    for note in table.notes:
        console.print(Text(note, "dim"))


def fits(table: TextTable, console: Console) -> bool:
    """Return whether the table fits the terminal's width, with long names wrapped, a star and the gaps."""
    wrapped = _wrapped(table, console.width)
    columns = zip(wrapped.header, *wrapped.rows, strict=True)
    width = sum(max(len(line) for cell in column for line in cell.split("\n")) + 4 for column in columns)
    return width <= console.width


def _is_numbers(texts: Iterable[str]) -> bool:
    return all(re.fullmatch(r"[-\d.,± ()ofe+]*", text) for text in texts)


def _wrapped(table: TextTable, line_width: int) -> TextTable:
    """Return the table with its long names wrapped. line_width: characters per line of the terminal."""
    width = 10 if len(table.header) > 4 else 18
    header = [table.header[0], *(_wrap_name(name, width) for name in table.header[1:])]
    rows = [[_wrap_name(row[0], int(NAME_SHARE * line_width)), *row[1:]] for row in table.rows]
    return replace(table, header=header, rows=rows)


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
    """Return the table as Markdown."""

    def row(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    lines = [f"## {escape_markdown(table.title)}", "", row([escape_markdown(name) for name in table.header])]
    lines.append(row(["---", *["---:"] * (len(table.header) - 1)]))
    for texts, marks in zip(table.rows, table.marks, strict=True):
        lines.append(
            row([EMPHASIS[mark].format(escape_markdown(cell)) for cell, mark in zip(texts, marks, strict=True)])
        )
    return "\n".join([*lines, "", *(f"{escape_markdown(note)}\n" for note in table.notes)])


def write_markdown(file: Path, title: str, about: str, tables: Sequence[TextTable], pictures: dict[str, Path]) -> None:
    """Write the tables and links to the pictures, {title: file beside this one}."""
    parts = [f"# {escape_markdown(title)}\n", f"{escape_markdown(about)}\n", *map(to_markdown, tables)]
    for name, picture in pictures.items():
        parts.append("## {0}\n\n![{0}]({1})\n".format(escape_markdown(name), quote(picture.name)))
    write_text(file, "\n".join(parts))


def write_html(
    file: Path,
    title: str,
    about: str,
    tables: Sequence[TextTable],
    pictures: dict[str, Path],
    fragments: Sequence[str] = (),
) -> None:
    """Write a page with embedded pictures, {title: PNG}, so that it can be sent as a single file.

    fragments: HTML below the pictures.
    """
    parts = [
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{CSS}</style>",
        f"<h1>{html.escape(title)}</h1><p class=about>{html.escape(about)}</p>",
        *map(_to_html, tables),
    ]
    for name, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        shown = html.escape(name)
        parts.append(f"<h2>{shown}</h2><figure><img alt='{shown}' src='data:image/png;base64,{data}'></figure>")
    write_text(file, "\n".join([*parts, *fragments]) + "\n")


def _to_html(table: TextTable) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in table.header)
    lines = []
    for i, (texts, marks) in enumerate(zip(table.rows, table.marks, strict=True)):
        each = zip(texts, marks, strict=True)
        columns = "".join(f"<td{f' class={mark}' if mark else ''}>{html.escape(cell)}" for cell, mark in each)
        lines.append(f"<tr{' class=break' if i in table.breaks else ''}>{columns}")
    words = "" if any(map(any, table.marks)) else " class=words"
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2><div class=wide><table{words}><thead><tr>{head}</thead>\n<tbody>\n"
        + "\n".join(lines)
        + f"\n</tbody></table></div>{notes}"
    )
