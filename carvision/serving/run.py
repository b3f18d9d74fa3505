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
import sys
import warnings
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from PIL import Image

from carvision.errors import InputError
from carvision.inference.model_file import load
from carvision.inference.predictor import choose_device
from carvision.serving import limits
from carvision.serving.app import Guard, create_app
from carvision.serving.connections import Connection, connection_limits
from carvision.serving.model.served import ServedModel
from carvision.serving.service import Service
from carvision.system.machine import num_cores
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")  # as runs are named by default
KEEP_ALIVE_S = 15
MIN_TOKEN = 16  # characters
# For which a thread may hold Python's lock while others wait (Python's default: 5 ms). The network's thread waits for
# it after each operation, of which a batch has hundreds, wherever the event loop is busy.
SWITCH_S = 0.0002


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
        keep_freed_memory(of_threads=True)
        sys.setswitchinterval(SWITCH_S)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such photos are refused
        service = Service(load_models(options), max(1, min(16, num_cores() - 1)) if options.workers is None else
                          options.workers)  # fmt: skip
        service.start(options.engine)
        gc.collect()
        gc.freeze()  # of what stays: collections then look at requests alone
        try:
            serve(create_app(service, token), address, options.host, options.open)
        finally:
            gc.unfreeze()
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
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Names the protocol: else asyncio doesn't send at once, and on Linux the second part of an answer waits 40 ms
        bound = socket.socket(*found[:3])
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
        return bound
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise InputError(f"--host {host} --port {port}: can't be used ({reason}); give another, --port 0 any") from None


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def serve(app: Guard, address: socket.socket, host: str, opens: bool) -> None:
    """Answer requests until SIGTERM or Ctrl-C, after which those in progress are still answered."""
    Connection.most, backlog = connection_limits()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        backlog=backlog, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=int(limits.DRAIN_S),
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
