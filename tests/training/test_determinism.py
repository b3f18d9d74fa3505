"""deterministic=true: two runs are equal to the bit; what can't be is refused in one line."""

import os

import pytest
import torch

from carvision.errors import InputError
from carvision.training.hardware import nondeterministic_operation_errors, set_deterministic
from carvision.training.module import LitClassifier
from tests.small_runs import SMALL, demo, train
from tests.training.run.test_killed_runs import assert_same_run

EVERYTHING_RANDOM = [
    "trainer.max_epochs=3", "logger=none", "augment=mixup_cutmix", "augment.order=[flip,rotate,brightness,erase]",
    "model.trunk.hidden=[16]", "model.trunk.dropout=0.3", "model.neck=[spatial_dropout,se]", "callbacks.ema_decay=0.9",
    "data.sampler=balanced",
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.slow
def test_another_process_with_another_number_of_workers_gives_the_same_bits(run_module, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *EVERYTHING_RANDOM, "deterministic=true"]
    a, b = train(tmp_path / "a", *overrides), tmp_path / "b"
    several = [*SMALL, *overrides, "data.num_workers=2", f"run.dir={b}"]
    run_module("carvision.train", *several, check=0, env={"PYTHONHASHSEED": "1"})
    assert_same_run(a, b)
    assert (a / "splits.csv").read_bytes() == (b / "splits.csv").read_bytes()


def test_deterministic_is_set_and_unset_and_needs_a_fixed_workspace(monkeypatch):
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 .*:4096:8 or :16:8"):
        set_deterministic(True)


def test_an_operation_without_a_deterministic_form_is_one_line(demo_photos, tmp_path, monkeypatch):
    own = LitClassifier.training_step

    def step(self, batch, batch_idx):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))  # refused on the CPU, too
        return own(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", step)
    with pytest.raises(InputError, match=r"deterministic: put_ has no form .* or deterministic=false") as error:
        train(tmp_path / "run", *demo(demo_photos), "deterministic=true")
    assert "\n" not in str(error.value)


def test_other_errors_pass_and_a_pool_names_its_replacement():
    with pytest.raises(RuntimeError, match=r"^something else$"), nondeterministic_operation_errors():
        raise RuntimeError("something else")
    with pytest.raises(InputError, match=r"model\.pool=avg"), nondeterministic_operation_errors():
        raise RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but ...")
