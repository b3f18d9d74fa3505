"""Precision by hardware. The GPUs here are simulated: torch.cuda's answers are replaced."""

import json

import pytest
import torch
import yaml

from carvision.errors import InputError
from carvision.training import trainer as build_trainer
from carvision.training.hardware import resolve_precision
from carvision.training.trainer import trainer_values
from tests.small_runs import config, demo, train


@pytest.fixture
def gpus(monkeypatch):
    """gpus((8, 0), ...): so many GPUs of these compute capabilities."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device])
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as it says where bf16 is emulated

    return pretend


def test_auto_is_bf16_if_all_gpus_of_the_run_have_it_and_float16_on_others(gpus):
    for capability in ((9, 0), (8, 6), (8, 0), (7, 5), (7, 0)):
        gpus(capability)
        precision = "bf16-mixed" if capability[0] >= 8 else "16-mixed"
        assert resolve_precision("auto", "gpu") == resolve_precision("auto", "auto") == precision
        assert resolve_precision("auto", "cpu") == resolve_precision("32-true", "gpu") == "32-true"
    gpus((9, 0), (7, 5))
    found = [resolve_precision("auto", "gpu", devices) for devices in (2, [0], [1])]
    assert found == ["16-mixed", "bf16-mixed", "16-mixed"]
    gpus()
    assert resolve_precision("auto", "gpu") == resolve_precision("auto", "auto") == "32-true"


@pytest.mark.parametrize(
    ("group", "capability", "precision"),
    [("ddp", (8, 0), "bf16-mixed"), ("ddp", (7, 5), "16-mixed"), ("fsdp", (8, 0), "bf16-mixed"),
     ("fsdp", (7, 5), "32-true"), ("ddp", None, "32-true"), ("fsdp", None, "32-true")],
)  # fmt: skip
def test_several_processes_use_the_precision_of_their_gpus(gpus, group, capability, precision, monkeypatch):
    monkeypatch.setattr(build_trainer, "prepare_cuda", lambda: None)  # which is the whole process's
    gpus(*[capability] * 2 if capability else ())
    assert trainer_values(config(f"trainer={group}", "data=demo"))["precision"] == precision


def test_fsdp_refuses_float16():
    with pytest.raises(InputError, match=r"trainer\.precision: only 32-true and bf16-mixed, not 16-mixed, with"):
        trainer_values(config("trainer=fsdp", "trainer.precision=16-mixed", "data=demo"))


def test_a_run_reports_which_precision_auto_became(demo_photos, tmp_path):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.precision=auto", "trainer.max_epochs=1")
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"] == "auto"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["hardware"] == {"device": "cpu", "precision": "32-true"}
    assert metrics["seconds"]["first_step"] > 0
    assert "cpu, precision 32-true (trainer.precision=auto)" in (folder / "run.log").read_text()
