"""Plots of a search. Each function returns whether there was anything to draw."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from carvision.reports.plots import FAINT, GRID, TEXT, create_figure, save_figure, set_title, tidy
from carvision.search.build import Sweep
from carvision.search.queue import best_first, last_value, pareto_front, root_of, values_of

DONE, PRUNED, BEST = "#4477aa", "#bbbbbb", "#bb5566"
MAX_KEYS = 16  # in one picture
WIDE_RANGE = 20  # ratio of largest to smallest value above which an axis is logarithmic
SHADES = "viridis_r"


def plot_history(sweep: Sweep, trials: Sequence[FrozenTrial], file: Path) -> bool:
    """Plot each trial's first objective, and the best so far; for pruned trials the last value."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        return False
    figure = create_figure(8, 4)
    axes = figure.add_subplot()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    values = [values_of(trial)[0] for trial in done]
    reach = 1.5 * max(max(values) - min(values), 0.05 * abs(max(values)), 1e-9)  # beyond the values of completed trials
    last = np.array([last_value(trial) for trial in pruned])
    shown = np.clip(last, min(values) - reach, max(values) + reach)
    for outside, marker in ((last == shown, "o"), (last > shown, "^"), (last < shown, "v")):
        axes.scatter(np.array([root_of(t) for t in pruned])[outside], shown[outside], s=22, color=PRUNED, marker=marker,
                     label="pruned: its last epoch" if marker == "o" else None, zorder=2)  # fmt: skip
    axes.scatter([root_of(t) for t in done], values, s=26, color=DONE, label="completed", zorder=3)
    best = np.minimum.accumulate(values) if _is_min(sweep) else np.maximum.accumulate(values)
    positions = [*(root_of(t) for t in done), max(map(root_of, trials))]
    axes.step(positions, [*best, best[-1]], where="post", color=BEST, linewidth=1.6, label="best so far", zorder=1)
    _set_scale(axes, "y", values, _objective(sweep))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(_objective(sweep))
    tidy(axes, "y")
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3)
    set_title(figure, f"{_objective(sweep)} of {len(done)} completed trials, {len(pruned)} pruned")
    save_figure(figure, file)
    return True


