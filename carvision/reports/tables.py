"""Escape arbitrary text, such as class names, for Markdown.

Render tables for the terminal, as Markdown, and as self-contained HTML.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from carvision.files.atomic import write_text
from carvision.reports.comparison.sheets import BEST, OVERALL, TextTable, runs_table, shown_columns

# CommonMark and GitHub's tables, strikethrough, formulas and entities; "://" and "www." become links automatically.
# "_" means nothing between letters.
SPECIAL = re.compile(r"[\\`*\[\]<|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
FIRST = re.compile(r">|[-+=](?=[-+=\s]|$)|\d+(?=[.)](?:\s|$))")  # begins a quotation or list, underlines a heading


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


STYLES = {BEST: "bold green", OVERALL: "bold black on green", "": ""}
NAME_SHARE = 0.44  # of a terminal line, at most, for a run's name; longer names wrap
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


def print_runs(frame: pd.DataFrame, title: str, notes: list[str], console: Console, first: Sequence[str]) -> None:
    """Print the main table: one column per run if that fits, else one row per run with as many columns as fit.

    first: the columns with priority.
    """
    upright = runs_table(frame, title, notes, upright=True)
    if _width(_wrapped(upright, console.width)) <= console.width:
        print_table(upright, console)
        return
    groups = shown_columns(frame)
    every = [column for group in groups for column in group]
    ranked = [*first, *sorted(every, key=lambda column: column.startswith("train/"))]  # train last
    chosen: list[str] = []
    for column in dict.fromkeys(column for column in ranked if column in every):
        wider = runs_table(frame, title, notes, upright=False, only=[*chosen, column])
        if _width(_wrapped(wider, console.width)) <= console.width:
            chosen.append(column)
    if len(chosen) < len(every):
        notes = [*notes, f"{len(every) - len(chosen)} more columns are in compare.html, compare.md and compare.csv."]
    print_table(runs_table(frame, title, notes, upright=False, only=chosen), console)


def print_table(table: TextTable, console: Console) -> None:
    """Print a table. Without colour, one star marks the best and two the best of all."""
    coloured = console.color_system is not None and not console.no_color
    stars = {BEST: "*", OVERALL: "**", "": ""}
    width = 0 if coloured else max((len(stars[mark]) for marks in table.marks for mark in marks), default=0)
    wrapped = _wrapped(table, console.width)
    rich_table = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(wrapped.header):
        right = i > 0 and _is_numbers(row[i] for row in table.rows)
        rich_table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for i, (row, marks) in enumerate(zip(wrapped.rows, wrapped.marks, strict=True)):
        if i in table.breaks:
            rich_table.add_section()
        texts = [
            Text(cell + (stars[mark].ljust(width) if j and not coloured else ""), STYLES[mark])
            for j, (cell, mark) in enumerate(zip(row, marks, strict=True))
        ]
        rich_table.add_row(*texts)
    console.print(Text(f"\n{table.title}", "bold"))  # rich would wrap a table title to the table's width
    console.print(rich_table)
    for note in table.notes:
        console.print(Text(note, "dim"))


def _is_numbers(texts) -> bool:
    return all(re.fullmatch(r"[-\d.,± ()ofe+]*", text) for text in texts)


def _wrapped(table: TextTable, room: int) -> TextTable:
    """Wrap long names, broken at natural positions. room: characters per line of the terminal."""
    width = 10 if len(table.header) > 4 else 18
    header = [table.header[0], *(_broken(name, width) for name in table.header[1:])]
    rows = [[_broken(row[0], int(NAME_SHARE * room)), *row[1:]] for row in table.rows]
    return TextTable(table.title, header, rows, table.marks, table.breaks, table.notes)


def _broken(name: str, width: int) -> str:
    """Break at spaces, and within words that are too long after "_", "." and "/"."""
    pieces = re.findall(r"\([^)]*\) ?|[^ ]+ ?", name)
    pieces = [p for piece in pieces for p in ([piece] if len(piece) <= width else re.findall("[^_/.]*[_/.]?", piece))]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def _width(table: TextTable) -> int:
    """Return the width of the table on the terminal, in characters, including a star and the gaps."""
    columns = zip(table.header, *table.rows, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + 4 for column in columns)


def to_markdown(table: TextTable) -> str:
    """Return the table as Markdown."""

    def row(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    lines = [f"## {escape_markdown(table.title)}", "", row([escape_markdown(name) for name in table.header])]
    lines.append(row(["---", *["---:"] * (len(table.header) - 1)]))
    forms = {BEST: "**{}**", OVERALL: "***{}***", "": "{}"}
    for texts, marks in zip(table.rows, table.marks, strict=True):
        lines.append(row([forms[mark].format(escape_markdown(cell)) for cell, mark in zip(texts, marks, strict=True)]))
    return "\n".join([*lines, "", *(f"{escape_markdown(note)}\n" for note in table.notes)])


def write_markdown(file: Path, title: str, about: str, tables: Sequence[TextTable], pictures: dict[str, Path]) -> None:
    """Write the tables and links to the pictures, {title: file beside this one}."""
    parts = [f"# {escape_markdown(title)}\n", f"{escape_markdown(about)}\n", *map(to_markdown, tables)]
    named = {escape_markdown(name): quote(picture.name) for name, picture in pictures.items()}
    parts += [f"## {name}\n\n![{name}]({file})\n" for name, file in named.items()]
    write_text(file, "\n".join(parts))


def write_html(
    file: Path,
    title: str,
    about: str,
    tables: Sequence[TextTable],
    pictures: dict[str, Path],
    fragments: Sequence[str] = (),
) -> None:
    """Write a single file with embedded pictures, so that it can be sent. fragments: HTML below the pictures."""
    parts = [
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{CSS}</style>",
        f"<h1>{html.escape(title)}</h1><p class=about>{html.escape(about)}</p>",
        *map(_html_of, tables),
    ]
    for name, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        shown = html.escape(name)
        parts.append(f"<h2>{shown}</h2><figure><img alt='{shown}' src='data:image/png;base64,{data}'></figure>")
    write_text(file, "\n".join([*parts, *fragments]) + "\n")


def _html_of(table: TextTable) -> str:
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
