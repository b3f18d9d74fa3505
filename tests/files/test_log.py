"""Messages in run.log and on the terminal, also on a full disk: /dev/full of Linux can't be written to."""

import logging
from pathlib import Path

import pytest

from carvision.files.log import start_log

log = logging.getLogger("carvision.test")


@pytest.fixture(autouse=True)
def quiet_logs():
    yield
    start_log(None)


def test_messages_are_in_the_file_and_on_the_terminal(tmp_path, capsys):
    start_log(tmp_path)
    log.info("hello")
    assert (tmp_path / "run.log").read_text().endswith("INFO hello\n") and capsys.readouterr().err == "hello\n"
    log.info("%d", "no number")  # an error of the code keeps its traceback
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_reported_once(tmp_path, capsys, monkeypatch):
    full = Path("/dev/full")
    monkeypatch.setattr("carvision.files.log.open_kept", lambda path, mode, **kwargs: full.open(mode, **kwargs))
    start_log(tmp_path)
    for number in range(3):
        log.info("message %d", number)
    start_log(None)  # closes run.log
    first, warning, *others = capsys.readouterr().err.splitlines()
    assert [first, *others] == ["message 0", "message 1", "message 2"] and "No space left on device" in warning
