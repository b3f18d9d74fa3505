"""evaluation.html, compare.html and search.html in a browser: names in any script, sorting, pointing, printing."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from carvision.evaluation.bootstrap import measure
from carvision.evaluation.report import write_evaluation
from carvision.reports.comparison.report import write_comparison
from carvision.search import report as search_report
from carvision.search.page.write import write_search_page
from tests.browser.conftest import HOSTILE, SCRIPTS
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, made, photo_losses
from tests.reports.comparison.test_frame import write_run

RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)  # over four decades
A4_PX = 688  # the width of A4 between its margins


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The three pages, {name: file}."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "evaluation": evaluation_page(folder / "evaluation"),
        "compare": compare_page(folder / "compare"),
        "search": search_page(folder / "search.html"),
    }


def evaluation_page(folder):
    labels = {**LABELS, "model": {**LABELS["model"], "names": [HOSTILE, "w" * 120, *SCRIPTS[:5]]}}
    predictions = replace(made(temperature={"model": 1.5}), root=folder)  # no photo can be read
    measured = measure(predictions, labels, "joint", photo_losses(predictions, labels), HEAD_WEIGHTS, 10)
    write_evaluation(predictions, labels, folder, measured=measured, rule="joint", title=HOSTILE, notes=[HOSTILE])
    return folder / "evaluation.html"


def compare_page(folder):
    for i, rate in enumerate(RATES):
        keys = {"data__name": "oxford102", "optimizer__lr": rate, "price": 0.01 * 3**i}
        run = folder / "runs" / f"{SCRIPTS[i]}_{i}"
        write_run(run, (0.2, 0.3 + i / 20), ("make", "model"), finished=i != 3, **keys)
    write_run(folder / "runs" / HOSTILE, (0.4, 0.5), data__name="stanford_cars", optimizer__lr=0.1)
    write_comparison([folder / "runs"], folder / "out", against="optimizer.lr", matrix=["data.name", "optimizer.lr"])
    return folder / "out" / "compare.html"


def search_page(file):
    study = optuna.create_study(directions=["maximize"])
    names = (HOSTILE, *SCRIPTS)
    space = {"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True), "names": CategoricalDistribution(names)}
    for i in range(20):
        params = {"optimizer.lr": RATES[i % 7], "names": names[i % 9]}
        state = TrialState.PRUNED if i % 5 == 4 else TrialState.COMPLETE
        values, seen = [0.5 + i % 7 / 20] if i % 5 < 4 else None, {epoch: 0.1 * epoch for epoch in (1, 2, 3)}
        study.add_trial(create_trial(state=state, values=values, params=params, distributions=space,
                                     intermediate_values=seen, user_attrs={"seconds": 10.0 + i}))  # fmt: skip
    objective = {"val/model/top1": "max"}
    sweep = SimpleNamespace(name=HOSTILE, objective=objective, monitor=("val/model/top1", "max"), cells=None)
    frame = search_report.trials_frame(sweep, study.get_trials())
    best = search_report.best_table(sweep, sorted(study.best_trials, key=lambda trial: trial.number)[:5])
    write_search_page(file, sweep, study, HOSTILE, best, frame, f"carvision train --config-dir {HOSTILE}")
    return file


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["evaluation", "compare", "search"])
def test_it_fits_any_window_and_asks_for_nothing(open_page, pages, name, width, scheme):
    opened = open_page(pages[name], width, color_scheme=scheme)
    opened.check()
    text = opened.page.inner_text("body")
    assert HOSTILE in text and SCRIPTS[0] in text
    dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 150) == (scheme == "dark")
    drawn = opened.page.locator(".chart svg[aria-label]:visible")
    assert drawn.count() >= 3 and opened.page.locator(".chart").count() == drawn.count()  # one of two sizes
    assert opened.page.locator("h1").count() == 1 and not opened.page.locator("svg[role]:not([aria-label])").count()


@pytest.mark.parametrize(("name", "table", "heading"), [
    ("compare", "#runs-1, #runs-2", "val model top-1, %"), ("search", "#trials", "val model top-1, %"),
    ("evaluation", "#classes-2", "recall, %"),
])  # fmt: skip
def test_tables_sort_by_numbers_with_unknown_values_last(open_page, pages, name, table, heading):
    page = open_page(pages[name]).page
    rows = page.locator(table).filter(has=page.get_by_role("button", name=heading, exact=True))
    button = rows.get_by_role("button", name=heading, exact=True)
    column = button.evaluate("button => button.parentElement.cellIndex")

    def values() -> list[float]:
        texts = [row.locator("th, td").nth(column).inner_text() for row in rows.locator("tbody tr").all()]
        known = [float(text.split()[0]) for text in texts if text]
        assert texts[len(known) :] == [""] * (len(texts) - len(known))
        return known

    button.press("Enter")
    assert values() == sorted(values()) and len(values()) > 3
    assert rows.locator("th[aria-sort=ascending]").count() == 1
    button.click()
    assert values() == sorted(values(), reverse=True)


def test_trials_are_filtered_by_any_text(open_page, pages):
    page = open_page(pages["search"]).page
    page.locator(".filter").fill(SCRIPTS[2])
    shown = page.locator("#trials tbody tr:visible")
    assert 0 < shown.count() < 20 and all(SCRIPTS[2] in text for text in shown.all_inner_texts())
    assert page.locator(".controls [role=status]").inner_text() == f"{shown.count()} of 20"


def test_runs_are_grouped_by_data_set_and_scales_say_what_they_are(open_page, pages):
    page = open_page(pages["compare"]).page
    headings = page.locator("h2").all_inner_texts()
    assert {"oxford102", "stanford_cars"} <= set(headings)
    titles = page.locator(".chart svg.wide text.title").all_text_contents()
    assert {"optimizer.lr (log scale)", "cost (log scale)", "accuracy, %"} <= set(titles)
    assert any(title.endswith("(not from 0)") for title in titles)
    for chart in page.locator(".chart svg.wide").all():  # no two ticks overlap
        boxes = sorted(chart.locator("text.tick.mid").evaluate_all(
            "ticks => ticks.map(tick => tick.getBoundingClientRect()).map(box => [box.left, box.right])"
        ))  # fmt: skip
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(boxes))


@pytest.mark.parametrize(("name", "width"), [("evaluation", 1200), ("compare", 390), ("search", 1200)])
def test_points_of_charts_tell_their_values_to_keyboard_and_touch(open_page, pages, name, width):
    page = open_page(pages[name], width, has_touch=True).page
    chart = page.locator(".chart").first
    drawing, told = chart.locator("svg[role=application]:visible"), chart.locator(".point")
    titles = drawing.locator("g > title").all_text_contents()
    read = []
    for _ in range(len(titles) + 1):
        drawing.press("ArrowRight")
        read.append(told.inner_text())
    assert set(read) == {" ".join(title.split()) for title in titles} and len(titles) > 2
    drawing.press("ArrowLeft")
    assert told.inner_text() == read[-2] and drawing.locator(".at").count() == 1
    last = drawing.locator("g:has(> title)").last
    box = last.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    assert told.inner_text() in read
    assert drawing.locator(".at").bounding_box()["x"] == pytest.approx(box["x"], abs=8)


def test_the_evaluation_can_be_pointed_at_and_tried(open_page, pages):
    page = open_page(pages["evaluation"]).page
    part = page.locator(".confusion").nth(1)
    canvas, text = part.locator("canvas"), part.locator(".cell")
    canvas.press("ArrowRight")
    told = set()
    for key in ("ArrowRight",) * 6 + ("ArrowDown",) * 3:
        canvas.press(key)
        told.add(text.inner_text())
    assert len(told) == 9 and any(".jpg" in line and "taken for" in line for line in told)
    slider = page.locator(".slider").nth(1)
    slider.locator("input").fill("100")
    assert slider.locator("output").inner_text() == "1.00"
    slider.locator("input").fill("0")
    assert "100.0 % of the" in slider.locator(".answer").inner_text()
    assert slider.locator("input").get_attribute("aria-valuetext") == "0.00"
    page.locator("#pairs button.open").first.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


@pytest.mark.parametrize("name", ["evaluation", "compare", "search"])
def test_print_cuts_nothing(open_page, pages, name):
    opened = open_page(pages[name], A4_PX, color_scheme="dark")
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= A4_PX
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.locator(".controls:visible").count() == 0
    assert opened.page.pdf(format="A4").startswith(b"%PDF")
