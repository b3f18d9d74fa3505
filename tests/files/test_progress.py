"""Bars on a terminal, and log lines without one."""

import logging
import sys

from carvision.files import progress


def test_the_bar_is_on_standard_error_with_its_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.show_progress(50, 10, True, "a run on [test]") as advance:
        advance(40)
    out, err = capsys.readouterr()
    assert out == "" and "a run on [test]" in err and "50/50" in err


def test_lines_where_there_is_no_terminal(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", -1)
    with caplog.at_level(logging.INFO), progress.show_progress(5000, 1000, False) as advance:
        advance(500)
    assert caplog.messages[0].startswith("1,500 of 5,000 photos, ")
