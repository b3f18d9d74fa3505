"""The charts of a search's page: values by trial, by epoch and by sampled key, importances, the Pareto front."""

import contextlib
from collections.abc import Sequence
from statistics import median

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from carvision.reports.charts import LOOKS, Axis, Line, bar_chart, line_chart
from carvision.reports.comparison.frame import is_fraction, lower_is_better, pareto_front
from carvision.reports.comparison.tables import name_of, title_of
from carvision.reports.page import Section
from carvision.reports.tables import TextTable, percent
from carvision.search.build import Sweep

WIDE_RANGE = 20  # ratio of largest to smallest value above which an axis is logarithmic
TOO_FEW_TRIALS = (ValueError, RuntimeError, ZeroDivisionError)  # what Optuna's importances raise then
MAX_CURVES = 100  # trials drawn by epoch


def charts_of(sweep: Sweep, study: optuna.Study) -> list[Section]:
    """Return the sections of those charts that have anything to show; a study without completed trials has none."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        return []
    sections = [
        _history(metric, mode, [(trial, _value(trial, i)) for trial in done])
        for i, (metric, mode) in enumerate(sweep.objective.items())
    ]
    sections += _pareto(sweep, done)
    sections += _importance(sweep, study)
    sections += _by_epoch(sweep, study)
    metric = next(iter(sweep.objective))
    keys = dict.fromkeys(key for trial in done for key in trial.params)
    for key in keys:
        known = [trial for trial in done if key in trial.params]
        if len({str(trial.params[key]) for trial in known}) > 1:
            sections.append(_by_key(key, metric, known))
    return sections


def value_text(metric: str, value: float) -> str:
    """Return a value of an objective as people read it: accuracies in %."""
    return f"{percent(value)} %" if is_fraction(metric) else f"{value:,.4g}"


def _value(trial: FrozenTrial, objective: int = 0) -> float:
    """Return an objective of a completed trial."""
    assert trial.values is not None
    return trial.values[objective]


def _axis(metric: str, values: Sequence[float]) -> Axis:
    known = np.array(values, float)
    known = known[np.isfinite(known)]
    share = is_fraction(metric)
    is_wide = len(known) > 0 and known.min() > 0 and known.max() > WIDE_RANGE * known.min()
    return Axis(title_of(metric), percent=share, log=bool(is_wide) and not share)


def _history(metric: str, mode: str, results: Sequence[tuple[FrozenTrial, float]]) -> Section:
    numbers, values = [trial.number for trial, _ in results], [value for _, value in results]
    best = (np.minimum if mode == "min" else np.maximum).accumulate(values)
    steps = np.repeat(numbers, 2)[1:].tolist(), np.repeat(best, 2)[:-1].tolist()
    lines = [
        Line("best so far", *steps, 1, marked=False),
        Line("trial", numbers, values, 0, texts=[_text(metric, *result) for result in results], joined=False),
    ]
    title = f"{name_of(metric)} by trial"
    return Section(title, markup=line_chart(lines, Axis("trial", whole=True), _axis(metric, values), title))


def _text(metric: str, trial: FrozenTrial, value: float) -> str:
    drawn = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    return f"trial {trial.number}: {value_text(metric, value)}; {drawn}"


def _pareto(sweep: Sweep, done: Sequence[FrozenTrial]) -> list[Section]:
    """Return the chart of two objectives, with the trials that no other beats in both."""
    if len(sweep.objective) != 2 or len(done) < 2:
        return []
    (first, first_mode), (second, second_mode) = sweep.objective.items()
    x, y = np.array([trial.values for trial in done], float).T
    front = pareto_front(x if first_mode == "min" else -x, y, second_mode == "min")
    lines = []
    for name, rows, look in (("on the Pareto front", front, 1), ("others", np.setdiff1d(np.arange(len(x)), front), 0)):
        texts = [f"{_text(first, done[i], x[i])}; {second} {value_text(second, y[i])}" for i in rows]
        lines.append(Line(name, x[rows].tolist(), y[rows].tolist(), look, texts=texts, joined=False))
    title = f"{name_of(second)} against {name_of(first)}"
    return [Section(title, markup=line_chart(lines, _axis(first, x.tolist()), _axis(second, y.tolist()), title))]


def _importance(sweep: Sweep, study: optuna.Study) -> list[Section]:
    """Return the bars of fANOVA (Hutter et al. 2014) of the keys that all trials sampled."""
    metric = next(iter(sweep.objective))
    with contextlib.suppress(*TOO_FEW_TRIALS):
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            target=_value,
        )
        if len(found) > 1:
            bars = bar_chart([*found], [*found.values()], [f"{percent(v, 0)} %" for v in found.values()], "importance")
            note = f"Share of the variance of {name_of(metric)} that each explains alone, over the completed trials."
            return [Section("Importance of the sampled keys", [note], markup=bars)]
    return []


def _by_epoch(sweep: Sweep, study: optuna.Study) -> list[Section]:
    """Return the chart of the reported metric by epoch: the best trials by colour, others grey."""
    metric, mode = sweep.monitor
    trials = [trial for trial in study.get_trials(deepcopy=False) if len(trial.intermediate_values) > 1]
    if not trials:
        return []
    best = min if mode == "min" else max
    trials.sort(key=lambda trial: best(trial.intermediate_values.values()), reverse=mode == "max")
    lines, ends = [], []
    for rank, trial in reversed([*enumerate(trials[:MAX_CURVES])]):  # the best on top
        epochs, values = [*trial.intermediate_values], [*trial.intermediate_values.values()]
        ends += values
        name = f"trial {trial.number}" if rank < LOOKS - 1 else "others" if rank == LOOKS - 1 else ""
        state = ", pruned" if trial.state == TrialState.PRUNED else ""
        texts = [
            f"trial {trial.number}{state}, epoch {epoch}: {value_text(metric, value)}"
            for epoch, value in trial.intermediate_values.items()
        ]
        look = min(rank, LOOKS - 1)
        lines.append(Line(name, epochs, values, look, texts=texts, marked=look < LOOKS - 1))
    title = f"{name_of(metric)} by epoch"
    x = Axis("epoch", whole=True)
    note = f"The best {MAX_CURVES} of {len(trials)} trials." if len(trials) > MAX_CURVES else ""
    return [Section(title, [note] if note else [], markup=line_chart(lines, x, _axis(metric, ends), title))]


def _by_key(key: str, metric: str, trials: Sequence[FrozenTrial]) -> Section:
    """Return the values of the first objective by a sampled key: a chart of numbers, a table of choices."""
    values = [_value(trial) for trial in trials]
    title, distribution = f"{name_of(metric)} by {key}", trials[0].distributions[key]
    if isinstance(distribution, CategoricalDistribution):
        of_choice: dict[str, list[float]] = {}
        for trial, value in zip(trials, values, strict=True):
            of_choice.setdefault(str(trial.params[key]), []).append(value)
        best = min if lower_is_better(metric) else max
        unit = ", %" if is_fraction(metric) else ""
        rows = [
            [
                choice,
                f"{len(each)}",
                *(value_text(metric, value).removesuffix(" %") for value in (best(each), median(each))),
            ]
            for choice, each in sorted(of_choice.items(), key=lambda item: best(item[1]), reverse=best is max)
        ]
        return Section(title, table=TextTable(title, [key, "trials", f"best{unit}", f"median{unit}"], rows))
    x = [float(trial.params[key]) for trial in trials]
    texts = [_text(metric, trial, value) for trial, value in zip(trials, values, strict=True)]
    points = [Line("trial", x, values, 0, texts=texts, joined=False)]
    across = Axis(key, log=bool(getattr(distribution, "log", False)))
    return Section(title, markup=line_chart(points, across, _axis(metric, values), title))
