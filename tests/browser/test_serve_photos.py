"""The page of carvision serve: what it shows of a photo, a real server, a real browser."""

import re

import numpy as np
import pytest
from PIL import Image

from carvision.explanation import overlay
from carvision.reports.matrix import shade
from tests.browser.served import REFUSED, bars, expected_bars, give, predicted, saved, wait


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
