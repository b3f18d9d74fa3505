"""Write a report as a page: one HTML file that can be sent, or Markdown with its pictures beside it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from carvision.files.atomic import write_text
from carvision.reports.tables import TextTable, escape_markdown, to_markdown

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, and any of paragraphs, a table, a picture (PNG) and further HTML, in this order.

    markup: HTML that is shown as it is, so it must hold no text of others; Markdown leaves it out.
    """

    heading: str
    texts: Sequence[str] = ()
    table: TextTable | None = None
    picture: Path | None = None
    markup: str = ""


def sections_of(tables: Sequence[TextTable], pictures: Mapping[str, Path]) -> list[Section]:
    """Return a section for each table, then for each picture, {heading: PNG}."""
    shown = [Section(table.title, table=table) for table in tables]
    return shown + [Section(heading, picture=file) for heading, file in pictures.items()]


def write_page(file: Path, title: str, about: str, sections: Sequence[Section]) -> None:
    """Write one HTML file with everything embedded, which asks no server for anything. about: a line below the title.

    All texts are escaped, whatever they hold.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"), {"zip": zip, "base64": _base64})
    write_text(file, template.render(title=title, about=about, sections=sections) + "\n")


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
