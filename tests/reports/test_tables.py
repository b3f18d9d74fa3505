"""Tables and pages: whatever names hold, each form shows them as they are, and marks them alike; the closing tables."""

import io
from html.parser import HTMLParser

import pytest
from markupsafe import Markup
from PIL import Image
from rich.console import Console

from carvision.reports import tables
from carvision.reports.page import Section, _soft, sections_of, write_markdown, write_page
from carvision.reports.summary import closing_tables, print_closing, time_line
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
        if self.tags and self.tags[-1][0] == "wbr":  # a break within a name
            self.texts[-1] += data.strip()
        else:
            self.texts.append(data.strip())


def test_a_page_shows_names_as_they_are_and_asks_no_server(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a b.png")
    sections = [
        *sections_of([TABLE], {HOSTILE: tmp_path / "a b.png"}),
        Section("", [HOSTILE], markup=Markup("<i>ours</i>")),
    ]
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
    long = TextTable("A title longer than the table", ["", "n"], [["a_name_of_a_run " * 3, "1.5"]], [["", BEST]])
    lines, console = text_of([TABLE, long], width).splitlines(), Console(width=width)
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


CLASSES = {"make": {"ids": list("abcd"), "parent": None}, "model": {"ids": list("abcdef"), "parent": "make"}}
LABELS = {**CLASSES, "speed": {"unit": "km/h"}}


def metrics(make: str = "make") -> dict:
    names = ("top1", "top3", "top5", "balanced_accuracy", "auc", "precision", "recall", "f1")
    values = {f"{make}/{name}": 0.51 + i / 100 for i, name in enumerate((*names, *(f"{n}_at50" for n in names[5:])))}
    values |= {name.replace(make, "model"): 1.0 for name in values}
    test = values | {"joint/top1": 0.402, "joint/consistent": 0.987, "speed/mae": 12.345, "speed/rmse": 20.5}
    rule = {"make/top1": 0.61, "model/top1": 0.62, "joint/top1": 0.63, "joint/consistent": 0.64}
    return {"test": test, "val": {}, "decodings": {"test": dict.fromkeys(("independent", "joint", "marginal"), rule)}}


def text_of(tables: list, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_every_metric_is_in_its_row_and_printed_with_time_and_cost(tmp_path, capsys):
    accuracy, precision, errors, rules = (table.rows for table in closing_tables(metrics(), LABELS, True))
    # Of four classes the true one may be outside the top 3, and never outside the top 5
    assert accuracy[:2] == [["make", "51.0", "52.0", "", "54.0", "55.0"], ["model", *["100.0"] * 5]]
    assert [row[:2] for row in accuracy[2:]] == [["all heads right", "40.2"], ["parent and child consistent", "98.7"]]
    assert [row[-3:] for row in precision[:2]] == [["56.0", "57.0", "58.0"], ["59.0", "60.0", "61.0"]]
    assert errors == [["speed", "12.35", "20.5", "km/h"]] and rules[1] == ["model/top1", "62.0", "62.0", "62.0"]
    known = {"seconds": {"total": 738.0, "cpu": 1206.0}, "cost": 0.19, "price_per_hour": 0.9}
    print_closing({**metrics(), **known}, LABELS, tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / "results.txt").read_text()):
        assert "12.3 min wall, 20.1 min CPU, 0.19 (0.90 an hour)" in text and "precision" in text
        assert "Keras" not in text
    print_closing({**metrics(), **known}, LABELS, tmp_path, keras=True)
    for text in (capsys.readouterr().out, (tmp_path / "results.txt").read_text()):
        assert text.count("all p > 0.5 (Keras)") == 2
    brief, _ = (table.rows for table in closing_tables(metrics(), LABELS, brief=True))
    assert brief[0] == ["make", "51.0", "52.0", "", "55.0", "56.0", "57.0", "58.0"] and brief[2][:2] == [
        "all heads right",
        "40.2",
    ]
    assert len(brief) == 3
    assert time_line({"seconds": {"training": 3.0}}) == ""
    assert time_line({"seconds": {"total": 59.0, "cpu": 60.0}}) == "59 s wall, 1.0 min CPU"


def test_in_a_notebook_the_file_has_the_tables_too(tmp_path, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    print_closing(metrics(), LABELS, tmp_path)
    assert "all heads right" in (tmp_path / "results.txt").read_text()


@pytest.mark.parametrize("head", ["make", "a name that is longer than any terminal is wide " * 3])
def test_nothing_is_cut_off_in_80_columns(head):
    labels = LABELS if head == "make" else {head: LABELS["make"]}
    tables = closing_tables(metrics(head), labels) + closing_tables(metrics(head), labels, keras=True, brief=True)
    narrow, wide = (text_of(tables, width) for width in (80, 200))
    assert "…" not in narrow and max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    assert sorted(narrow.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def test_unknown_values_are_a_dash():
    labels = {"class": {"ids": list("ab"), "parent": None}}
    tables = closing_tables({"test": {}, "val": {"class/top1": 0.5, "class/recall": 0.25}}, labels)
    assert [table.rows for table in tables] == [[["class", "50.0"]],
                                                [["class", "mean of the classes", "–", "25.0", "–"]]]  # fmt: skip


def test_texts_of_a_page_break_in_names_and_nowhere_in_values():
    assert _soft("runs/a_b=c & model.lr") == "runs/<wbr>a_<wbr>b=<wbr>c &amp; model.<wbr>lr"
    assert _soft("val top-1, %") == 'val <span class="whole">top-1, %</span>'
    assert _soft("1e-05") == '<span class="whole">1e-05</span>'
    assert _soft("85.0 [79.6, 90.4]") == "85.0 [79.6,\N{NO-BREAK SPACE}90.4]"
    assert _soft("<img>") == "&lt;img&gt;"
