"""Compare carvision serve, over the loopback, with the bare network, with model.predict, and with LitServe.

    python scripts/bench_serve.py RUN --photos stanford_cars/cars_train
    python scripts/bench_serve.py RUN --photos FOLDER --peer ENV/bin/python    also LitServe, of its own environment
    python scripts/bench_serve.py RUN --photos FOLDER load one --rounds 9
    python scripts/bench_serve.py RUN --photos FOLDER long --minutes 10

load: 32 clients, one photo a request, the next as soon as the answer is there, against model.predict with 32 photos at
a time, and against bare decoding and network, 32 at a time; /livez is asked all the while. one: one client, against a
bare batch of one; other programs disturb the fastest tenth (p10) least. crowd: 256 clients with one and with 4 photos a
request. ready: from the start of the command to /readyz, against a process that imports carvision and loads the model.
long: the server's memory and /livez over --minutes of 32 clients.
Candidates take turns; a ratio is the median of those of each round. The clients, tasks of this process that send
requests prepared before, take part of the same cores. CPU is that of the server's processes, a photo answered.
"""

import argparse
import asyncio
import http.client
import itertools
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from side_by_side import cpu_seconds_of, machine, measure, memory_mb, rows_as_table, summarise, table, write

from carvision.system.runtime import keep_freed_memory, set_thread_defaults

TOP, BATCH, CLIENTS, CROWD = 5, 32, 32, 256
OURS, PEER = "carvision serve", "LitServe"
PEER_FILE = Path(__file__).with_name("litserve_peer.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("part", nargs="*", metavar=f"{{{','.join(PARTS)}}}", help="default: all")
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs, also in its folders")
    parser.add_argument("--count", type=int, default=256, help="of them that are sent again and again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="eager", help="of carvision serve")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with carvision and litserve")
    parser.add_argument("--peer-wait", type=float, default=0, help="seconds for which LitServe collects a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each candidate in a round")
    parser.add_argument("--minutes", type=float, default=1, help="of the part long")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    options = parser.parse_args()
    if unknown := set(options.part) - PARTS.keys():
        parser.error(f"{min(unknown)} is not one of {', '.join(PARTS)}")
    set_thread_defaults()  # before torch is imported
    keep_freed_memory()
    found = {part: PARTS[part](options, Here(options)) for part in options.part or PARTS}
    write(options.out, {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}, **found})


# In this process


class Here:
    """The network and its photos in this process: what the servers are compared with."""

    def __init__(self, options: argparse.Namespace):
        import carvision
        from carvision.inference.predictor import Predictor

        files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            sys.exit(f"--photos: {options.photos} holds no JPEGs")
        self.paths = random.Random(0).sample(files, min(options.count, len(files)))
        self.data = [path.read_bytes() for path in self.paths]
        self.model = carvision.load(options.run).to(options.device)
        self.predictor, self.device = Predictor([self.model]), options.device
        self.seconds = options.seconds

    def bare(self, data: list[bytes]) -> tuple[float, float]:
        """Decode the photos and run the network on them; return the seconds of each."""
        from carvision.data.decode import decode_into, empty_images

        began = time.perf_counter()
        [preprocessing] = self.predictor.geometries
        images = empty_images(len(data), preprocessing.size_px)
        for photo, image in zip(data, images, strict=True):
            decode_into(photo, preprocessing, image)
        decoded = time.perf_counter()
        for values in self.predictor([images.to(self.device)]).values():
            values.cpu()
        return decoded - began, time.perf_counter() - decoded

    def bare_rate(self) -> dict[str, float]:
        """Return photos and CPU milliseconds, 32 at a time, and how long a batch takes."""
        cpu, times = time.process_time(), []
        for start in self._starts():
            times.append(self.bare(self.data[start : start + BATCH]))
        cpu_ms = 1e3 * (time.process_time() - cpu)
        decoding, network = np.median(times, axis=0)
        return {
            "photos_per_s": BATCH * len(times) / np.sum(times), "cpu_ms": cpu_ms / (BATCH * len(times)),
            "batch_ms": 1e3 * (decoding + network), "network_ms": 1e3 * network,
        }  # fmt: skip

    def predict_rate(self) -> dict[str, float]:
        cpu, began, num = time.process_time(), time.perf_counter(), 0
        for start in self._starts():
            num += len(self.model.predict(self.paths[start : start + BATCH], top=TOP))
        wall = time.perf_counter() - began
        return {"photos_per_s": num / wall, "cpu_ms": 1e3 * (time.process_time() - cpu) / num}

    def one_at_a_time(self) -> dict[str, float]:
        end, times = time.perf_counter() + self.seconds, []
        for photo in itertools.cycle(self.data):
            times.append(1e3 * sum(self.bare([photo])))
            if time.perf_counter() > end:
                return {"p50_ms": statistics.median(times), "p10_ms": float(np.quantile(times, 0.1))}

    def _starts(self) -> Iterator[int]:
        end = time.perf_counter() + self.seconds
        for start in itertools.cycle(range(0, len(self.data) - BATCH + 1, BATCH)):
            yield start
            if time.perf_counter() > end:
                return


