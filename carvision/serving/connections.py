"""uvicorn's connections, with bounds on how long a client may take and on how many there may be.

uvicorn alone waits forever for a request's head, reads a body without end once the answer has been sent, and stops
accepting clients when there are no more file descriptors. Here a connection ends that is too slow; and where there are
too many, the one ends that has waited for the longest time for its client's request, so that others are answered.
"""

import asyncio
import json
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

NEEDED_FILES = 200  # for the libraries, the weights, and what the system opens
MOST_CONNECTIONS, MOST_WAITING = 16_384, 512


def connection_limits() -> tuple[int, int]:
    """Return how many connections there may be, and how many more may wait to be accepted; all of them are accepted
    before the first is looked at. Raises this process's limit of open files, where the system lets it."""
    try:
        import resource
    except ImportError:  # Windows, whose limit is that of select
        return 400, 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + MOST_WAITING + NEEDED_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_CONNECTIONS, MOST_WAITING
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # macOS allows fewer than it names
        allowed = soft
    rest = allowed - min(NEEDED_FILES, allowed // 2)
    waiting = min(MOST_WAITING, rest // 4)
    return rest - waiting, waiting


class Connection(H11Protocol):
    """One client's connection, for uvicorn's http=.

    most: connections at a time, 0: any number. head_s: seconds for a request's head, from the connection or the last
    answer. body_s: for its body. rest_s: for what is left of a body that has been answered, as one that is too large;
    it is read, as many clients see no answer otherwise. write_s: for a client to take what has been written.
    """

    most: ClassVar[int] = 0
    head_s: ClassVar[float] = 20.0
    body_s: ClassVar[float] = 120.0
    rest_s: ClassVar[float] = 10.0
    write_s: ClassVar[float] = 60.0
    idle: ClassVar[dict["Connection", None]] = {}  # those that wait for a request, the longest first
    phase = ""
    timer: asyncio.TimerHandle | None = None
    write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if self.most and len(self.connections) > self.most:
            longest = next(iter(self.idle), self)
            longest._enter("")
            longest.connections.discard(longest)
            longest.transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("")
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP with one error, as other errors, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = {"code": "bad_request", "message": "the request is not valid HTTP, or its head is too long"}
            body = json.dumps({"error": error}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.transport.close()

    def _watch(self) -> None:
        """Begin to count the seconds of what the client has to do next."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            self._enter("")
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter("rest" if answered else "body")
        else:
            self._enter("head" if answered else "")

    def _enter(self, phase: str) -> None:
        if phase == self.phase:
            return
        self.phase = phase
        if self.timer is not None:
            self.timer.cancel()
        self.idle.pop(self, None)
        if phase == "head":
            self.idle[self] = None
        seconds = {"head": self.head_s, "body": self.body_s, "rest": self.rest_s}.get(phase)
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
