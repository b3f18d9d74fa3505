"""The command: what it refuses at once, names of models, and a real server that is stopped."""

import re
import signal
import socket
import threading
import time

import pytest

from carvision.errors import InputError
from carvision.serving.run import bind, is_loopback, names_of, read_token
from tests.serving.abused import PHOTO, request, serving


def test_runs_are_named_by_their_folders(tmp_path):
    folders = [tmp_path / name for name in ("cars/2026-01-31_12-00-00", "flowers", "a b/c d", "x/cars", "my runs/2026")]
    assert names_of(folders) == ["cars-1", "flowers", "c-d", "cars-2", "2026"]
    assert names_of([tmp_path / "cars/2026-01-31_12-00-00_2"]) == ["cars"]


def test_a_token_is_long_and_plain(tmp_path):
    file = tmp_path / "token"
    file.write_text("  abcdefgh-ABCDEFGH_1234\n")
    assert read_token(file) == "abcdefgh-ABCDEFGH_1234"
    for text in ("", "short", "two words of some length", "umläute-umläute-umläute"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"--token-file: .* holds no token of 16 or more"):
            read_token(file)
    with pytest.raises(InputError, match=r"--token-file: .*none can't be read"):
        read_token(tmp_path / "none")


def test_an_address_in_use_is_refused_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--host 127.0.0.1 --port {port}: can't be used .*in use"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match=r"--host no.such.host.invalid"):
        bind("no.such.host.invalid", 0)
    for host, loopback in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with bind(host, 0) as bound:
            assert is_loopback(bound) == loopback


def test_sigterm_answers_what_has_begun_and_ends_with_status_0(demo_run, tmp_path):
    """A client has sent half of its photo, others all of it; then the server is stopped."""
    answers: list[tuple[int, bytes]] = []
    with serving(demo_run, tmp_path / "log.txt") as server:
        sent = request("POST", "/v1/predict", PHOTO, "image/jpeg")
        slow = server.connect()
        slow.sendall(sent[:-100])
        threads = [threading.Thread(target=lambda: answers.append(server.ask(sent))) for _ in range(16)]
        for thread in threads:
            thread.start()
        assert server.get("/livez")[0] == 200
        for thread in threads:
            thread.join()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        slow.sendall(sent[-100:])
        data = b"".join(iter(lambda: slow.recv(65536), b""))
        assert server.process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    assert data.startswith(b"HTTP/1.1 200") and b'"error":null' in data
    assert [status for status, _ in answers] == [200] * 16
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"serve: http://127\.0\.0\.1:\d+\n", log)
