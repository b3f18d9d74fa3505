"""What tests of the server's page share: giving it photos, and reading its answers beside those of the API."""

import io
import json
import urllib.request

from PIL import Image

REFUSED = "console: Failed to load resource: the server responded with a status of "


def give(page, *photos) -> None:
    """Choose photos, and wait until the first of them is answered. photos: paths, or (name, bytes)."""
    named = [p if not isinstance(p, tuple) else {"name": p[0], "mimeType": "", "buffer": p[1]} for p in photos]
    page.set_input_files("#files", named)
    wait(page)


def wait(page) -> None:
    page.locator(".answers:not([aria-busy=true]) :is(.head, .failed)").first.wait_for()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def predicted(address: str, photo: bytes, query: str = "") -> dict:
    """Ask the API for a photo, as the page's Python example does."""
    request = urllib.request.Request(f"{address}v1/predict?top=5{query}", photo, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["photos"][0]


def bars(page) -> dict[str, list[tuple[str, str]]]:
    """Return {head: [(name, text of the probability)]} that the page shows."""
    shown: dict = {}
    for bar in page.locator("button.bar-row").all():
        name, _, prob = bar.locator("> span").all()
        shown.setdefault(bar.get_attribute("data-head"), []).append((name.inner_text(), prob.inner_text()))
    return shown


def expected_bars(answer: dict) -> dict:
    def text(prob: float) -> str:
        return f"{100 * prob:.1f}\N{NO-BREAK SPACE}%"

    heads = {head: found for head, found in answer["heads"].items() if isinstance(found, list)}
    return {head: [(each["name"], text(each["prob"])) for each in found] for head, found in heads.items()}
