"""Lines for a terminal break between words, at the widest gaps; other files get them unchanged."""

import io

import pytest

from carvision.system.terminal import fold, num_cells

EPOCH = "epoch 10/14  train loss 2.654  make 24.9 %  model 18.4 %   val loss 2.346  make 36.7 %  model 16.0 %  best"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_a_long_line_breaks_at_its_widest_gaps_and_a_number_keeps_its_unit(monkeypatch):
    first, second = fold(EPOCH, Terminal()).split("\n")
    assert first.endswith("model 18.4 %") and second == "  val loss 2.346  make 36.7 %  model 16.0 %  best"
    monkeypatch.setenv("COLUMNS", "120")
    assert fold(EPOCH, Terminal()) == EPOCH
    monkeypatch.setenv("COLUMNS", "20")
    lines = fold(EPOCH, Terminal()).split("\n")
    assert max(map(len, lines)) <= 20 and "".join(lines).replace(" ", "") == EPOCH.replace(" ", "")
    assert not any(line.strip().startswith("%") for line in lines)


def test_a_file_gets_the_text_and_a_path_is_not_broken():
    path = "/" + "a long folder/".replace(" ", "_") * 9
    text = f"  an indented line of words {path} and more words after it\nanother"
    assert fold(text, io.StringIO()) == text
    assert fold(text, Terminal()).split("\n") == [
        "  an indented line of words", f"    {path}", "    and more words after it", "another",
    ]  # fmt: skip


def test_wide_letters_take_two_columns():
    words = "クラス " * 20
    lines = fold(words.strip(), Terminal()).split("\n")
    assert num_cells("クラス") == 6 and max(map(num_cells, lines)) <= 80 and len(lines) == 2
