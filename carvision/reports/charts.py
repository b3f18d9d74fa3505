"""Draw charts as inline SVG: letters are the browser's, colours follow the page's light or dark style.

Every chart is drawn twice, for a wide window and for a phone, of which the page's style shows one: text in an SVG that
is scaled down could not be read. Lines differ by colour, dashes and marker. matplotlib only chooses the ticks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

WIDE_PX, NARROW_PX = (720, 300), (350, 250)  # width and height of the whole chart
TOP_PX, BOTTOM_PX, RIGHT_PX, LETTER_PX = 12, 42, 20, 6.9  # margins; a letter's width at 12 px
MARKERS = "osdvxp"  # of LOOKS, in their order
LOOKS = 6  # colours of the style sheet, .look-0 to .look-5
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
MAX_MARKED = 40  # points of a line up to which each has a marker


class Axis(NamedTuple):
    """An axis. title: with its unit; percent: values 0..1 shown in %; whole: ticks at whole numbers; limits: of the
    scale, or those of the data; ticks: at these values, as far as their texts don't overlap.

    The title says if the scale is logarithmic, or (the upright one) begins above 0.
    """

    title: str
    percent: bool = False
    whole: bool = False
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] = ()


class Line(NamedTuple):
    """A line through points in the order of x, with a gap at each NaN of y.

    name: in the legend, "" for none. look: its colour and marker. texts: of each point, shown when pointed at; without
    them its name and coordinates. joined: False for points alone. marked: False for a line alone.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: int = 0
    dashed: bool = False
    texts: Sequence[str] = ()
    joined: bool = True
    marked: bool = True


class Rule(NamedTuple):
    """A vertical line at x with a text."""

    x: float
    text: str


class Scale:
    """The positions of an axis' values between two pixels, and its ticks."""

    def __init__(self, axis: Axis, values: np.ndarray, first_px: float, last_px: float, num_ticks: int):
        from matplotlib.ticker import MaxNLocator

        self.axis = axis
        known = values[np.isfinite(values)]
        if axis.log:
            known = known[known > 0]
        low, high = axis.limits or ((known.min(), known.max()) if len(known) else (0.0, 1.0))
        if axis.log:
            low, high = low / 1.2, high * 1.2
            ticks = axis.ticks or _log_ticks(low, high, num_ticks)
        else:
            spread = high - low or abs(high) or 1.0
            if axis.limits is None:
                low, high = low - 0.04 * spread, high + 0.04 * spread
            ticks = axis.ticks or MaxNLocator(num_ticks, steps=STEPS, integer=axis.whole, min_n_ticks=2).tick_values(
                low, high
            )
        slack = 1e-9 * (high - low)
        self.ticks = [float(tick) for tick in ticks if low - slack <= tick <= high + slack]
        self.first_px, self.last_px = first_px, last_px
        self.low, self.high = self._at(low), self._at(high)
        self.title_from_0 = f"{axis.title}{' (log scale)' if axis.log else ' (not from 0)' if low > 0 else ''}"
        self.title = f"{axis.title} (log scale)" if axis.log else axis.title

    def shows(self, value: float) -> bool:
        """Return whether the scale has a place for the value."""
        return math.isfinite(value) and not (self.axis.log and value <= 0)

    def _at(self, value: float) -> float:
        return math.log10(value) if self.axis.log else value

    def px(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (self._at(value) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.first_px + share * (self.last_px - self.first_px), 1)

    def text(self, value: float, digits: int = 4) -> str:
        """Return the value as its axis shows it."""
        shown = 100 * value if self.axis.percent else value
        text = f"{shown:,.{digits}g}" if abs(shown) < 1e4 else f"{shown:,.0f}"
        return f"{text} %" if self.axis.percent else text


def _log_ticks(low: float, high: float, num_ticks: int) -> Sequence[float]:
    """Return ticks at powers of ten; where there are fewer than three, at rounder and then any values between."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for between in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = np.asarray(LogLocator(subs=between, numticks=max(4, num_ticks)).tick_values(low, high))
        if ((found >= low) & (found <= high)).sum() >= 3:
            return found.tolist()
    return MaxNLocator(num_ticks, steps=STEPS, min_n_ticks=2).tick_values(low, high)


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, title: str, rules: Sequence[Rule] = ()) -> Markup:
    """Return HTML of a chart with a legend above it. title: read to those who can't see it."""
    parts = [
        _line_svg(lines, x, y, title, rules, size, name) for size, name in ((WIDE_PX, "wide"), (NARROW_PX, "narrow"))
    ]
    named = sorted((line for line in lines if line.name), key=lambda line: line.look)
    return Markup('<div class="chart">{}{}</div>').format(
        legend(named) if len(named) > 1 else "", Markup("").join(parts)
    )


def legend(lines: Sequence[Line]) -> Markup:
    """Return the names of lines, each beside a piece of its line."""
    item = Markup('<li><svg width="30" height="12" aria-hidden="true"><g class="look-{}{}">{}{}</g></svg>{}</li>')
    shown = [
        item.format(
            line.look % LOOKS,
            " dashed" if line.dashed else "",
            Markup('<path d="M2 6H28"/>') if line.joined else "",
            _marker(15, 6, line.look) if line.marked else "",
            line.name,
        )
        for line in lines
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(shown))


def _line_svg(
    lines: Sequence[Line], x: Axis, y: Axis, title: str, rules: Sequence[Rule], size: tuple[int, int], name: str
) -> Markup:
    width, height = size
    all_x = np.array([value for line in lines for value in line.x] + [rule.x for rule in rules], dtype=float)
    all_y = np.array([value for line in lines for value in line.y], dtype=float)
    upright = Scale(y, all_y, height - BOTTOM_PX, TOP_PX, 5)
    left = 30 + LETTER_PX * max((len(upright.text(tick)) for tick in upright.ticks), default=1)
    flat = Scale(x, all_x, left, width - RIGHT_PX, max(3, round((width - left) / 80)))
    marks, top = _rules(rules, flat, height, width)
    upright = Scale(y, all_y, height - BOTTOM_PX, top, 5)
    body = [*_frame(flat, upright, size, left), *marks]
    for line in lines:
        body.append(_path(line, flat, upright))
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        name, width, height, title, Markup("").join(body)
    )


