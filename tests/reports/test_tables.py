"""Tables and pages: whatever names hold, each form shows them as they are, aligns and marks them alike."""

import io
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from carvision.reports import tables
from carvision.reports.page import Section, sections_of, write_markdown, write_page
from carvision.reports.tables import BEST, OVERALL, TextTable, escape_markdown, fits, print_table

HOSTILE = "<img src=x onerror=alert(1)> & \"'"
MARKS = [["", BEST, ""], ["", "", OVERALL]]
TABLE = TextTable("A title", ["", "n", HOSTILE], [["a|b", "1.5", "on"], ["c", "–", "12"]], MARKS, {1}, ["a *note*"])


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_a_page_shows_names_as_they_are_and_asks_no_server(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a b.png")
    sections = [*sections_of([TABLE], {HOSTILE: tmp_path / "a b.png"}), Section("", [HOSTILE], markup="<i>ours</i>")]
    write_page(tmp_path / "page.html", HOSTILE, HOSTILE, sections)
    page = Page((tmp_path / "page.html").read_text())
    assert page.texts.count(HOSTILE) == 6  # title, heading, line below, name of a column, of a picture, a paragraph
    (image,) = (attrs for tag, attrs in page.tags if tag == "img")
    assert image["alt"] == HOSTILE and image["src"].startswith("data:image/png;base64,")
    assert [tag for tag, attrs in page.tags if tag == "i" or {"href", "src", "onerror"} & attrs.keys()] == ["img", "i"]
    looks = [attrs.get("class") for tag, attrs in page.tags if tag in ("th", "td", "tr")][1:]
    assert looks == [None, "number", None, None, None, "number best", None, "break", None, "number", "overall"]
    write_markdown(tmp_path / "page.md", HOSTILE, "about", sections)
    text = (tmp_path / "page.md").read_text()
    assert "| a\\|b | **1.5** | on |\n| c | – | ***12*** |\n\na \\*note\\*\n" in text and "](a%20b.png)" in text
    assert "| --- | ---: | --- |" in text and "<img" not in text.replace("\\<", "") and "ours" not in text


@pytest.mark.parametrize("width", [30, 80])
def test_the_terminal_has_stars_instead_of_colours_and_wraps_what_is_long(width):
    long = TextTable(
        "A title that is longer than the table", ["", "n"], [["a_name_of_a_run " * 3, "1.5"]], [["", BEST]]
    )
    console = Console(file=io.StringIO(), width=width)
    for table in (TABLE, long):
        print_table(table, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= max(width, 38) and any(line.split()[-1:] == ["1.5*"] for line in lines)
    assert [line.split() for line in lines if "12**" in line] == [["c", "–", "12**"]]
    assert fits(TABLE, console) == (width == 80) and fits(long, console)


def test_markup_in_names_is_escaped():
    for text, escaped in {
        "Audi A4": "Audi A4", "a|b": r"a\|b", "data.batch_size _x__y_": r"data.batch_size \_x\_\_y\_",
        "<b onclick=x>": r"\<b onclick=x>", "*a* _b_ `c` ~~d~~": r"\*a\* \_b\_ \`c\` \~\~d\~\~",
        "![x](http://y) www.z.org": r"!\[x\](http:\//y) www\.z.org", "a\n# b\r\n\n---": r"a \# b ---",
        "R&amp;D $5$": r"R\&amp;D \$5\$", "- a": r"\- a", "1. a": r"1\. a", "> a": r"\> a", "-0.5": "-0.5", 7: "7",
    }.items():  # fmt: skip
        assert escape_markdown(text) == escaped
    assert tables.code_block("a\n```\n````\n<b>", "yaml").splitlines()[::5] == ["`````yaml", "`````"]