# Clients

PROBE = """
# In a process of its own, as the loop of the clients would be late
import http.client, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    began = time.perf_counter()
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
    print(1e3 * (time.perf_counter() - began), flush=True)
    time.sleep(0.05)
"""


class Connection:
    """A connection to the loopback that is kept open, for one request at a time."""

    def __init__(self, port: int):
        self.port, self.writer = port, None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer; 0 if the connection ended without one."""
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            body = await self.reader.readexactly(int(re.search(r"content-length: *(\d+)", head)[1]))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), body

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None


@dataclass
class Answers:
    codes: Counter = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)  # of each 200
    livez_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0


async def keep_asking(port: int, requests: list[bytes], num_clients: int, seconds: float) -> Answers:
    """Let the clients ask for that long, each with its next request when it has the answer to the last."""
    found, began = Answers(), time.perf_counter()

    async def client(number: int) -> None:
        connection = Connection(port)
        for request in itertools.islice(itertools.cycle(requests), number * len(requests) // num_clients, None):
            asked = time.perf_counter()
            if asked > began + seconds:
                return connection.close()
            status, _ = await connection.ask(request)
            found.codes[status] += 1
            if status == 200:
                found.ms.append(1e3 * (time.perf_counter() - asked))
            else:
                await asyncio.sleep(1)  # for which a busy server asks (Retry-After)

    await asyncio.gather(*map(client, range(num_clients)))
    found.wall_s = time.perf_counter() - began
    return found


def form(path: str, photos: list[bytes]) -> bytes:
    """Return a request with the photos as a browser's form sends them."""
    edge = "edge-of-the-form-7b1f"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n'
    parts = [f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + photo + b"\r\n" for photo in photos]
    body = b"".join(parts) + f"--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return lines.encode() + body


# Servers


@dataclass
class Server:
    name: str
    pid: int
    port: int
    path: str

    def requests(self, data: list[bytes], photos: int = 1) -> list[bytes]:
        return [form(self.path, data[start : start + photos]) for start in range(0, len(data) - photos + 1, photos)]

    def ask(self, requests: list[bytes], num_clients: int, seconds: float) -> Answers:
        if self.name != OURS:
            return asyncio.run(keep_asking(self.port, requests, num_clients, seconds))
        with subprocess.Popen(
            [sys.executable, "-c", PROBE, str(self.port)], stdout=subprocess.PIPE, text=True
        ) as probe:
            found = asyncio.run(keep_asking(self.port, requests, num_clients, seconds))
            probe.terminate()
            found.livez_ms = [float(word) for word in probe.communicate()[0].split()]
        return found

    def rate(self, requests: list[bytes], num_clients: int, seconds: float) -> dict[str, float]:
        cpu = cpu_seconds_of(self.pid)
        found = self.ask(requests, num_clients, seconds)
        num = found.codes[200]
        if num != found.codes.total():
            sys.exit(f"{self.name}: answers {dict(found.codes)} instead of only 200")
        result = {
            "photos_per_s": num / found.wall_s, "cpu_ms": 1e3 * (cpu_seconds_of(self.pid) - cpu) / num,
            "p50_ms": statistics.median(found.ms), "p99_ms": float(np.quantile(found.ms, 0.99)),
            "p10_ms": float(np.quantile(found.ms, 0.1)),
        }  # fmt: skip
        return result | ({"livez_ms": max(found.livez_ms)} if found.livez_ms else {})


@contextmanager
def started(name: str, options: argparse.Namespace) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end it after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run, device = str(options.run), options.device
    if name == OURS:
        words = [sys.executable, "-m", "carvision.serve", run, "--port", str(port), "--device", device]
        words += ["--engine", options.engine]
    else:
        words = [options.peer, str(PEER_FILE), run, str(port), str(TOP), str(options.peer_wait), device]
    ready, path = ("/readyz", f"/v1/predict?top={TOP}") if name == OURS else ("/health", "/predict")
    path_of_code = os.pathsep.join([str(PEER_FILE.parents[1]), str(PEER_FILE.parent)])
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "PYTHONPATH": path_of_code}
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            while not _answers(port, ready):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{name} ended with {process.returncode}:\n{log.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.02)
            yield Server(name, process.pid, port, path)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe's processes outlive the first


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


@contextmanager
def all_started(options: argparse.Namespace) -> Iterator[list[Server]]:
    with started(OURS, options) as ours:
        if not options.peer:
            yield [ours]
            return
        with started(PEER, options) as peer:
            yield [ours, peer]


# Parts