def plot_importance(shares: dict[str, float], file: Path) -> bool:
    """Plot the importance of the keys, {key: fraction of the variance}."""
    shown = list(shares.items())[:MAX_KEYS]
    if not shown:
        return False
    figure = create_figure(7, 1.1 + 0.32 * len(shown))
    axes = figure.add_subplot()
    bars = axes.barh([key for key, _ in shown][::-1], [share for _, share in shown][::-1], color=DONE, height=0.62)
    axes.bar_label(bars, [f"{share:.0%}" for _, share in shown][::-1], padding=4, size=9, color=TEXT)
    tidy(axes, "x")
    axes.set_xlim(0, max(1e-9, max(share for _, share in shown)) * 1.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("fraction of the variance among the trials (functional ANOVA)")
    set_title(figure, "Importance of the parameters")
    save_figure(figure, file)
    return True


def plot_slices(sweep: Sweep, trials: Sequence[FrozenTrial], file: Path) -> bool:
    """Plot the first objective against each sampled key."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    keys = _keys(done)
    if len(done) < 2 or not keys:
        return False
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = create_figure(2.9 * columns, 0.6 + 2.6 * rows)
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    numbers = [root_of(trial) for trial in done]
    shades = ScalarMappable(Normalize(min(numbers), max(*numbers, min(numbers) + 1)), SHADES)
    for axes, key in zip(all_axes, keys, strict=False):
        own = [trial for trial in done if key in trial.params]
        drawn = [trial.params[key] for trial in own]
        positions, labels = _axis_positions(drawn)
        axes.scatter(
            positions, [values_of(trial)[0] for trial in own], c=[root_of(trial) for trial in own], cmap=shades.cmap,
            norm=shades.norm, s=24, edgecolors="white", linewidths=0.4,
        )  # fmt: skip
        _label(axes, labels, drawn)
        axes.set_xlabel(key, parse_math=False)
        tidy(axes, "both")
    _set_scale(all_axes[0], "y", [values_of(trial)[0] for trial in done], _objective(sweep))
    for axes in all_axes[len(keys) :]:
        axes.set_visible(False)
    for row in range(rows):
        all_axes[row * columns].set_ylabel(_objective(sweep))
    bar = figure.colorbar(shades, ax=all_axes.tolist(), shrink=0.7, aspect=30, pad=0.01)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.set_label("trial", size=9, color=TEXT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=TEXT, labelsize=8)
    set_title(figure, f"{_objective(sweep)} by sampled parameter")
    save_figure(figure, file)
    return True


def plot_parallel(sweep: Sweep, done: Sequence[FrozenTrial], file: Path) -> bool:
    """Plot one line per trial through its sampled values; the better the first objective, the darker."""
    keys = _keys(done)
    if len(done) < 2 or not keys:
        return False
    figure = create_figure(max(6.5, 1.35 * (len(keys) + 1)), 4.6)
    axes = figure.add_subplot()
    ranked = best_first(sweep, list(done))
    rank = {trial.number: position for position, trial in enumerate(ranked)}
    names = [*keys, _objective(sweep)]
    heights = np.full((len(ranked), len(names)), np.nan)
    for column, key in enumerate(keys):
        known = [row for row, trial in enumerate(ranked) if key in trial.params]
        positions, labels = _axis_positions([ranked[row].params[key] for row in known])
        heights[known, column] = _spread(axes, column, np.array(positions), labels)
    values = np.array([values_of(trial)[0] for trial in ranked])
    heights[:, -1] = _spread(axes, len(keys), values, None)
    lines = [np.column_stack([np.arange(len(names)), row])[~np.isnan(row)] for row in heights]
    shares = np.array([rank[trial.number] / max(1, len(ranked) - 1) for trial in ranked])
    order = np.argsort(-shares)
    colours = colormaps[SHADES](0.95 * (1 - shares))
    axes.add_collection(LineCollection([lines[i] for i in order], colors=colours[order], linewidths=1.4, alpha=0.8))
    axes.set_xlim(-0.35, len(names) - 0.2)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=TEXT, labelsize=9)
    set_title(figure, f"{len(ranked)} trials: the darker, the better their {_objective(sweep)}")
    save_figure(figure, file)
    return True


def plot_pareto(sweep: Sweep, done: Sequence[FrozenTrial], file: Path) -> bool:
    """Plot the first two objectives, and connect the trials on the Pareto front."""
    if len(sweep.objective) < 2 or not done:
        return False
    figure = create_figure(7, 4.6)
    axes = figure.add_subplot()
    first, second = list(sweep.objective)[:2]
    front = sorted(pareto_front(sweep, done), key=lambda trial: values_of(trial)[1])
    axes.scatter([values_of(t)[1] for t in done], [values_of(t)[0] for t in done], s=26, color=PRUNED, label="trials")
    xs, ys = [values_of(t)[1] for t in front], [values_of(t)[0] for t in front]
    axes.plot(xs, ys, color=BEST, linewidth=1.3, marker="o", markersize=6, label="Pareto front")
    for trial, x, y in zip(front, xs, ys, strict=True):
        axes.annotate(
            str(root_of(trial)), (x, y), xytext=(5, 5), size=8, color=FAINT, textcoords="offset points"
        )  # fmt: skip
    _set_scale(axes, "x", [values_of(trial)[1] for trial in done], second)
    _set_scale(axes, "y", [values_of(trial)[0] for trial in done], first)
    axes.set_xlabel(f"{second} ({'less' if sweep.objective[second] == 'min' else 'more'} is better)")
    axes.set_ylabel(f"{first} ({'less' if sweep.objective[first] == 'min' else 'more'} is better)")
    tidy(axes, "both")
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT)
    set_title(figure, f"{first} against {second}: {len(front)} of {len(done)} trials on the front")
    save_figure(figure, file)
    return True


def _objective(sweep: Sweep) -> str:
    return next(iter(sweep.objective))


def _is_min(sweep: Sweep) -> bool:
    return next(iter(sweep.objective.values())) == "min"


def _keys(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the sampled keys with more than one value."""
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    return [key for key in keys if len({str(t.params[key]) for t in trials if key in t.params}) > 1][:MAX_KEYS]


def _axis_positions(values: Sequence) -> tuple[list[float], list[str] | None]:
    """Return the values' positions on an axis, and its labels if they are words."""
    if all(isinstance(value, int | float) for value in values):
        return list(values), None
    labels = sorted({str(value) for value in values})
    return [labels.index(str(value)) for value in values], labels


def _label(axes: Axes, labels: list[str] | None, values: Sequence) -> None:
    if labels is None:
        _set_scale(axes, "x", values)
        return
    slanted: dict[str, Any] = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 6 else {}
    )
    axes.set_xticks(range(len(labels)), [label[:22] for label in labels], parse_math=False, **slanted)
    axes.set_xlim(-0.5, len(labels) - 0.5)


def _is_wide(values) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > WIDE_RANGE * min(finite)


def _set_scale(axes: Axes, axis: str, values: Sequence[float], metric: str = "") -> None:
    """Use a logarithmic scale if the values span a wide range; not for fractions such as accuracies."""
    if _is_wide(values) and not (metric.startswith("val/") and max(values) <= 1):
        (axes.set_xscale if axis == "x" else axes.set_yscale)("log")


def _spread(axes: Axes, column: int, positions: np.ndarray, labels: list[str] | None) -> np.ndarray:
    """Return heights in 0..1 on a vertical axis of its own, which is drawn with its ends or labels."""
    logs = labels is None and _is_wide(positions)
    heights = np.log10(positions) if logs else positions
    heights = heights.astype(float)
    low, high = (0, len(labels) - 1) if labels else (heights.min(), heights.max())
    axes.add_line(Line2D([column, column], [0, 1], color=GRID, linewidth=1.2, zorder=0))
    ends = [(i / max(1, high), label[:18]) for i, label in enumerate(labels)] if labels else [
        (0.0, _short(10**low if logs else low)), (1.0, _short(10**high if logs else high))
    ]  # fmt: skip
    for height, label in ends:
        axes.text(
            column + 0.04, height, label, size=8, color=TEXT, va="center", parse_math=False, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )  # fmt: skip
    return (heights - low) / (high - low) if high > low else np.full(len(heights), 0.5)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
