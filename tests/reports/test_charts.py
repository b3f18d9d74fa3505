"""Charts as SVG: positions against the plain formula, gaps, ticks that don't overlap, hostile names."""

import itertools
import math
import re

import pytest

from carvision.reports.charts import NARROW_PX, RIGHT_PX, WIDE_PX, Axis, Line, Rule, bar_chart, line_chart

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def svg_of(chart: str, name: str) -> str:
    return re.search(rf'<svg class="{name}".*?</svg>(?=<svg|</div>)', chart, re.DOTALL)[0]


def ticks_of(svg: str, place: str) -> list[tuple[float, float, str]]:
    found = re.findall(rf'<text class="tick {place}" x="([\d.-]+)" y="([\d.-]+)">([^<]*)', svg)
    return [(float(x), float(y), text) for x, y, text in found]


@pytest.mark.parametrize(("name", "width"), [("wide", WIDE_PX[0]), ("narrow", NARROW_PX[0])])
def test_points_are_where_the_ticks_say(name, width):
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
    assert max(x for x, _ in points) <= width - RIGHT_PX
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
