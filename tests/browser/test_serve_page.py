"""The page of carvision serve as a whole: ways in, lost networks, keyboard, classes, examples, token; a real server."""

import base64
import json
import shutil
import subprocess
import sys
import urllib.request

import pytest
from PIL import Image

from tests.browser.conftest import HOSTILE, SCRIPTS
from tests.browser.served import REFUSED, bars, expected_bars, give, predicted, saved, wait
from tests.serving.abused import serving


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
