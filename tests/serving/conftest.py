"""A tiny model behind the app, in this process, and photos with what carvision.predict says of them."""

import asyncio
import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from tests.inference.tiny import change, save_tiny

pytest.importorskip("fastapi", reason="the server's libraries are not installed (pip install '.[serve]')")
import httpx

from carvision.serving.app import create_app
from carvision.serving.model.served import ServedModel
from carvision.serving.service import Service
from tests.serving.abused import serving

CPU = torch.device("cpu")
POINTS = [{"accuracy": a, "threshold": t, "coverage": 0.5} for a, t in ((0.8, 0.2), (0.9, 0.7), (0.98, 0.95))]


@contextmanager
def service_of(*models: ServedModel, num_threads: int = 2):
    """A running service, which is closed after the block."""
    service = Service(models, num_threads)
    service.start()
    try:
        yield service
    finally:
        service.close()


def served(name: str, *folders: Path) -> ServedModel:
    return ServedModel(name, folders, [carvision.load(folder) for folder in folders], CPU)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("served") / "tiny")
    change(folder, "operating_points", {"make": POINTS, "model": []})
    return folder


@pytest.fixture(scope="session")
def service(tiny_run):
    with service_of(served("tiny", tiny_run)) as service:
        yield service


@pytest.fixture(scope="session")
def app(service):
    return create_app(service)


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """40 JPEGs of several sizes, and other formats among them; none needs a decoder that may be missing."""
    random, found = np.random.default_rng(0), []
    for number in range(40):
        blocks = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((50 + 13 * number, 400 - 9 * number), Image.Resampling.NEAREST)
        found.append(encoded(image, ("JPEG", "JPEG", "PNG", "WEBP", "BMP")[number % 5]))
    return found


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ask(app, method: str, path: str, **request) -> httpx.Response:
    """Ask the app once."""
    return ask_all(app, [(method, path, request)])[0]


def ask_all(app, requests: list[tuple[str, str, dict]]) -> list[httpx.Response]:
    """Ask the app many things at once, in one event loop."""

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            return await asyncio.gather(*(client.request(method, path, **words) for method, path, words in requests))

    return asyncio.run(all_of_them())


def form(photos: list[bytes], boxes: list | None = None) -> dict:
    """Return the arguments of a request that sends photos as a form."""
    files = [("photo", ("../../name.jpg", photo, "image/jpeg")) for photo in photos]
    return {"files": files} | ({} if boxes is None else {"data": {"boxes": json.dumps(boxes)}})


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of an error, which must have the one shape of all."""
    found = response.json()
    assert found.keys() == {"error"} and {"code", "message"} <= found["error"].keys() <= {"code", "message", "limit"}
    return response.status_code, found["error"]["code"]


@pytest.fixture(scope="module")
def server(demo_run, tmp_path_factory):
    """A real server of the demo run, which must outlive the tests of a file, without a traceback in its log."""
    with serving(demo_run, tmp_path_factory.mktemp("serve") / "log.txt") as one:
        yield one
        assert one.process.poll() is None, "the server has ended"
    log = one.log.read_text(encoding="utf-8")
    assert "Traceback" not in log, log[-4000:]
