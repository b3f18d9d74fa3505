"""What a connection does with clients that are slow, that never end, and that are too many."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install '.[serve]')")

from carvision.serving.connections import Connection  # noqa: E402
from carvision.serving.run import bind  # noqa: E402
from tests.serving.abused import answer, receive  # noqa: E402

MOST_BODY, LARGE = 1000, 50_000_000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope: dict, receive, send) -> None:
    """Answer with the size of the body; once it is too large with 413, without reading on. /large: with much."""
    size, more, status = 0, True, 200
    while more and status == 200:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
        status = 413 if size > MOST_BODY else 200
    body = bytes(LARGE) if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(**limits: float) -> Iterator["Client"]:
    """Serve `app` in a thread, with connections of these limits."""
    protocol = type("Limited", (Connection,), {**limits, "idle": {}})
    config = uvicorn.Config(app, http=protocol, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    address = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([address],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    with ExitStack() as stack:
        yield Client(server, address.getsockname()[1], stack)
        server.should_exit = server.force_exit = True
    thread.join(30)
    assert not thread.is_alive()


def wait_until(done) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


class Client:
    def __init__(self, server, port: int, stack: ExitStack):
        self.server, self.port, self.stack = server, port, stack

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=30))
        connection.sendall(data)
        return connection


def send_until_ended(connection: socket.socket, data: bytes, pause_s: float = 0.02) -> None:
    """Send the same again and again; fails unless the server ends the connection."""
    end = time.monotonic() + 30
    try:
        while time.monotonic() < end:
            connection.sendall(data)
            time.sleep(pause_s)
    except ConnectionError:
        return
    pytest.fail("the connection was not ended")


def test_connections_are_kept_and_requests_sent_at_once_are_answered_in_order():
    with serving() as client:
        connection = client.connect()
        for _ in range(3):
            connection.sendall(GET)
            assert answer(connection) == (200, b"0")
        post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}"
        connection.sendall("".join(post.format(len(body), body) for body in ("abc", "abcdefg")).encode())
        data = b""
        while data.count(b"\r\n\r\n") < 2 or not data.endswith(b"7"):
            data += receive(connection)
        assert data.count(b" 200 ") == 2 and b"\r\n\r\n3HTTP/1.1" in data


def test_answers_are_sent_at_once():
    with serving() as client:
        connection = client.connect(GET)
        assert answer(connection) == (200, b"0")
        [one] = client.server.server_state.connections
        assert one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("begin", "byte"),
    [(b"GET / HTTP/1.1\r\nA: ", b"a"), (GET + b"GET / HTTP/1.1\r\nA: ", b"a"),
     (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n", b"a"),
     (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n")],
    ids=["head", "head of a second request", "body", "chunks"],
)  # fmt: skip
def test_a_client_that_sends_byte_by_byte_is_ended_and_others_are_answered(begin, byte):
    with serving(head_s=0.5, body_s=0.5) as client:
        slow = client.connect(begin)
        assert answer(client.connect(GET)) == (200, b"0")
        send_until_ended(slow, byte)
        assert answer(client.connect(GET)) == (200, b"0")


def test_a_client_that_sends_nothing_is_ended():
    with serving(head_s=0.2) as client:
        assert client.connect().recv(1) == b""


def test_a_body_that_is_too_large_is_read_so_that_its_client_sees_the_answer():
    with serving() as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n"
        connection = client.connect(head + bytes(20_000_000))
        assert answer(connection)[0] == 413
        connection.sendall(GET)
        assert answer(connection) == (200, b"0")


def test_a_body_without_end_is_ended_after_its_answer():
    with serving(rest_s=0.5) as client:
        connection = client.connect(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_ended(connection, b"2710\r\n" + bytes(10_000) + b"\r\n", pause_s=0)
        assert answer(client.connect(GET)) == (200, b"0")


def test_a_client_that_reads_nothing_is_ended():
    with serving(write_s=0.3) as client:
        client.connect(GET.replace(b"/ ", b"/large ", 1))
        wait_until(lambda: client.server.server_state.connections)
        wait_until(lambda: not client.server.server_state.connections)


def test_where_there_are_too_many_the_one_ends_that_has_waited_for_longest():
    with serving(most=10) as client:
        busy = client.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
        wait_until(lambda: client.server.server_state.connections)
        idle = [client.connect() for _ in range(60)]
        assert answer(client.connect(GET)) == (200, b"0")
        assert [each.recv(1) for each in idle[:50]] == [b""] * 50
        busy.sendall(b"b")
        assert answer(busy) == (200, b"2")
        assert len(client.server.server_state.connections) <= 10


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000,
     b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 50_000,
     b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["TLS", "version", "long header", "many headers", "two lengths", "negative length", "chunk"],
)  # fmt: skip
def test_what_is_not_http_gets_one_error_as_json_and_the_connection_ends(data):
    with serving() as client:
        connection = client.connect()
        with suppress(ConnectionError):  # answered before all of it was read
            connection.sendall(data)
        status, body = answer(connection)
        assert status == 400 or (status == 0 and len(data) > 65536)  # the rest, unread, may reset the connection
        assert not status or json.loads(body)["error"]["code"] == "bad_request"
        assert receive(connection) == b""


def test_chunks_that_are_none_after_the_answer_end_the_connection_without_an_error(caplog):
    with serving() as client:
        connection = client.connect(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert answer(connection)[0] == 413
        connection.sendall(b"zz\r\n")
        assert receive(connection) == b""
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
