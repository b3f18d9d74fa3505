"""Clients that are slow, many, or lose their server, and requests drawn from its own description."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.serving.abused import PHOTO, Server, request, serving

pytest.importorskip("fastapi", reason="the server's libraries are not installed (pip install '.[serve]')")
pytest.importorskip("uvicorn")


def test_slow_clients_stop_no_other(server):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n"
    slow = [server.connect() for _ in range(300)]
    for number, connection in enumerate(slow):
        connection.sendall(head if number % 2 else b"GET / HTTP/1.1\r\nX-A: ")
    for _ in range(20):
        for connection in slow:
            connection.sendall(b"a")
        assert server.predict(PHOTO)[0] == 200
    assert server.get("/readyz")[0] == 200
    for connection in slow:
        connection.close()


def open_many(server: Server, count: int) -> list[socket.socket]:
    return [server.connect() for _ in range(count)]


def test_thousands_of_connections_stop_no_other(server):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = 10_000 if limit < 0 else min(10_000, limit - 500)
    many = open_many(server, count)
    assert server.predict(PHOTO)[0] == 200
    many[-1].sendall(request("GET", "/livez"))
    assert many[-1].recv(20).startswith(b"HTTP/1.1 200")
    for connection in many:
        connection.close()


@pytest.mark.slow
def test_more_connections_than_files_may_be_open_stop_no_other(demo_run, tmp_path):
    with serving(demo_run, tmp_path / "log.txt", limit_files=300) as server:
        many = open_many(server, 600)
        assert server.predict(PHOTO)[0] == 200
        assert "Too many open files" not in server.log.read_text(encoding="utf-8")
        for connection in many:
            connection.close()


@pytest.mark.slow
def test_after_kill_9_under_load_a_new_server_answers_and_only_what_was_in_flight_is_lost(demo_run, tmp_path):
    codes, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                codes.append(server.predict(PHOTO)[0])
            except OSError:  # nobody listens
                codes.append(-1)
                time.sleep(0.2)

    with serving(demo_run, tmp_path / "log.txt") as server:
        clients = [threading.Thread(target=ask) for _ in range(16)]
        for client in clients:
            client.start()
        while len(codes) < 100:
            time.sleep(0.05)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        with serving(demo_run, tmp_path / "log.txt", port=server.port) as again:
            begun = len(codes)
            while len(codes) < begun + 100:
                time.sleep(0.05)
            stop.set()
            for client in clients:
                client.join()
            assert again.predict(PHOTO)[0] == 200
    assert set(codes) <= {200, 0, -1} and set(codes[begun + len(clients) :]) == {200}


@pytest.mark.slow
def test_schemathesis_finds_no_answer_that_the_description_does_not_name(server, tmp_path):
    program = os.environ.get("CARVISION_SCHEMATHESIS") or shutil.which("schemathesis")
    if not program:
        pytest.skip(
            "schemathesis is not installed (an environment of its own; CARVISION_SCHEMATHESIS names the program)"
        )
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [program, "run", url, "--checks", checks, "--max-examples", "30", "--seed", "1", "--request-timeout", "60"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-6000:]
