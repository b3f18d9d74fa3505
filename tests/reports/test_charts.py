"""Charts as SVG: positions against the plain formula, gaps, ticks that don't overlap, hostile names."""

import itertools
import math
import re

import pytest

from carvision.reports import charts
from carvision.reports.charts import NARROW_PX, RIGHT_PX, WIDE_PX, Axis, Line, Rule, bar_chart, line_chart

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def svg_of(chart: str, name: str) -> str:
    return re.search(rf'<svg class="{name}".*?</svg>(?=<svg|</div>)', chart, re.DOTALL)[0]


def ticks_of(svg: str, place: str) -> list[tuple[float, float, str]]:
    found = re.findall(rf'<text class="tick {place}" x="([\d.-]+)" y="([\d.-]+)">([^<]*)', svg)
    return [(float(x), float(y), text) for x, y, text in found]


@pytest.mark.parametrize(("name", "size"), [("wide", WIDE_PX), ("narrow", NARROW_PX)])
def test_points_are_where_the_ticks_say(name, size):
    width, height = size
    line = Line("val", [1, 2, 3, 4], [0.1, 0.25, math.nan, 0.9])
    svg = svg_of(
        line_chart([line], Axis("epoch", whole=True), Axis("accuracy", percent=True, limits=(0, 1)), "t"), name
    )
    (path,) = re.findall(r'<g class="look-0"><path d="([^"]*)"', svg)
    assert [step[0] for step in re.findall(r"[ML][\d. ]+", path)] == ["M", "L", "M"]  # a gap where it is not known
    points = [tuple(map(float, step[1:].split())) for step in re.findall(r"[ML][\d. ]+", path)]
    across = {float(text): x for x, _, text in ticks_of(svg, "mid")}
    upright = {float(text.removesuffix(" %")): y - 4 for _, y, text in ticks_of(svg, "end")}
    per_epoch = (across[4] - across[2]) / 2
    per_percent = (upright[100] - upright[0]) / 100
    for (x, y), (epoch, value) in zip(points, [(1, 10), (2, 25), (4, 90)], strict=True):
        assert x == pytest.approx(across[2] + per_epoch * (epoch - 2), abs=0.15)
        assert y == pytest.approx(upright[0] + per_percent * value, abs=0.15)
    assert max(*across.values(), *(x for x, _ in points)) <= width - RIGHT_PX
    assert (upright[0], upright[100]) == (height - charts.BOTTOM_PX, charts.TOP_PX)
    assert re.findall("<title>([^<]*)", svg) == ["val: 1, 10 %", "val: 2, 25 %", "val: 4, 90 %"]


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors_and_leaves_out_zero():
    line = Line("runs", [1e-4, 1e-2, 1.0, 0.0], [1, 2, 3, 4], joined=False)
    svg = svg_of(line_chart([line], Axis("rate", log=True), Axis("loss"), "t"), "wide")
    xs = [float(x) for x in re.findall(r'class="mark" cx="([\d.]+)"', svg)]
    assert len(xs) == 3 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_texts_do_not_overlap():
    rules = [Rule(10, "phase: the first of them"), Rule(10.5, "phase: another one"), Rule(11, "best: epoch 11")]
    line = Line("a", range(1, 200), [1e6 + n for n in range(1, 200)])
    for name in ("wide", "narrow"):
        svg = svg_of(line_chart([line], Axis("epoch", whole=True), Axis("loss"), "t", rules), name)
        texts = sorted((y, x, 6 * len(text)) for x, y, text in ticks_of(svg, "mid"))
        for (y, x, width), (next_y, next_x, next_width) in itertools.pairwise(texts):
            assert y != next_y or x + width / 2 <= next_x - next_width / 2


def test_names_are_escaped():
    line = Line(HOSTILE, [1], [1], texts=[HOSTILE])
    for chart in (
        line_chart([line, line], Axis(HOSTILE), Axis(HOSTILE), HOSTILE, [Rule(1, HOSTILE)]),
        bar_chart([HOSTILE], [0.5], [HOSTILE], HOSTILE),
    ):
        assert "<img" not in chart and 'alert(1)>"' not in chart
        assert chart.count("&lt;img") >= 3


@pytest.mark.parametrize("values", [(1e-5, 1e-1), (3, 4), (8, 4096), (0.0011, 0.0013), (7.0, 7.0)])
def test_a_logarithmic_axis_has_ticks_at_any_range(values):
    chart = line_chart([Line("runs", values, [1, 2])], Axis("rate", log=True), Axis("loss"), "t")
    for name in ("wide", "narrow"):
        ticks = ticks_of(svg_of(chart, name), "mid")
        assert 2 <= len(ticks) <= 9 and all(first[2] != second[2] for first, second in itertools.pairwise(ticks))


def test_ticks_are_where_they_are_wanted_as_far_as_there_is_room():
    rates = [1e-4, 2e-4, 4e-4, 1e-3, 2e-3, 4e-3, 1e-2]
    chart = line_chart([Line("runs", rates, rates)], Axis("rate", log=True, ticks=rates), Axis("loss"), "t")
    wide, narrow = ([float(text) for *_, text in ticks_of(svg_of(chart, name), "mid")] for name in ("wide", "narrow"))
    assert wide == rates and set(narrow) < set(rates) and len(narrow) > 2


@pytest.mark.parametrize(("y", "low", "title"), [
    (Axis("loss"), 0.0, "loss"), (Axis("loss"), 2.5, "loss (not from 0)"),
    (Axis("loss", log=True), 2.5, "loss (log scale)"), (Axis("%", percent=True, limits=(0, 1)), 0.5, "%"),
])  # fmt: skip
def test_a_scale_that_could_mislead_says_so(y, low, title):
    chart = line_chart([Line("a", [1, 2], [low, low + 0.3])], Axis("epoch"), y, "t")
    assert f'rotate(-90)">{title}</text>' in chart and ">epoch</text>" in chart


def test_a_line_without_a_name_or_marks_has_no_legend_and_no_points():
    lines = [Line("mean", [1, 2], [1, 2], marked=False), Line("", [1, 2], [1, 3], joined=False), Line("b", [1], [1], 1)]
    chart = line_chart(lines, Axis("x"), Axis("y"), "t")
    assert re.findall(r"</svg>([^<]*)</li>", chart) == ["mean", "b"] and chart.count("<title>") == 2 * 3
