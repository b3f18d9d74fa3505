"""Write a report as a page: one HTML file that can be sent, or Markdown with its pictures beside it.

The templates of all pages are in templates/: base.html is their frame and style, macros.html their parts.
"""

import base64
import datetime
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from carvision import __version__
from carvision.files.atomic import write_text
from carvision.reports.tables import TextTable, escape_markdown, percent, to_markdown

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, and any of paragraphs, a table, a picture (PNG) and further HTML, in this order.

    markup: HTML that is shown as it is, such as a chart; Markdown leaves it out.
    """

    heading: str
    texts: Sequence[str] = ()
    table: TextTable | None = None
    picture: Path | None = None
    markup: Markup | None = None


def sections_of(tables: Sequence[TextTable], pictures: Mapping[str, Path]) -> list[Section]:
    """Return a section for each table, then for each picture, {heading: PNG}."""
    shown = [Section(table.title, table=table) for table in tables]
    return shown + [Section(heading, picture=file) for heading, file in pictures.items()]


def write_page(file: Path, title: str, about: str, sections: Sequence[Section]) -> None:
    """Write sections as one HTML file. about: a line below the title."""
    write_template(file, "sections.html", title=title, about=about, sections=sections)


def write_template(file: Path, template: str, **values: Any) -> None:
    """Write one HTML file with everything embedded, which asks no server for anything, from a file of templates/.

    All texts are escaped, whatever they hold, but for Markup. values: what the template names; each needs "title" and
    "about", a line below it.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    own = {
        "zip": zip,
        "nan": math.nan,
        "base64": _base64,
        "json_block": _json_block,
        "percent": percent,
        "soft": _soft,
        "shell": shlex.quote,
        "python": repr,
    }
    written = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    text = environment.get_template(template, globals=own).render(version=__version__, written=written, **values)
    write_text(file, text + "\n")


def _json_block(identity: str, value: object) -> Markup:
    """Return a script element with data for the page's script, in which no text can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{identity}">{text}</script>')


def _soft(text: object) -> Markup:
    """Return the text, escaped; it may break in names of files, runs and keys: after "_", "/", "=" and dots. Short
    brackets, as of an interval, stay on one line, as do "top-1, %" and 1e-05."""
    text = re.sub(r"[\[(][^\[\]()]{1,16}[\])]", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), str(text))
    text = re.sub(r"(?<=[_/=])(?=[^_/=])|(?<=[a-z]\.)(?=[a-z])", "<wbr>", str(escape(text)))
    return Markup(re.sub(r"\btop-\d(?:, %)?|\b[\d.]+e-\d+", r'<span class="whole">\g<0></span>', text))


def _base64(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()


def write_markdown(file: Path, title: str, about: str, sections: Sequence[Section]) -> None:
    """Write the sections as Markdown, with links to the pictures, which must be in the folder of the file."""
    parts = [f"# {escape_markdown(title)}\n", f"{escape_markdown(about)}\n"]
    for section in sections:
        parts += [f"## {escape_markdown(section.heading)}\n"] if section.heading else []
        parts += [f"{escape_markdown(text)}\n" for text in section.texts]
        if section.table is not None:
            parts += [to_markdown(section.table), "", *(f"{escape_markdown(note)}\n" for note in section.table.notes)]
        if section.picture is not None:
            parts.append(f"![{escape_markdown(section.heading)}]({quote(section.picture.name)})\n")
    write_text(file, "\n".join(parts))
