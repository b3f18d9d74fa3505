"""A real server for tests of abuse, and clients below HTTP: what they send need not be a request."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.conftest import ROOT


def photo_of(width: int, height: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(file, kind)
    return file.getvalue()


PHOTO = photo_of(64, 48)
LIMITS = {"body_bytes": 20 * 2**20, "photos": 32, "pixels": 50_000_000, "waiting": 256}
TELLTALE = re.compile(rb"Traceback|File \"|object at 0x|root:x:|/site-packages/|\.py\b")  # nothing an answer may hold


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    log: Path

    def connect(self, timeout: float = 60) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, data: bytes | Iterable[bytes]) -> tuple[int, bytes]:
        """Send these bytes, or pieces one after the other until an answer comes; return status and body, 0 if none."""
        with self.connect() as connection:
            return exchange(connection, [data] if isinstance(data, bytes) else data)

    def get(self, path: str) -> tuple[int, bytes]:
        return self.ask(request("GET", path))

    def predict(self, photo: bytes, path: str = "/v1/predict?top=1") -> tuple[int, dict]:
        status, body = self.ask(request("POST", path, photo, "image/jpeg"))
        return status, json.loads(body) if body else {}

    def memory_mb(self) -> float:
        """Return the memory that the server has, and none of it shared with others."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@contextmanager
def serving(run: Path, log: Path, *words: str, port: int = 0, limit_files: int = 0) -> Iterator[Server]:
    """Run `carvision serve` as users do, until the block ends; wait until it is ready.

    words: further runs or options. port: 0 for any. limit_files: so many files may be open at a time, hard limit.
    """
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "carvision.serve", str(run), *words, "--port", str(port), "--device", "cpu"]
    if limit_files:
        command = ["bash", "-c", f'ulimit -n {limit_files}; exec "$@"', "serve", *command]
    with log.open("ab") as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, cwd=log.parent, stdout=out, stderr=out, env=environment)
    server = Server(process, port, log)
    try:
        end = time.monotonic() + 240
        while not is_ready(server):
            assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")[-4000:]
            time.sleep(0.05)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def is_ready(server: Server) -> bool:
    with suppress(OSError):
        return server.get("/readyz")[0] == 200
    return False


def request(method: str, path: str, body: bytes = b"", kind: str = "", *headers: str) -> bytes:
    """Return a request's bytes. path: sent as it is. headers: further lines."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def form(*parts: tuple[str, bytes], edge: str = "edge", end: bytes = b"--\r\n") -> tuple[bytes, str]:
    """Return a form's body and its content type. parts: the header lines of each, without their ends, and its body."""
    body = b"".join(
        f"--{edge}\r\n{head}\r\n\r\n".encode("utf-8", "surrogateescape") + data + b"\r\n" for head, data in parts
    )
    return body + f"--{edge}".encode() + end, f"multipart/form-data; boundary={edge}"


def exchange(connection: socket.socket, pieces: Iterable[bytes]) -> tuple[int, bytes]:
    """Send the pieces until the other side answers or ends the connection; return status and body, 0 if none."""
    with suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            if has_answer(connection):
                break
    return answer(connection)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body; 0 if the other side has ended the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := receive(connection)):
            return 0, b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])
    while len(body) < length and (more := receive(connection)):
        body += more
    assert len(body) == length, "the answer was cut"
    return int(head.split()[1]), body


def receive(connection: socket.socket) -> bytes:
    """Return some of what the other side has sent; nothing if it has ended the connection."""
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def has_answer(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK)) or True
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(60)
