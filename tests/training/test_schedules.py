"""Learning rates of each schedule, recomputed step by step."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from carvision.config.compose import conf_dir
from carvision.errors import InputError
from carvision.training.optim import create_schedule, lr_factor, r0_lr

STEPS = 7  # of an epoch


def of_conf(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "schedule" / f"{name}.yaml"))


def test_r0_is_its_curve_at_every_epoch():
    for peak in (1e-1, 1e-3):
        factor = lr_factor(**of_conf("r0"), lr=peak, num_steps=81 * STEPS, steps_per_epoch=STEPS)
        for epoch in range(81):
            expected = 1e-6 + epoch * (peak - 1e-6) / 6 if epoch < 5 else peak * math.exp(-0.1 * epoch)
            assert r0_lr(epoch, peak) == pytest.approx(expected, rel=1e-12)
            for step in (epoch * STEPS, epoch * STEPS + 1, epoch * STEPS + STEPS - 1):
                assert peak * factor(step) == pytest.approx(expected, rel=1e-12)


def test_cosine_rises_linearly_then_falls_as_half_a_cosine():
    factor = lr_factor("cosine", 0.1, num_steps=100, steps_per_epoch=10, warmup_epochs=2, final_fraction=0.05)
    for step in range(101):
        rising, falling = (step + 1) / 20, 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        expected = rising if step < 20 else falling
        assert factor(step) == pytest.approx(expected)
    assert factor(19) == factor(20) == 1
    assert factor(150) == pytest.approx(0.05)  # no second rise
    short = lr_factor("cosine", 0.1, num_steps=2, steps_per_epoch=2, warmup_epochs=3)  # still reaches its rate
    assert max(short(step) for step in (0, 1)) == 1
    plain = lr_factor("cosine", 0.1, num_steps=10, steps_per_epoch=10)  # no warm-up
    assert [plain(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0], abs=1e-12)


def rates(name: str, num_steps: int, lr: float = 0.2, **values) -> list[tuple]:
    """Return (rate of the first group, of the second, momentum) at each step; the second group learns at a tenth."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    made = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": lr / 10}], lr=lr, momentum=0.9)
    schedule = create_schedule(
        made, **of_conf(name) | values, num_steps=num_steps, steps_per_epoch=5, batches_per_epoch=5
    )["scheduler"]  # fmt: skip
    found = []
    for _ in range(num_steps):
        found.append((made.param_groups[0]["lr"], made.param_groups[1]["lr"], made.param_groups[0].get("momentum")))
        made.step()
        schedule.step()
    return found


def test_inverse_time_is_keras_decay():
    for step, (rate, other, _) in enumerate(rates("inverse_time", 50, decay=0.1)):
        assert rate == pytest.approx(0.2 / (1 + 0.1 * step))  # Keras' optimizers.py: lr * 1 / (1 + decay * iterations)
        assert other == pytest.approx(rate / 10)


def test_one_cycle_goes_up_and_down_with_momentum_against_it():
    found = rates("one_cycle", 100)
    values = [rate for rate, _, _ in found]
    peak = values.index(max(values))
    assert max(values) == pytest.approx(0.2, rel=1e-3) and 28 <= peak <= 31
    for step in range(peak):  # half a cosine from the beginning's rate to the peak's, over pct_start of the steps
        share = step / (0.3 * 101 - 1)
        assert values[step] == pytest.approx(0.2 + (0.2 / 25 - 0.2) * (1 + math.cos(math.pi * share)) / 2, rel=1e-6)
    assert values[-1] < 1e-4
    momenta = [momentum for _, _, momentum in found]
    assert momenta.index(min(momenta)) in (peak - 1, peak, peak + 1) and momenta[0] == 0.95
    assert all(other == pytest.approx(rate / 10) for rate, other, _ in found)


def test_plateau_waits_for_its_patience():
    weight = nn.Parameter(torch.zeros(2))
    made = torch.optim.SGD([weight], lr=1.0)
    config = create_schedule(made, **of_conf("plateau"), num_steps=100, steps_per_epoch=2.5, batches_per_epoch=5)
    assert (config["interval"], config["frequency"], config["monitor"]) == ("step", 5, "val/loss")
    found = []
    for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6):
        found.append(made.param_groups[0]["lr"])
        config["scheduler"].step(loss)
    # the second epoch without a better loss lowers the rate, as in Keras: 0.95 and 0.91; then 0.6 and 0.6, twice
    assert found == pytest.approx([1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04])


def test_one_cycle_leaves_an_optimizer_without_momentum_without_it():
    weight = nn.Parameter(torch.zeros(2))
    made = torch.optim.RMSprop([weight], lr=0.1, momentum=0.0)
    create_schedule(made, **of_conf("one_cycle"), num_steps=9, steps_per_epoch=3, batches_per_epoch=3)
    assert made.param_groups[0]["momentum"] == 0.0


@pytest.mark.parametrize("values", [
    {"name": "cosine", "patience": 3}, {"name": "plateau"}, {"name": "inverse_time"}, {"name": "one_cycle", "decay": 1},
])  # fmt: skip
def test_missing_and_unknown_keys_are_refused_in_one_line(values):
    made = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(InputError, match=f"^schedule: {values['name']} can't be built with"):
        create_schedule(made, **values, num_steps=9, steps_per_epoch=3, batches_per_epoch=3)
