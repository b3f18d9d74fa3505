"""What a terminal shows of a search: a table that 80 columns hold, accuracies in %."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from carvision.search import queue
from carvision.search.report import best_table, event_text, short_keys, state_of, trials_table

pytestmark = pytest.mark.optuna

SWEEP = SimpleNamespace(objective={"val/model/top1": "max"}, monitor=("val/model/top1", "max"), num_trials=12,
                        num_epochs=9)  # fmt: skip
SPACE = {
    "optimizer.lr": FloatDistribution(1e-5, 1.0, log=True),
    "model.trunk.hidden": CategoricalDistribution(["[]", "[256]"]),
    "optimizer.name": CategoricalDistribution(["sgd", "adamw"]),
    "augment.steps.rotate.degrees": FloatDistribution(0, 45),
}


@pytest.fixture
def study():
    """Ten trials: complete, pruned and running ones in turn; the first complete one is the best."""
    study = optuna.create_study(direction="maximize")
    for i in range(10):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)[i % 3]
        value = {"value": 0.9123 - i / 100} if state != TrialState.RUNNING else {}
        params = {"optimizer.lr": 0.00123456, "model.trunk.hidden": "[256]", "optimizer.name": "adamw",
                  "augment.steps.rotate.degrees": 12.3456}  # fmt: skip
        study.add_trial(create_trial(
            state=state, params=params, distributions=SPACE, intermediate_values={1: 0.3, 2: 0.456},
            user_attrs={queue.BEST_EPOCH: 2, queue.SECONDS: 12.3, queue.EPOCHS: 2}, **value,
        ))  # fmt: skip
    return study


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_live_table_has_whole_values_and_fits_the_terminal(study, width, height, capsys):
    console = Console(width=width, height=height)
    console.print(trials_table(SWEEP, study, console))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < height - 3 and max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text and text.startswith("trial val model top-1, % epochs values 0 best 91.2 2/9 lr=0.001235")
    assert text.count("degrees=12.35") == text.count("2/9") >= 3 and "8 running 45.6 2/9" in text


def test_accuracies_are_in_percent_and_keys_are_short_where_they_stay_apart(study, capsys):
    complete, pruned = study.trials[:2]
    assert event_text(SWEEP, study, complete) == "trial 0: val/model/top1 91.2 % at epoch 2, 12 s, best so far"
    assert event_text(SWEEP, study, pruned).endswith("pruned after 2 of 9 epochs, val/model/top1 45.6 %, 12 s")
    assert "best val/model/top1 91.2 % (trial 0)" in state_of(SWEEP, study)
    assert best_table(SWEEP, [complete]).rows[0] == ["val model top-1, %", "91.2"]
    assert short_keys(["optimizer.lr", "a.dropout", "b.dropout"]) == {"optimizer.lr": "lr"}
