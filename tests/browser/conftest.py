"""Pages in a real browser: the system's Chromium, driven by playwright."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=alert(1)>"
POINTS = [{"accuracy": accuracy, "threshold": least, "coverage": 0.5} for accuracy, least in ((0.8, 0.0), (0.95, 1.0))]
SCRIPTS = ("日本語の車", "سيارة", "автомобиль", "αυτοκίνητο", "차동차", "รถยนต์", "गाड़ी", "🚗 car")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (on Debian: apt-get install chromium)")
    return CHROMIUM


@pytest.fixture(scope="module")  # playwright keeps an event loop running, beside which other tests could start none
def browser(chromium):
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in the extra dev)")
    with api.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page opened from disk or a server, with everything that it asked of others or complained about.

    source: its file, or the address of a server, all of which it may ask.
    """

    def __init__(self, browser, source: Path | str, width: int = 1200, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._ask)
        self.url = source if isinstance(source, str) else source.resolve().as_uri()
        self.page.goto(self.url)

    def _ask(self, request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.problems.append(f"request: {request.url}")

    def check(self) -> None:
        """Require that nothing was asked of anywhere, nothing complained about, and that nothing is wider than it."""
        assert self.problems == []
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not re.search(r"\b(NaN|None|undefined|nan)\b", self.page.inner_text("body"))


@pytest.fixture
def open_page(browser):
    """open_page(file or address, width=1200, **options of the browser's context) -> Opened."""
    opened: list[Opened] = []

    def open_it(source: Path | str, width: int = 1200, **options) -> Opened:
        opened.append(Opened(browser, source, width, **options))
        return opened[-1]

    yield open_it
    for each in opened:
        each.context.close()


def made_run(folder: Path, names: list[str]) -> Path:
    """Save an untrained model of these classes, and tiny photos: one of each in each split."""
    from carvision.data.images import Preprocessing
    from carvision.inference import model_file
    from carvision.models.classifier import Classifier, Head
    from tests.small_runs import config

    photos, run = folder / "photos", folder / "run"
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", 1), ("test", 1)):
        for name in names:
            (photos / split / name).mkdir(parents=True)
            for i in range(count):
                blocks = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
                image = Image.fromarray(blocks).resize((24, 24), Image.Resampling.NEAREST)
                image.save(photos / split / name / f"{i}.jpg")
    run.mkdir()
    torch.manual_seed(0)
    labels = {"class": {"ids": sorted(names), "names": sorted(names), "parent": None, "parent_codes": []}}
    model = Classifier("test_resnet", {"class": Head(len(names))}, 32).eval()
    with torch.no_grad():
        model.get_submodule("head_class").output.weight.mul_(40)
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    cfg = config("data=folder", f"data.root={photos}", "data.split.kind=official")
    model_file.save(model, run, labels, preprocessing, "independent", {}, cfg)
    return run


@pytest.fixture(scope="session")
def large_run(tmp_path_factory) -> Path:
    """The folder of a run of 1,000 classes, with names in eight scripts, long and hostile ones."""
    names = [f"car {i:04d}" for i in range(990)] + [HOSTILE, "w" * 120, *SCRIPTS]
    return made_run(tmp_path_factory.mktemp("large"), names)


@pytest.fixture(scope="session")
def address(chromium, tmp_path_factory, demo_run, large_run):
    """The address of a server of two runs: cars (with boxes and embeddings) and many (1,000 classes); skipped without a
    browser."""
    from carvision.embed import embed
    from tests.serving.abused import serving

    folder = tmp_path_factory.mktemp("served")
    cars = shutil.copytree(demo_run, folder / "cars")
    embed([str(cars), "data.num_workers=0"])
    about = json.loads((cars / "model.json").read_text(encoding="utf-8"))
    about["operating_points"] = {"make": POINTS, "model": POINTS[:1]}
    (cars / "model.json").write_text(json.dumps(about), encoding="utf-8")
    with serving(cars, folder / "log", str(shutil.copytree(large_run, folder / "many"))) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="session")
def photo_files(demo_photos):
    return sorted((demo_photos / "data" / "image").rglob("*.jpg"))


@pytest.fixture
def start(open_page, address):
    """start(**options) -> (Opened, page) of the server's page, once it knows the network."""

    def open_it(width: int = 1200, **options):
        opened = open_page(address, width, **options)
        opened.page.locator("#matches tbody tr").first.wait_for()
        return opened, opened.page

    return open_it
