"""Messages in run.log and on the terminal, also on a full disk: /dev/full of Linux can't be written to; bars."""

import logging
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
