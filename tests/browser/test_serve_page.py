"""The page of carvision serve: a real server, a real browser, photos as people have them."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

from carvision.explanation import overlay
from carvision.reports.matrix import shade
from tests.browser.conftest import HOSTILE, SCRIPTS
from tests.serving.abused import serving

POINTS = [{"accuracy": accuracy, "threshold": least, "coverage": 0.5} for accuracy, least in ((0.8, 0.0), (0.95, 1.0))]
REFUSED = "console: Failed to load resource: the server responded with a status of "


@pytest.fixture(scope="module")
def address(tmp_path_factory, demo_run, large_run):
    """The address of a server of two runs: cars (with boxes and embeddings) and many (1,000 classes)."""
    from carvision.embed import embed

    folder = tmp_path_factory.mktemp("served")
    cars = shutil.copytree(demo_run, folder / "cars")
    embed([str(cars), "data.num_workers=0"])
    about = json.loads((cars / "model.json").read_text(encoding="utf-8"))
    about["operating_points"] = {"make": POINTS, "model": POINTS[:1]}
    (cars / "model.json").write_text(json.dumps(about), encoding="utf-8")
    with serving(cars, folder / "log", str(shutil.copytree(large_run, folder / "many"))) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_all_of_it_fits_any_window_and_asks_no_other_server(start, address, photo_files, width, scheme):
    opened, page = start(width, color_scheme=scheme)
    opened.check()
    give(page, *photo_files[:3])
    page.locator("button.bar-row").first.click()
    page.locator(".stage.mapped").wait_for()
    page.locator("details.near summary").click()
    page.locator(".near-photos img:visible").nth(11).wait_for()
    for summary in page.locator("#about summary").all():
        summary.click()
    opened.check()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 150) == (scheme == "dark")
    page.goto(f"{address}docs")
    page.locator(".operation").first.wait_for()
    opened.check()
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def test_bars_and_numbers_equal_the_api(start, address, photo_files):
    _, page = start()
    give(page, photo_files[0])
    answer = predicted(address, photo_files[0].read_bytes())
    assert bars(page) == expected_bars(answer)
    widths = page.locator(".fill").evaluate_all("fills => fills.map(fill => parseFloat(fill.style.width))")
    probs = [found["prob"] for classes in answer["heads"].values() if isinstance(classes, list) for found in classes]
    assert widths == pytest.approx([100 * prob for prob in probs], abs=1e-3)
    number = float(page.locator(".value").inner_text().split()[0].replace(",", ""))
    assert number == pytest.approx(answer["heads"]["speed"]["value"], rel=1e-3)


def test_photos_are_dropped_pasted_and_photographed(start, photo_files):
    opened, page = start(has_touch=True, permissions=["clipboard-read", "clipboard-write"])
    drop, files = page.locator("#drop").bounding_box(), [str(file) for file in photo_files[:2]]
    devtools = opened.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):  # as the system tells the browser
        data = {"items": [], "files": files, "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": drop["x"] + 9, "y": drop["y"] + 9, "data": data})
    wait(page)
    assert page.locator("#tiles li").count() == 2 and page.inner_text(".photo-title h2") == photo_files[0].name
    image = base64.b64encode(saved(Image.open(photo_files[2]), "PNG")).decode()
    page.evaluate(
        """async (image) => {
          const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        image,
    )
    page.keyboard.press("Control+v")
    page.locator("#tiles li").nth(2).wait_for()
    wait(page)
    page.evaluate("navigator.clipboard.writeText('http://127.0.0.1/photo.jpg')")
    page.locator("h1").click()
    page.keyboard.press("Control+v")
    assert "holds no photo" in page.inner_text("#refused")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").click()
    chooser.value.set_files(photo_files[3])
    page.locator("#tiles li").nth(3).wait_for()
    assert page.locator("#camera").get_attribute("capture") == "environment"
    wait(page)
    opened.check()


