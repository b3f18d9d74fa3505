"""Start the server: address, models, engine, connections, signals."""

import argparse
import asyncio
import gc
import ipaddress
import logging
import os
import re
import signal
import socket
import warnings
import webbrowser
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import ClassVar

import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from carvision.errors import InputError
from carvision.inference.model_file import load
from carvision.inference.predictor import choose_device
from carvision.serving import limits
from carvision.serving.app import Guard, create_app
from carvision.serving.limits import ApiError
from carvision.serving.model.served import ServedModel
from carvision.serving.service import Service
from carvision.system.machine import num_cores
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")  # as runs are named by default
MAX_CONNECTIONS, BACKLOG = 4096, 512
MIN_TOKEN = 16  # characters


def run(options: argparse.Namespace) -> None:
    """Serve until a signal asks to stop. options: of carvision.serve. Raises InputError."""
    token = None if options.token_file is None else read_token(options.token_file)
    address = bind(options.host, options.port)
    with address:
        if token is None and not is_loopback(address):
            log.warning(
                "%s can be reached from other machines, and there is no token: whoever reaches it may use the model; "
                "--token-file FILE asks for one", options.host,
            )  # fmt: skip
        keep_freed_memory()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such photos are refused
        service = Service(load_models(options), max(1, min(16, num_cores() - 1)) if options.workers is None else
                          options.workers)  # fmt: skip
        service.start(options.engine)
        gc.collect()
        gc.freeze()  # of what stays: collections then look at requests alone
        try:
            serve(create_app(service, token), address, options.host, options.open)
        finally:
            service.close()


def load_models(options: argparse.Namespace) -> list[ServedModel]:
    """Load the runs. Raises InputError."""
    device = choose_device(options.device)
    models = [load(path) for path in options.runs]
    folders = [path if path.is_dir() else path.parent for path in options.runs]
    names = names_of(folders)
    if options.ensemble:
        return [ServedModel(names[0], folders, models, device)]
    return [
        ServedModel(name, [folder], [model], device) for name, folder, model in zip(names, folders, models, strict=True)
    ]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, or of runs named by time that of the folder above."""
    names = []
    for folder in (folder.resolve() for folder in folders):
        names.append(folder.parent.name if TIME.fullmatch(folder.name) and folder.parent.name else folder.name)
    names = [re.sub(r"[^\w.-]+", "-", name) or "model" for name in names]
    total, seen, unique = Counter(names), Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(name if total[name] == 1 else f"{name}-{seen[name]}")
    return unique


def read_token(file: Path) -> str:
    """Return the token that a file holds. Raises InputError."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file: {file} can't be read ({getattr(error, 'strerror', 'not text')})") from None
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError(
            f"--token-file: {file} holds no token of {MIN_TOKEN} or more letters and digits; make one with: "
            f"python -c 'import secrets; print(secrets.token_urlsafe())' > {file}"
        )
    return token


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with that address, which does not listen yet. Raises InputError if it can't be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind)
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise InputError(f"--host {host} --port {port}: can't be used ({reason}); give another, --port 0 any") from None


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def serve(app: Guard, address: socket.socket, host: str, opens: bool) -> None:
    """Answer requests until SIGTERM or Ctrl-C, after which those in progress are still answered."""
    raise_file_limit()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        backlog=BACKLOG, timeout_keep_alive=int(limits.HEAD_S), timeout_graceful_shutdown=int(limits.DRAIN_S),
    )  # fmt: skip
    name, port = f"[{host}]" if ":" in host else host, address.getsockname()[1]
    # uvicorn raises the signal again at its end, which would end this process as if it had failed
    signal.signal(signal.SIGTERM, lambda *_: None)
    Server(config, app, f"http://{name}:{port}", opens).run(sockets=[address])


class Server(uvicorn.Server):
    """Prints the address once requests are answered, and drains after a signal."""

    def __init__(self, config: uvicorn.Config, app: Guard, url: str, opens: bool):
        super().__init__(config)
        self.guard, self.url, self.opens = app, url, opens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"serve: {self.url}", flush=True)
        if self.opens:
            asyncio.get_running_loop().run_in_executor(None, webbrowser.open, self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.guard.is_draining = True
        super().handle_exit(sig, frame)


class Connection(H11Protocol):
    """A connection whose client must not take its time: HEAD_S for the head of a request.

    Beyond MAX_CONNECTIONS, the one that has been sending its request for the longest time is closed.
    """

    sending: ClassVar[OrderedDict["Connection", None]] = OrderedDict()  # those without a complete request
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore[bad-override]  as uvicorn's
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            if not self.cycle.more_body:
                self.sending.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # no further request has begun
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.sending.pop(self, None)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the same shape as other errors."""
        self.transport.write(NOT_HTTP)
        self.transport.close()

    def _await_request(self) -> None:
        self._stop_timer()
        self.timer = self.loop.call_later(limits.HEAD_S, self.transport.abort)
        self.sending[self] = None
        self.sending.move_to_end(self)
        if len(self.connections) > MAX_CONNECTIONS:
            oldest, _ = self.sending.popitem(last=False)
            oldest.transport.abort()

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _not_http() -> bytes:
    import json

    error = ApiError("bad_request", "this is not a valid HTTP request")
    body = json.dumps({"error": error.as_dict()}).encode()
    head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


NOT_HTTP = _not_http()


def raise_file_limit() -> None:
    """Allow as many open files as MAX_CONNECTIONS need, where the system permits it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
