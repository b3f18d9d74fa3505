"""report.html in a browser: two heads from a real small run, and 1,000 classes with names in any script."""

import shutil

import pytest

from carvision.run_report.write import write_report
from tests.browser.conftest import HOSTILE, SCRIPTS


@pytest.fixture(scope="module")
def small_page(tmp_path_factory, demo_run):
    folder = shutil.copytree(demo_run, tmp_path_factory.mktemp("small") / "run")
    return write_report(folder, ["data.num_workers=0"], "cpu")


@pytest.fixture(scope="module")
def large_page(large_run):
    return write_report(large_run, ["data.num_workers=0"], "cpu")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_it_fits_any_window_and_asks_for_nothing(open_page, small_page, width, scheme):
    opened = open_page(small_page, width, color_scheme=scheme)
    opened.check()
    page = opened.page
    assert "of 72 test photos" in page.inner_text(".verdict") and "%" in page.inner_text(".verdict")
    assert page.locator("#mistakes li img").count() >= 2
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 150) == (scheme == "dark")


def test_tables_sort_and_filter(open_page, small_page):
    page = open_page(small_page).page
    table = page.locator("#classes-2")
    recalls = table.locator("tbody tr td:nth-child(5)")

    def values() -> list[float]:
        return [float(text) for text in recalls.all_inner_texts()]

    header = table.get_by_role("button", name="recall, %")
    header.click()
    assert values() == sorted(values()) and table.locator("th[aria-sort=ascending]").count() == 1
    header.press("Enter")
    assert values() == sorted(values(), reverse=True)
    page.locator("#classes .filter").nth(1).fill("velmora")
    shown = table.locator("tbody tr:visible")
    assert 0 < shown.count() < table.locator("tbody tr").count()
    assert all("Velmora" in text for text in shown.all_inner_texts())


def test_cells_of_the_confusion_tell_their_photos_to_mouse_and_keyboard(open_page, small_page):
    page = open_page(small_page).page
    part = page.locator(".confusion").nth(1)
    canvas, text = part.locator("canvas"), part.locator(".cell")
    canvas.scroll_into_view_if_needed()
    canvas.press("ArrowRight")
    first = text.inner_text()
    assert "photos" in first
    found = set()
    for _ in range(12):
        canvas.press("ArrowRight")
        found.add(text.inner_text())
    assert any(".jpg" in line and "taken for" in line for line in found) or len(found) > 5
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 6, box["y"] + box["height"] - 6)
    assert text.inner_text() not in ("", first)
    only = part.locator(".only-wrong")
    before = canvas.evaluate("canvas => canvas.width")
    only.click()
    assert canvas.evaluate("canvas => canvas.width") <= before


def test_the_slider_tells_accuracy_and_share(open_page, small_page):
    page = open_page(small_page).page
    part = page.locator(".slider").first
    part.locator("input").fill("0")
    assert "100.0 % of the" in part.locator(".answer").inner_text()
    part.locator("input").fill("100")
    assert part.locator("output").inner_text() == "1.00"


def test_photos_open_and_close_by_keyboard(open_page, small_page):
    page = open_page(small_page).page
    page.locator("button.open").first.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_print_leaves_out_the_controls(open_page, small_page):
    opened = open_page(small_page)
    opened.page.emulate_media(media="print")
    assert not opened.page.locator(".controls").first.is_visible() and not opened.page.locator("nav").is_visible()
    assert opened.page.pdf(format="A4").startswith(b"%PDF")


def test_1000_classes_with_names_in_any_script(open_page, large_page):
    assert large_page.stat().st_size <= 8e6
    opened = open_page(large_page, 390)
    opened.check()
    page = opened.page
    assert page.locator("#classes-1 tbody tr").count() == 1000
    names = page.locator("#classes-1 tbody th").all_inner_texts()
    assert {HOSTILE, *SCRIPTS} <= {name.strip() for name in names}
    took = page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
    assert took < 60_000, took  # the goal is 2 s on a quiet machine; this finds a page that hangs