def test_unusual_photos_are_answered_upright(start, photo_files):
    opened, page = start()
    image = Image.open(photo_files[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [image, image.rotate(180)]
    given = {
        "turned.jpg": saved(image, "JPEG", exif=turned.tobytes()),
        "ink.jpg": saved(image.convert("CMYK"), "JPEG"),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "grey.png": saved(image.convert("LA"), "PNG"),
        "no preview here.tif": saved(image, "TIFF"),
    }
    give(page, *given.items())
    for number, name in enumerate(given):
        page.locator("#tiles button").nth(number).click()
        wait(page)
        size = image.size[::-1] if name == "turned.jpg" else image.size
        assert page.locator(".answers .head").count() == 3, name
        assert page.inner_text(".photo-title .note").startswith(f"{size[0]} \N{MULTIPLICATION SIGN} {size[1]} pixels")
        frame = page.locator(".stage").bounding_box()
        assert frame["width"] / frame["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert "can't show photos of this format" in page.inner_text(".stage")
    page.locator("button.bar-row").first.click()  # drawn by the server
    page.locator("img.map:visible").wait_for()
    assert page.locator("img.map").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    opened.check()


def test_heic_is_answered_though_the_browser_can_not_show_it(start, photo_files):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (it is in the extra heic)")
    _, page = start()
    heif.register_heif_opener()
    give(page, ("phone.heic", saved(Image.open(photo_files[0]), "HEIF")))
    assert page.locator(".answers .head").count() == 3


def test_each_error_is_a_sentence(start, photo_files, tmp_path):
    opened, page = start()
    whole = photo_files[0].read_bytes()
    bad = {
        "junk.jpg": np.random.default_rng(0).bytes(3000), "cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"",
        "text.txt": b"no photo", "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "huge.jpg": saved(Image.new("L", (10_000, 6_000)), "JPEG"), "large.bmp": bytes(21 * 2**20),
    }  # fmt: skip
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    give(page, *(tmp_path / name for name in bad), photo_files[0])
    told: dict[str, str] = {}
    for number, name in enumerate(bad):
        page.locator("#tiles button").nth(number).click()
        wait(page)
        told[name] = page.inner_text(".answers")
        assert re.fullmatch(r"[A-Z][^\n]{10,300}[.!?]", told[name]), told[name]
        assert not re.search(r"Traceback|Error|0x|\{|/tmp", told[name])
    assert "more than 50,000,000 pixels" in told["huge.jpg"]
    assert "at most 20 MB" in told["large.bmp"]
    page.locator("#tiles button").last.click()  # the others are answered
    wait(page)
    assert page.locator(".answers .head").count() == 3
    assert all(problem.startswith((f"{REFUSED}4",)) for problem in opened.problems)
    opened.problems.clear()
    opened.check()


def test_a_box_is_drawn_and_used(start, address, photo_files):
    opened, page = start()
    give(page, photo_files[0])
    width, height = Image.open(photo_files[0]).size
    page.locator(".stage").scroll_into_view_if_needed()
    frame = page.locator(".stage").bounding_box()
    corners = [(frame["x"] + part * frame["width"], frame["y"] + part * frame["height"]) for part in (0.25, 0.5, 0.75)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1])
    with page.expect_response("**/v1/predict**"):
        page.mouse.move(*corners[2])
        page.mouse.up()
    wait(page)
    box = [int(field.input_value()) for field in page.locator(".box-fields input").all()]
    assert box == pytest.approx([width / 4, height / 4, 3 * width / 4, 3 * height / 4], abs=1)
    answer = predicted(address, photo_files[0].read_bytes(), f"&box={','.join(map(str, box))}")
    page.locator(".box:visible").wait_for()
    assert bars(page) == expected_bars(answer)
    assert page.locator(".part:visible").count() == 1 and page.locator("canvas.seen:visible").count() == 1
    page.locator(".box-fields input").nth(2).fill(str(width + 500))
    page.locator(".box-fields input").nth(2).press("Tab")
    assert f"within {width} \N{MULTIPLICATION SIGN} {height} pixels" in page.inner_text(".box-fields [role=alert]")
    with page.expect_response("**/v1/predict**"):
        page.get_by_role("button", name="Whole photo").click()
    page.locator(".part").wait_for(state="hidden")
    wait(page)
    assert bars(page) == expected_bars(predicted(address, photo_files[0].read_bytes()))
    opened.check()


def test_a_finger_draws_a_box_only_when_asked_to(start, photo_files):
    opened, page = start(390, has_touch=True, is_mobile=True)
    give(page, photo_files[0])
    devtools = opened.context.new_cdp_session(page)

    def drag() -> list[str]:
        page.locator(".stage").scroll_into_view_if_needed()
        frame = page.locator(".stage").bounding_box()
        for kind, part in (("touchStart", 0.2), ("touchMove", 0.5), ("touchMove", 0.7), ("touchEnd", None)):
            x, y = (frame["x"] + (part or 0) * frame["width"], frame["y"] + (part or 0) * frame["height"])
            points = [] if part is None else [{"x": x, "y": y}]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        return [field.input_value() for field in page.locator(".box-fields input").all()]

    assert drag() == [""] * 4
    page.get_by_role("button", name="Draw a box").tap()
    scrolled = page.evaluate("scrollY")
    with page.expect_response("**/v1/predict**"):
        box = [float(value) for value in drag()]
    width, height = Image.open(photo_files[0]).size
    assert box == pytest.approx([0.2 * width, 0.2 * height, 0.7 * width, 0.7 * height], abs=1.5)
    assert page.evaluate("scrollY") == scrolled
    wait(page)
    opened.check()


def test_the_heat_map_is_that_of_carvision_explain(start, photo_files):
    opened, page = start()
    give(page, photo_files[0])
    bar = page.locator("button.bar-row[data-head=model]").nth(1)
    with page.expect_response("**/v1/explain**") as asked:
        bar.click()
    answer = asked.value.json()
    page.locator(".stage.mapped").wait_for()
    assert answer["class"]["id"] == bar.get_attribute("data-id") and bar.get_attribute("aria-pressed") == "true"
    assert bar.locator("span").first.inner_text() in page.inner_text("figcaption >> nth=0")
    size, painted = page.locator("canvas.map").evaluate(
        """({ width, height }) => {
          const { data } = document.querySelector("canvas.map").getContext("2d").getImageData(0, 0, width, height);
          return [[width, height], Array.from(data)];
        }"""
    )
    pixels = np.array(painted, np.float32).reshape(size[1], size[0], 4)
    values = Image.fromarray(np.array(answer["values"], np.float32))
    smooth = np.asarray(values.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    inner = pixels[..., 3] < 255  # all but the line
    assert 0.8 < inner.mean() < 1
    opacity = overlay.OPACITY[0] + (overlay.OPACITY[1] - overlay.OPACITY[0]) * smooth
    assert np.abs(pixels[..., 3] - 255 * opacity)[inner].max() <= 2
    assert np.abs(pixels[..., :3] - 255 * shade(smooth, overlay.INFERNO))[inner].max() <= 5  # stored times opacity
    bar.click()
    assert page.locator(".stage.mapped").count() == 0 and bar.get_attribute("aria-pressed") == "false"
    opened.check()


def test_sure_and_not_sure_follow_the_chosen_accuracy(start, photo_files):
    opened, page = start()
    give(page, *photo_files[:2])
    heads = page.locator(".answers .head")
    assert page.input_value("#belief select") == "0.95"
    assert "not sure" in heads.nth(0).inner_text() and "100.0\N{NO-BREAK SPACE}% or more" in heads.nth(0).inner_text()
    assert "not sure" in heads.nth(1).inner_text() and "No probability sets answers apart" in heads.nth(1).inner_text()
    assert all("not sure" in tile for tile in page.locator("#tiles button").all_inner_texts())
    page.select_option("#belief select", "0.8")
    assert all("\N{CHECK MARK} sure" in heads.nth(i).inner_text() for i in range(2))
    assert not any("not sure" in tile for tile in page.locator("#tiles button").all_inner_texts())
    opened.check()


def test_make_and_model_that_do_not_fit_are_named(start, photo_files):
    opened, page = start()

    def swap(route):
        answer = route.fetch().json()
        heads = answer["photos"][0]["heads"]
        heads["make"] = heads["make"][::-1]
        answer["photos"][0]["consistent"] = False
        route.fulfill(json=answer)

    give(page, photo_files[0])
    consistent = page.locator(".fit").inner_text()
    page.route("**/v1/predict**", swap)
    give(page, photo_files[0])
    page.locator("#tiles button").nth(1).click()
    page.locator(".fit bdi").nth(2).wait_for()
    shown = bars(page)
    assert "make and model do not fit together" in page.inner_text(".fit") != consistent
    assert page.inner_text(".fit").endswith(f", not to {shown['make'][0][0]}.")
    assert page.inner_text(".fit").count(shown["model"][0][0]) == 1
    opened.check()


def test_the_network_lost_midway_is_said_and_found_again(start, photo_files):
    opened, page = start()
    page.route("**/v1/predict**", lambda route: route.abort("connectionreset"))
    give(page, photo_files[0])
    assert page.inner_text(".failed p").startswith("The server can't be reached.")
    page.unroute("**/v1/predict**")
    page.get_by_role("button", name="Try again").press("Enter")
    page.locator(".answers .head").first.wait_for()
    opened.context.set_offline(True)
    page.locator("button.bar-row").first.click()
    page.locator("figcaption .wrong").wait_for()
    assert "can't be reached" in page.inner_text("figcaption .wrong")
    opened.context.set_offline(False)
    page.locator("button.bar-row").first.click()
    page.locator(".stage.mapped").wait_for()
    page.route("**/v1/model**", lambda route: route.abort("connectionrefused"))
    page.reload()
    assert page.locator("#trouble p").inner_text().startswith("The server can't be reached.")
    page.unroute("**/v1/model**")
    page.locator("#trouble button").click()
    page.locator("#matches tbody tr").first.wait_for()


def test_a_busy_server_is_asked_again_and_a_proxy_is_understood(start, photo_files):
    _, page = start()
    answers = [429, 503, None]

    def answer(route):
        status = answers.pop(0)
        if status is None:
            route.continue_()
        else:
            error = {"error": {"code": "busy", "message": "too many photos are waiting"}}
            route.fulfill(status=status, json=error, headers={"Retry-After": "1"})

    page.route("**/v1/predict**", answer)
    give(page, photo_files[0])
    assert answers == [] and page.locator(".answers .head").count() == 3
    page.unroute("**/v1/predict**")
    page.route("**/v1/predict**", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    give(page, photo_files[1])
    page.locator("#tiles button").nth(1).click()
    wait(page)
    assert page.inner_text(".failed p").startswith("The server answered 502")


def test_the_keyboard_alone_is_enough(start, photo_files):
    opened, page = start()
    with page.expect_file_chooser() as chooser:
        page.locator("#pick").focus()
        page.keyboard.press("Enter")
    chooser.value.set_files(photo_files[:3])
    wait(page)
    page.locator("#tiles button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".photo-title h2") == photo_files[1].name
    page.keyboard.press("Delete")
    assert page.locator("#tiles li").count() == 2 and page.inner_text(".photo-title h2") == photo_files[2].name
    wait(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "bar-row":
            break
    page.keyboard.press("Enter")
    page.locator(".stage.mapped").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    without_name = page.locator("button:visible, input:visible, select:visible").evaluate_all(
        "all => all.filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).length"
    )
    assert without_name == 0
    opened.check()


def test_1000_classes_are_searched_and_names_stay_text(start, address, photo_files):
    opened, page = start(390)
    give(page, photo_files[0])
    page.select_option("#models select", "many")
    page.locator("#found", has_text="1,000 classes").wait_for()
    wait(page)
    page.locator("button.bar-row[data-head=class]").nth(4).wait_for()
    assert bars(page) == expected_bars(predicted(address, photo_files[0].read_bytes(), "&model=many"))
    page.locator("#more").click()
    page.locator("#matches tbody tr").nth(199).wait_for()
    for name in (HOSTILE, *SCRIPTS):
        page.fill("#search", name[-14:])
        page.locator("#matches tbody:not(:has(tr + tr)) th", has_text=name).wait_for()
        assert page.locator("#matches tbody th").all_inner_texts() == [name]
        assert page.inner_text("#found") == "1 of 1,000 classes"
    page.fill("#search", "onerror")
    page.locator("#matches button", has_text=HOSTILE).click()
    page.locator(".stage.mapped").wait_for()
    assert HOSTILE in page.inner_text(".photo figcaption >> nth=0")
    page.locator("details.near summary").click()
    assert "carvision embed" in page.inner_text(".near-photos")
    opened.check()


def test_the_description_shows_each_operation_and_tries_it(start, address):
    opened, page = start()
    page.goto(f"{address}docs")
    page.locator(".operation").first.wait_for()
    with urllib.request.urlopen(f"{address}openapi.json") as response:
        paths = json.load(response)["paths"]
    shown = {" ".join(text.split()[:2]) for text in page.locator(".operation > summary").all_inner_texts()}
    assert shown == {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    operation = page.locator(".operation", has=page.get_by_text("/v1/classes/{head}", exact=True))
    operation.locator("summary").click()
    operation.locator("input[name=head]").fill("make")
    operation.locator("input[name=limit]").fill("2")
    operation.get_by_role("button", name="Send").click()
    operation.locator("form pre").wait_for()
    assert len(json.loads(operation.locator("form pre").inner_text())["classes"]) == 2
    operation.locator("input[name=head]").fill("mke")
    operation.get_by_role("button", name="Send").click()
    operation.locator("form .wrong").wait_for()
    assert operation.locator("form .wrong").inner_text().startswith("404: ")
    assert all(problem.startswith(REFUSED) for problem in opened.problems)


@pytest.mark.parametrize(("title", "command"), [
    ("curl", ["sh", "example"]), ("Python", [sys.executable, "example"]), ("JavaScript", ["node", "example.mjs"]),
])  # fmt: skip
def test_the_examples_run_as_they_stand(start, address, photo_files, tmp_path, title, command):
    needed = shutil.which("curl" if title == "curl" else command[0])
    if needed is None:
        pytest.skip(f"no {title} on this machine")
    _, page = start()
    example = page.get_by_label(f"example in {title}").inner_text()
    (tmp_path / command[1]).write_text(example, encoding="utf-8")
    shutil.copy(photo_files[0], tmp_path / "photo.jpg")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    best = predicted(address, photo_files[0].read_bytes(), "&model=cars")["heads"]["make"][0]
    assert best["name"] in done.stdout and f"{best['prob']:.3f}"[:4] in done.stdout


def test_a_token_is_asked_for_and_kept_in_memory_only(tmp_path, demo_run, open_page, photo_files):
    (tmp_path / "token").write_text("open sesame open\n".replace(" ", "-"), encoding="utf-8")
    with serving(demo_run, tmp_path / "log", "--token-file", str(tmp_path / "token")) as server:
        opened = open_page(f"http://127.0.0.1:{server.port}/")
        page = opened.page
        for number, token in enumerate(("wrong", "open-sesame-open")):
            page.get_by_label("Token", exact=True).fill(token)
            page.get_by_role("button", name="Continue").click()
            if not number:
                page.get_by_text("The server does not know this token.").wait_for()
        page.locator("#matches tbody tr").first.wait_for()
        give(page, photo_files[0])
        assert page.locator(".answers .head").count() == 3
        assert "Authorization: Bearer TOKEN" in page.inner_text("#examples")
        page.reload()
        page.get_by_label("Token", exact=True).wait_for()
        assert all(problem.startswith(f"{REFUSED}401") for problem in opened.problems)