def measure_load(options: argparse.Namespace, here: Here) -> dict:
    with all_started(options) as servers:
        candidates = {"model.predict, 32 photos": here.predict_rate, "bare, 32 photos": here.bare_rate}
        for server in servers:
            candidates[server.name] = partial(server.rate, server.requests(here.data), CLIENTS, options.seconds)
        samples = measure(candidates, options.rounds, warm_up=1, memory=False)
    predict, bare, *_ = candidates
    summary = summarise(samples, baseline=predict)
    print(f"\n32 clients; ratios to {predict}\n\n{table(summary, ['photos_per_s', 'cpu_ms'])}")
    print(f"\nratios to {bare}\n\n{table(summarise(samples, baseline=bare), ['photos_per_s', 'cpu_ms'])}")
    batches = [one["batch_ms"] for one in samples[bare]]
    rows = [
        [server, *(f"{summary[server][key]['median']:.1f}" for key in ("p50_ms", "p99_ms")),
         f"{statistics.median(one['p99_ms'] / ms for one, ms in zip(samples[server], batches, strict=True)):.2f}",
         f"{summary[server]['livez_ms']['max']:.1f}" if "livez_ms" in summary[server] else "-"]
        for server in summary if "p99_ms" in summary[server]
    ]  # fmt: skip
    head = ["", "p50, ms", "p99, ms", f"p99 / bare batch of 32 ({statistics.median(batches):.0f} ms)", "slowest /livez"]
    print(f"\n{rows_as_table(head, rows)}", flush=True)
    return {"samples": samples, "summary": summary}


def measure_one(options: argparse.Namespace, here: Here) -> dict:
    with all_started(options) as servers:
        candidates = {"bare, one photo": here.one_at_a_time}
        for server in servers:
            candidates[server.name] = partial(server.rate, server.requests(here.data), 1, options.seconds)
        samples = measure(candidates, options.rounds, warm_up=1, memory=False)
    bare, *rest = samples.values()
    for one, base in [(one, base) for each in rest for one, base in zip(each, bare, strict=True)]:
        one |= {f"{key} above": one[f"{key}_ms"] - base[f"{key}_ms"] for key in ("p50", "p10")}
    summary = summarise(samples, baseline="bare, one photo")
    print(f"\none client\n\n{table(summary, ['p50_ms', 'p50 above', 'p10_ms', 'p10 above'])}", flush=True)
    return {"samples": samples, "summary": summary}


def measure_crowd(options: argparse.Namespace, here: Here) -> dict:
    found = {}
    with started(OURS, options) as server:
        for photos in (1, 4):
            answers = server.ask(server.requests(here.data, photos), CROWD, options.seconds)
            livez = f"slowest /livez {max(answers.livez_ms):.1f} ms"
            found[f"{photos} a request"] = dict(answers.codes)
            print(f"\n256 clients, {photos} a request: {dict(answers.codes)}; {livez}", flush=True)
    return found


def measure_ready(options: argparse.Namespace, here: Here) -> dict:
    def until_ready() -> dict[str, float]:
        began = time.perf_counter()
        with started(OURS, options):
            return {"wall_s": time.perf_counter() - began}

    code = f"import carvision; carvision.load({str(options.run)!r})"
    candidates = {"import and load": [sys.executable, "-c", code], OURS: until_ready}
    samples = measure(candidates, options.rounds, warm_up=1, memory=False)
    for one, base in zip(samples[OURS], samples["import and load"], strict=True):
        one["above_s"] = one["wall_s"] - base["wall_s"]
    summary = summarise(samples, baseline="import and load")
    print(f"\nuntil ready\n\n{table(summary, ['wall_s', 'above_s'])}", flush=True)
    return {"samples": samples, "summary": summary}


def measure_long(options: argparse.Namespace, here: Here) -> dict:
    """Memory is looked at every 10 s, after 10 s of warming up."""
    found: dict[str, list] = {"mb": [], "livez_ms": [], "codes": []}
    with started(OURS, options) as server:
        requests = server.requests(here.data)
        server.ask(requests, CLIENTS, 10)
        found["mb"].append(memory_mb(server.pid))
        end = time.perf_counter() + 60 * options.minutes
        while time.perf_counter() < end:
            answers = server.ask(requests, CLIENTS, 10)
            found["mb"].append(memory_mb(server.pid))
            found["livez_ms"] += answers.livez_ms
            found["codes"].append(dict(answers.codes))
    first, mb, codes = found["mb"][0], found["mb"], sum(map(Counter, found["codes"]), Counter())
    print(
        f"\n{options.minutes:g} minutes, answers {dict(codes)}: {first:.0f} MB before, {max(mb) - first:+.0f} at most"
    )
    late = np.quantile(found["livez_ms"], [0.5, 0.99, 1])
    print("/livez, median, 99 %, slowest: {:.1f}, {:.1f}, {:.1f} ms".format(*late), flush=True)
    return found


PARTS = {
    "load": measure_load, "one": measure_one, "crowd": measure_crowd, "ready": measure_ready, "long": measure_long,
}  # fmt: skip

if __name__ == "__main__":
    main()