def _frame(flat: Scale, upright: Scale, size: tuple[int, int], left: float) -> Iterator[Markup]:
    """Yield the grid, the ticks' texts and the axes' titles."""
    width, height = size
    bottom = height - BOTTOM_PX
    for tick in upright.ticks:
        at = upright.px(tick)
        yield Markup('<path class="grid" d="M{} {}H{}"/>').format(left, at, width - RIGHT_PX)
        yield Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(left - 6, at + 4, upright.text(tick))
    free = 0.0  # from which pixel on the next text does not overlap the one before
    for tick in flat.ticks:
        at, text = flat.px(tick), flat.text(tick)
        half = LETTER_PX * len(text) / 2
        yield Markup('<path class="axis" d="M{} {}v4"/>').format(at, bottom)
        if at - half >= free:
            yield Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(at, bottom + 17, text)
            free = at + half + LETTER_PX
    yield Markup('<path class="axis" d="M{} {}H{}"/>').format(left, bottom, width - RIGHT_PX)
    yield Markup('<text class="title mid" x="{}" y="{}">{}</text>').format((left + width) / 2, height - 6, flat.title)
    middle = (upright.last_px + bottom) / 2
    yield Markup('<text class="title mid" transform="translate(13 {}) rotate(-90)">{}</text>').format(
        middle, upright.title_from_0
    )


def _rules(rules: Sequence[Rule], flat: Scale, height: int, width: int) -> tuple[list[Markup], int]:
    """Return the lines, their texts above the chart in as many rows as they need, and the pixel where it begins."""
    free: list[float] = []  # by row of texts: the pixel from which on there is room
    placed = []
    for rule in sorted(rules):
        at, needed = flat.px(rule.x), LETTER_PX * len(rule.text)
        begins = max(0.0, min(at - needed / 2, width - needed))
        row = next((row for row, end in enumerate(free) if end <= begins), len(free))
        free[row:] = [begins + needed + LETTER_PX, *free[row + 1 :]]
        placed.append((rule.text, at, begins + needed / 2, TOP_PX + 14 * row))
    top = TOP_PX + 14 * len(free)
    line = Markup('<path class="rule" d="M{} {}V{}"/><text class="tick mid" x="{}" y="{}">{}</text>')
    return [line.format(at, y + 4, height - BOTTOM_PX, round(x, 1), y, text) for text, at, x, y in placed], top


def _path(line: Line, flat: Scale, upright: Scale) -> Markup:
    """Return a line with its points, each of which shows its text when it is pointed at."""
    steps, points, joined = [], [], False
    shown = [flat.shows(x) and upright.shows(y) for x, y in zip(line.x, line.y, strict=True)]
    each = len(line.x) <= MAX_MARKED or not line.joined
    hidden = Markup('<circle class="hidden" cx="{}" cy="{}" r="6"/>')
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if shown[i]:
            at = flat.px(x), upright.px(y)
            steps.append(f"{'L' if joined else 'M'}{at[0]} {at[1]}")
            text = line.texts[i] if line.texts else f"{line.name}: {flat.text(x)}, {upright.text(y)}"
            mark = _marker(*at, line.look) if each else hidden.format(*at)
            points.append(Markup("<g>{}<title>{}</title></g>").format(mark, text))
        joined = shown[i]
    drawn = Markup('<path d="{}"/>').format("".join(steps)) if line.joined else ""
    looks = f"look-{line.look % LOOKS}{' dashed' if line.dashed else ''}{'' if line.marked else ' plain'}"
    return Markup('<g class="{}">{}{}</g>').format(looks, drawn, Markup("").join(points) if line.marked else "")


def _marker(x: float, y: float, look: int) -> Markup:
    """Return the marker of a look: disc, square, diamond, triangle, cross, ring."""
    shapes = {
        "o": '<circle class="mark" cx="{x}" cy="{y}" r="3.2"/>',
        "s": '<path class="mark" d="M{x} {y}m-3-3h6v6h-6z"/>',
        "d": '<path class="mark" d="M{x} {y}m0-4.4l4.4 4.4l-4.4 4.4l-4.4-4.4z"/>',
        "v": '<path class="mark" d="M{x} {y}m-4-3h8l-4 7z"/>',
        "x": '<path class="cross" d="M{x} {y}m-3.5-3.5l7 7m0-7l-7 7"/>',
        "p": '<circle class="ring" cx="{x}" cy="{y}" r="3.4"/>',
    }
    return Markup(shapes[MARKERS[look % LOOKS]].format(x=escape(x), y=escape(y)))


def bar_chart(names: Sequence[str], values: Sequence[float], texts: Sequence[str], title: str) -> Markup:
    """Return HTML of horizontal bars, which wrap their names: values 0..1 of the width, texts beside them."""
    row = Markup('<tr><th scope="row">{}</th><td><span class="bar" style="width:{}%"></span>{}</td></tr>')
    rows = [row.format(n, round(100 * max(0.0, v), 1), t) for n, v, t in zip(names, values, texts, strict=True)]
    return Markup('<table class="bars"><caption class="unseen">{}</caption>{}</table>').format(
        title, Markup("").join(rows)
    )
