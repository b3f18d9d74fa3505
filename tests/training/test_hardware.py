"""Precision by hardware, deterministic=true, trainer.profiler. GPUs are simulated by replacing torch.cuda's answers."""

import gzip
import json
import os

import pytest
import torch

from carvision.errors import InputError
from carvision.training.hardware import resolve_precision, set_deterministic
from carvision.training.module import LitClassifier
from carvision.training.trainer import trainer_values
from tests.small_runs import SMALL, config, demo, refuse, train
from tests.training.run.test_killed_runs import DEMANDING, assert_same_run


def test_auto_is_bf16_if_all_gpus_of_the_run_have_it_and_float16_on_others(monkeypatch):
    def gpus(*capabilities: tuple[int, int]) -> None:
        """Pretend so many GPUs of these compute capabilities."""
        for name, answer in (
            ("is_available", lambda: bool(capabilities)), ("device_count", lambda: len(capabilities)),
            ("get_device_capability", lambda device=None: capabilities[device]),
            ("is_bf16_supported", lambda *_: True),  # as it says where bf16 is emulated
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, answer)

    gpus((8, 0))
    assert resolve_precision("auto", "gpu") == resolve_precision("auto", "auto") == "bf16-mixed"
    assert resolve_precision("auto", "cpu") == resolve_precision("32-true", "gpu") == "32-true"
    gpus((9, 0), (7, 5))
    found = [resolve_precision("auto", "gpu", devices) for devices in (2, [0], [1])]
    assert found == ["16-mixed", "bf16-mixed", "16-mixed"]
    assert resolve_precision("auto", "gpu", 2, "fsdp") == "32-true"
    gpus()
    assert resolve_precision("auto", "auto") == "32-true"
    with pytest.raises(InputError, match=r"trainer\.precision: only 32-true and bf16-mixed, not 16-mixed, with"):
        trainer_values(config("trainer=fsdp", "trainer.precision=16-mixed", "data=demo"), [])


def test_a_run_reports_its_precision_and_the_parts_of_training(demo_photos, tmp_path):
    auto = ["trainer.precision=auto", "trainer.profiler=simple", "trainer.max_epochs=1"]
    folder = train(tmp_path / "run", *demo(demo_photos), *auto)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["hardware"] == {"device": "cpu", "precision": "32-true"}
    table = (folder / "profile.txt").read_text()
    assert table.count("run_training_batch") == 1 and "train_dataloader_next" in table and "test_step" in table


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.slow
def test_another_process_with_another_number_of_workers_gives_the_same_bits(run_module, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *DEMANDING, "data.sampler=balanced", "deterministic=true"]
    a, b = train(tmp_path / "a", *overrides), tmp_path / "b"
    several = [*SMALL, *overrides, "data.num_workers=2", f"run.dir={b}"]
    run_module("carvision.train", *several, check=0, env={"PYTHONHASHSEED": "1"})
    assert_same_run(a, b)
    assert (a / "splits.csv").read_bytes() == (b / "splits.csv").read_bytes()


def test_an_operation_without_a_deterministic_form_is_one_line(demo_photos, tmp_path, monkeypatch):
    def step(self, batch, batch_idx):
        return torch.zeros(3).put_(torch.tensor([1]), torch.ones(1)).sum()  # refused on the CPU, too

    monkeypatch.setattr(LitClassifier, "training_step", step)
    overrides = [*demo(demo_photos), "deterministic=true"]
    refuse(r"^deterministic: put_ has no form .* or deterministic=false", tmp_path / "run", *overrides)
    assert torch.backends.cudnn.deterministic and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    refuse(r"CUBLAS_WORKSPACE_CONFIG=:0:0 .*:4096:8 or :16:8", tmp_path / "other", *overrides)
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_torch_writes_a_trace_of_three_steps_and_a_table(demo_photos, tmp_path):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.profiler=torch")
    with gzip.open(folder / "profile" / "trace.pt.trace.json.gz") as opened:
        names = {str(event.get("name")) for event in json.load(opened)["traceEvents"]}
    assert {n for n in names if n.startswith("ProfilerStep")} == {f"ProfilerStep#{step}" for step in (12, 13, 14)}
    assert "aten::convolution_backward" in names and "aten::" in (folder / "profile.txt").read_text()
