"""Machines that can't run trainer=tpu, and commands on several cores; tests/tpu needs torch-xla itself."""

import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from carvision.errors import InputError
from carvision.training.distributed import tpu_cores


def machine(monkeypatch, device="TPU", cores=4, ips=("10.0.0.5",), worker=0, cores_of_chip=1) -> list[list[str]]:
    """Simulate torch-xla's answers; return the list of the commands that replace this process."""
    modules = {
        "torch_xla.runtime": SimpleNamespace(device_type=lambda: device),
        "torch_xla._internal.tpu": SimpleNamespace(
            num_available_devices=lambda: cores, get_worker_ips=lambda: list(ips), worker_id=lambda: worker,
            num_logical_cores_per_chip=lambda: cores_of_chip,
        ),
    }  # fmt: skip
    commands = []
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PJRT_DEVICE", device)
    monkeypatch.setattr(tpu_cores.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(os, "execv", lambda path, arguments: commands.append(arguments))
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer=tpu", "seed=1"])
    return commands


@pytest.mark.skipif(find_spec("torch_xla") is not None, reason="torch-xla is here")
def test_without_torch_xla_a_line_says_what_to_run(run_forked):
    done = run_forked("carvision.train", "trainer=tpu", check=1)
    assert done.stderr.startswith("error: trainer.accelerator: tpu can't be used here (No module named 'torch_xla')")
    assert done.stderr.count("\n") == 1 and "scripts/setup_tpu.sh" in done.stderr


def test_all_cores_of_a_machine_or_a_pod_slice_are_processes_of_torchrun(monkeypatch):
    for devices, values in (([0], {}), ("auto", {"cores": 1}), ("auto", {"device": "CPU"})):
        commands = machine(monkeypatch, **values)
        tpu_cores.use_cores(devices)
        assert commands == []
    commands = machine(monkeypatch)
    tpu_cores.use_cores("auto")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "carvision.train"]
    assert commands == [[sys.executable, *run, "trainer=tpu", "seed=1"]]
    commands = machine(monkeypatch, ips=("10.0.0.5", "10.0.0.6"), worker=1)
    tpu_cores.use_cores("auto")
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.5", "--nproc-per-node=4"} < set(commands[0])


def test_other_machines_and_numbers_of_cores_are_refused(monkeypatch):
    machine(monkeypatch)
    with pytest.raises(InputError, match="2 of 4 cores"):
        tpu_cores.use_cores(2)
    machine(monkeypatch, cores_of_chip=2)
    with pytest.raises(InputError, match="v2 or v3"):
        tpu_cores.use_cores("auto")
    machine(monkeypatch, device="CPU")
    monkeypatch.delenv("PJRT_DEVICE")
    with pytest.raises(InputError, match="PJRT_DEVICE=CPU"):
        tpu_cores.require_xla()
