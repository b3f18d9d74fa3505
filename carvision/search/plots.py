"""The plots of a search: Optuna's as images, and charts for the page."""

import contextlib
import math
from collections.abc import Callable
from functools import partial

import optuna
from matplotlib import pyplot
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from carvision.reports.plots import DPI, save_figure, set_title, tidy
from carvision.search.build import Sweep

MAX_KEYS = 6  # in one picture
MAX_LETTERS = 16  # of a value in a picture
WIDE_RANGE = 20  # ratio of largest to smallest value above which an axis is logarithmic
TOO_FEW_TRIALS = (ValueError, RuntimeError, ZeroDivisionError)  # what Optuna's plots raise then
TITLES = {
    "history": "Values by trial",
    "importance": "Importance of the parameters",
    "slices": "Values by sampled parameter",
    "parallel": "Trials as lines",
    "pareto": "Pareto front",
}


def _plots_of(sweep: Sweep, study: optuna.Study) -> dict[str, Callable]:
    """Return {name: function that draws it with matplotlib}."""
    from optuna.visualization import matplotlib as backend

    done, keys = _completed(study), _sampled_keys(study)[:MAX_KEYS]
    name = next(iter(sweep.objective))
    first: dict = {"target": _first_value, "target_name": name}
    # With one objective the study's own, to which Optuna adds the line of the best value so far
    history = first if len(sweep.objective) > 1 else {"target_name": name}
    plots: dict[str, Callable] = {"history": partial(backend.plot_optimization_history, study, **history)}
    if len(done) > 1 and keys:
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)  # as _importance_chart
        logs = {"target": lambda trial: math.log10(_first_value(trial)), "target_name": f"log10({name})"}
        lines = logs if _is_wide(name, study) else first
        plots["importance"] = partial(backend.plot_param_importances, study, evaluator=fanova, **first)
        plots["slices"] = partial(backend.plot_slice, study, params=keys, **first)
        plots["parallel"] = partial(backend.plot_parallel_coordinate, study, params=keys, **lines)
    if 1 < len(sweep.objective) <= 3:
        plots["pareto"] = partial(backend.plot_pareto_front, study, target_names=list(sweep.objective))
    return plots


def write_plots(sweep: Sweep, study: optuna.Study) -> None:
    """Write the images of those plots that have anything to show."""
    pyplot.switch_backend("Agg")  # no windows
    for name, plot in _plots_of(sweep, study).items():
        # As Optuna sets a style for all later figures
        with pyplot.rc_context({"figure.constrained_layout.use": True, "figure.dpi": DPI, "axes.axisbelow": True}):
            with contextlib.suppress(*TOO_FEW_TRIALS):
                plot()
                figure = pyplot.gcf()
                _restyle(figure, name, sweep, study)
                save_figure(figure, sweep.folder / f"{name}.png")
            pyplot.close("all")


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _sampled_keys(study: optuna.Study) -> list[str]:
    """Return the keys of which completed trials have several values."""
    done = _completed(study)
    sampled = {key: {str(trial.params.get(key)) for trial in done} for trial in done for key in trial.params}
    return [key for key, values in sampled.items() if len(values) > 1]


def _first_value(trial: FrozenTrial) -> float:
    return (trial.values or [math.nan])[0]


def _is_wide(metric: str, study: optuna.Study) -> bool:
    """Return whether the first objective needs a logarithmic scale; fractions such as accuracies never do."""
    values = [_first_value(trial) for trial in _completed(study)]
    is_fraction = metric.startswith("val/") and max(values) <= 1
    return min(values) > 0 and max(values) > WIDE_RANGE * min(values) and not is_fraction


def _restyle(figure: Figure, name: str, sweep: Sweep, study: optuna.Study) -> None:
    """Give Optuna's picture the style of our own plots, and its labels room."""
    axes, size = figure.axes[0], (8.0, 4.4)
    metric, mode = next(iter(sweep.objective.items()))
    if name == "history":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif name == "importance":
        size = (8, 1.4 + 0.36 * len(axes.patches))
    elif name == "slices":  # the last axes are the colour bar
        size = (1 + 2.7 * max(2, len(figure.axes) - 1), 4.4)
        for panel in figure.axes[:-1]:
            panel.collections[0].set_clim(0, max(trial.number for trial in _completed(study)))  # the same in all
            if _cut_words(panel.xaxis):
                pyplot.setp(panel.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    elif name == "parallel":  # the second ones are the colour bar
        size = (2 + 1.9 * (len(figure.axes) - 1), 5)
        pyplot.setp(axes.get_xticklabels(), rotation=20, ha="right", rotation_mode="anchor")
        axes.collections[0].set_cmap("Blues" if mode == "max" else "Blues_r")  # the best are dark
        for panel in figure.axes[2:]:
            _cut_words(panel.yaxis)
    figure.set_size_inches(*size)
    for panel in figure.axes if name != "parallel" else ():
        tidy(panel, "both")
        panel.set_facecolor("white")
    for where in ("left", "center"):
        axes.set_title("", loc=where)
    if name in ("history", "slices") and _is_wide(metric, study):
        axes.set_yscale("log")
    set_title(figure, TITLES[name])


def _cut_words(axis: Axis) -> bool:
    """Cut long words among the labels of an axis, without quotes; return whether they still take much room."""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    words = [label.strip("'") for label in labels]
    words = [word if len(word) <= MAX_LETTERS else f"{word[: MAX_LETTERS - 1]}…" for word in words]
    if words != labels and axis.get_scale() != "log":
        axis.set_ticks(axis.get_ticklocs(), words)
    return axis.get_scale() != "log" and max(map(len, words)) > 6
