"""data.batch_size=auto: the search, what it leaves unchanged, resumed runs. Memory is simulated."""

import pytest
import torch
import yaml
from pytorch_lightning.plugins.precision import Precision

from carvision.errors import InputError
from carvision.training import batch_size
from carvision.training.batch_size import find_batch_size
from carvision.training.module import LitClassifier
from tests.small_runs import demo, refuse, train
from tests.training.test_module import FLIP, batch_of, lit_classifier, phases

CPU = torch.device("cpu")


@pytest.fixture
def small_memory(monkeypatch):
    """Let steps of more than 20 photos run out of memory; a list of the sizes and phases tried."""
    tried = []
    real = LitClassifier.training_step

    def step(self, batch, batch_idx):
        tried.append((len(batch["images"]), self.phase["name"]))
        if len(batch["images"]) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", step)
    return tried


def test_doubled_sizes_are_tried_in_each_phase_and_change_nothing(small_memory):
    parts = [{**phases()[0], "name": name, "train_layers": layers} for name, layers in (("a", "none"), ("b", "all"))]
    lit = lit_classifier(heads=("make", "model", "speed"), augment=FLIP | {"mixup": 0.2}, phases=parts)
    before = {name: value.clone() for name, value in lit.state_dict().items()}
    photo = {**batch_of(1), "draws": torch.rand(1, lit.augment.num_draws), "bad": []}
    random = torch.get_rng_state().clone()
    assert find_batch_size(lit, Precision(), CPU, photo, limit=1000) == 16
    assert small_memory == [(size, phase) for size in (2, 4, 8, 16) for phase in "aabb"] + [(32, "a")]
    assert find_batch_size(lit, Precision(), CPU, photo, limit=9) == 8
    assert all(torch.equal(value, before[name]) for name, value in lit.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and lit.phase["name"] == "a"
    assert all(parameter.grad is None for parameter in lit.parameters())
    assert not lit.train_metrics.penalty.update_called


def test_auto_needs_a_gpu_with_memory_for_a_photo(demo_photos, tmp_path, monkeypatch):
    auto = [*demo(demo_photos), "data.batch_size=auto"]
    with pytest.raises(InputError, match=r"auto looks for .* has none; give a number, such as data\.batch_size=64"):
        train(tmp_path / "run", *auto)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("carvision.training.trainer.require_gpu", lambda trainer: None)
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: 0)
    refuse("not even one photo fits on the GPU", tmp_path / "run", *auto)


def test_the_size_found_is_stored_and_used_by_a_resumed_run(demo_photos, tmp_path, monkeypatch, small_memory):
    monkeypatch.setattr("carvision.training.trainer.require_gpu", lambda trainer: None)
    overrides = [*demo(demo_photos), "data.batch_size=auto", "run.max_epochs_per_start=1"]
    folder = train(tmp_path / "run", *overrides)
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["batch_size"] == 16
    assert "data.batch_size=auto: 16 on each device" in (folder / "run.log").read_text()
    assert small_memory[-1][0] == 16
    small_memory.clear()
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: pytest.fail("a second search"))
    train(folder, *overrides)  # with "auto" again
    assert (folder / "metrics.json").exists() and {size for size, _ in small_memory} == {16}


@pytest.mark.parametrize("overrides", [
    ["data.epoch_fraction=0.001"],
    ["data.batch_size=1", "model.train_layers=none", "+phases.a={epochs:1}", "+phases.b={epochs:1,train_layers:all}"],
])  # fmt: skip
def test_batches_of_one_photo_with_batch_norm_are_refused(demo_photos, tmp_path, overrides):
    with pytest.raises(InputError, match=r"data\.batch_size: batches of one photo can't train batch norm"):
        train(tmp_path / "run", *demo(demo_photos), *overrides)
    assert not (tmp_path / "run").exists()
