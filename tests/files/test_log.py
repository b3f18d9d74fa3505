"""Messages in run.log and on the terminal, also on a full disk: /dev/full of Linux can't be written to; bars."""

import logging
import re
import sys
from pathlib import Path

import pytest

from carvision.files import progress
from carvision.files.log import start_log

log = logging.getLogger("carvision.test")


@pytest.fixture(autouse=True)
def quiet_logs():
    yield
    start_log(None)


@pytest.mark.parametrize("full", [False, True])
def test_messages_are_in_the_file_and_on_the_terminal_and_a_full_disk_is_one(full, tmp_path, capsys, monkeypatch):
    disk = Path("/dev/full")
    if full and not disk.exists():
        pytest.skip("this system has no /dev/full")
    if full:
        monkeypatch.setattr("carvision.files.log.open_kept", lambda path, mode, **kwargs: disk.open(mode, **kwargs))
    start_log(tmp_path)
    for number in range(2):
        log.info("message %d", number)
    start_log(None)  # closes run.log
    first, *warning, last = capsys.readouterr().err.splitlines()
    assert [first, last] == ["message 0", "message 1"]
    assert ["No space left on device" in line for line in warning] == [True] * full
    assert full or (tmp_path / "run.log").read_text().endswith("INFO message 1\n")


def test_a_message_is_a_line_of_its_own_above_the_bar(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    start_log(None)
    with progress.show_bar("photos", 50) as advance:
        advance(20)
        log.info("a message that is longer than this terminal has columns, so that it is folded")
        print("an output")
        advance(30)
    lines = screen_of(capsys.readouterr().err)
    assert lines[:3] == [
        "a message that is longer than this terminal has columns, so",
        "  that it is folded",
        "an output",
    ]
    (bar,) = [line for line in lines[3:] if line]
    assert bar.startswith("photos ") and "50/50" in bar and len(bar) <= 60


def screen_of(text: str) -> list[str]:
    """Return the lines that a terminal shows after this output, of the codes that rich uses."""
    lines, row, column = [""], 0, 0
    for code, number, kind, letter in re.findall(r"(\x1b\[\??(\d*)[;\d]*([A-Za-z]))|([^\x1b])", text):
        if code and kind == "A":
            row -= int(number or 1)
        elif code and kind == "K":
            lines[row] = ""
        elif letter == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif letter == "\r":
            column = 0
        elif letter:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_bar_with_its_name_is_on_standard_error_and_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.show_progress(50, 10, True, "a run on [test]") as advance:
        advance(40)
    out, err = capsys.readouterr()
    assert out == "" and "a run on [test]" in err and "50/50" in err
    monkeypatch.setattr(progress, "LOG_EVERY_S", -1)
    start_log(None)
    with progress.show_progress(5000, 1000, False) as advance:
        advance(500)
    assert capsys.readouterr().err.startswith("1,500 of 5,000 photos, ")
