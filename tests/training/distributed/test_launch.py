"""Who started this process and as which one; how torchrun's agent, in carvision.train itself, ends; fsdp's limits."""

import os
import re
import signal
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from carvision.errors import InputError
from carvision.training.distributed import launch
from carvision.training.distributed.fsdp import check_fsdp
from tests import forked
from tests.small_runs import config
from tests.training.distributed.processes import by_srun, by_torchrun, environment, free_port

TRAINER = {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
# Before the code of an agent's process; end() leaves an error as a training does
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
def end(text, timestamp):
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": text, "timestamp": timestamp}))
    os._exit(1)
"""


def started_as(variables: dict[str, str]):
    """Give this process the environment of one that a launcher started."""
    return mock.patch.dict(os.environ, variables, clear=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_launcher_has_one_first_process(rank):
    for variables, launcher, kind in (
        (by_torchrun(rank, 3, 1), "torchrun", TorchElasticEnvironment),
        ({**by_srun(5, 8, 1), **by_torchrun(rank, 3, 1)}, "torchrun", TorchElasticEnvironment),  # inside of SLURM
        (by_srun(rank, 3, 1), "srun", SLURMEnvironment),
        (environment(), None, LightningEnvironment),
        (environment(SLURM_NTASKS=4, SLURM_JOB_NAME="bash"), None, LightningEnvironment),
        (environment(SLURM_NTASKS=1, SLURM_JOB_NAME="train"), None, LightningEnvironment),  # a batch script
    ):
        with started_as(variables):
            assert launch.launcher() == launcher
            assert launch.is_first_process() == (rank == 0 or launcher is None), variables
            made = launch.create_environment()
            assert type(made) is kind and not getattr(made, "auto_requeue", False)
            with pytest.raises(InputError, match=r"started [13] process.*, and trainer.devices=2 with"):
                launch.require_all_used(2, 2)


def test_missing_processes_and_addresses_are_reported_in_one_line(monkeypatch, capsys):
    for variables, devices, message in (
        ({"SLURM_NTASKS": 4, "SLURM_JOB_NAME": "train"}, "auto", r"4 tasks .* write srun"),
        ({}, 2, "this call started 1 process, .* needs 2; carvision train starts several"),
    ):
        together = launch.run_together({**TRAINER, "devices": devices})
        with started_as(environment(**variables)), pytest.raises(InputError, match=message), together:
            pass
    machine = environment(MASTER_ADDR="127.0.0.1", NODE_RANK=1)
    with started_as(machine), pytest.raises(InputError, match="there is no MASTER_PORT"):
        launch.start_processes({**TRAINER, "num_nodes": 2})
    monkeypatch.setattr(launch, "START_WITHIN", timedelta(seconds=1))
    monkeypatch.setattr(os, "_exit", sys.exit)
    together = launch.run_together({**TRAINER, "devices": 2})
    with started_as(by_srun(0, 2, free_port())), pytest.raises(SystemExit), together:
        pass
    assert "can't be reached" in capsys.readouterr().err


def start_agent(tmp_path: Path, code: str):
    """Start carvision.train trainer=ddp in <tmp_path>/run; its two processes run the code instead. Return the process,
    and where its output is."""
    words = ["python", "-c", PRELUDE + code, "cost=$$5", "${local_rank}"]
    (tmp_path / "run").mkdir()
    options = {"env": environment(), "out": tmp_path / "out", "first": f"import sys; sys.orig_argv = {words!r}"}
    process = forked.start("carvision.train", "trainer=ddp", "trainer.accelerator=cpu", cwd=tmp_path / "run", **options)
    return process, tmp_path / "out"


@pytest.mark.parametrize(("code", "status", "error"), [
    ("sys.exit(sys.argv[1:] != ['cost=$$5', '${local_rank}'])", 0, ""),  # the command's words arrive as they were
    ("rank or os.kill(os.getpid(), 9); time.sleep(600)", 1, "error: .* rank 0 .* killed by SIGKILL; .*memory"),
    ("rank and os.kill(os.getpid(), 9); end('error: lost', int(time.time()) + 60)", 1, "error: .* rank 1 .* SIGKILL"),
    ("end('error: lost', 200) if rank == 0 else end('error: mine', 100)", 1, "error: mine"),
    ("end('error: first', 100) if rank == 0 else time.sleep(600)", 1, "error: first"),
    ("sys.exit(64 * (1 - rank))", 64, ""),  # a pruned trial
])  # fmt: skip
def test_the_agent_reports_who_failed_first_and_exits_like_it(tmp_path, code, status, error):
    process, out = start_agent(tmp_path, code)
    (done,) = forked.finish([process], [out], 60)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(f"{error}.*\n" if error else "", done.stderr), done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_the_command_reaches_all_processes_and_a_second_one_too(tmp_path, name):
    code = f"""
got = [Path(f"got.{{rank}}.{{number}}") for number in range(3)]
def receive(number, frame):
    got.pop(0).touch()
    if len(got) == 1:
        sys.exit(128 + number)
signal.signal(signal.{name}, receive)
got.pop(0).touch()
while True:
    time.sleep(600)
"""
    process, out = start_agent(tmp_path, code)
    for count in range(2):
        forked.wait_until(lambda: len(list((tmp_path / "run").glob(f"got.*.{count}"))) == 2)  # noqa: B023
        os.killpg(process.pid, getattr(signal, name))
    (done,) = forked.finish([process], [out], 60)
    hint = "; Ctrl-C again ends at once" * (name == "SIGINT")
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr == f"{name}: stopping with a checkpoint{hint}\n"


@pytest.mark.skipif(find_spec("torch_xla") is not None, reason="torch-xla is here")
def test_without_torch_xla_a_line_says_what_to_run(run_forked):
    done = run_forked("carvision.train", "trainer=tpu", check=1)
    assert done.stderr.startswith("error: trainer.accelerator: tpu can't be used here (No module named 'torch_xla')")
    assert done.stderr.count("\n") == 1 and "scripts/setup_tpu.sh" in done.stderr


def test_all_cores_of_a_tpu_or_a_pod_slice_are_processes_and_others_are_refused(monkeypatch):
    def agent(devices, device="TPU", cores=4, machines=("a",), machine=0, cores_of_chip=1) -> tuple | None:
        """Return the arguments of the agent that starts for torch-xla's answers."""
        tpu = SimpleNamespace(
            num_available_devices=lambda: cores, get_worker_ips=lambda: list(machines), worker_id=lambda: machine,
            num_logical_cores_per_chip=lambda: cores_of_chip,
        )  # fmt: skip
        modules = {"torch_xla.runtime": SimpleNamespace(device_type=lambda: device), "torch_xla._internal.tpu": tpu}
        started = mock.Mock()
        monkeypatch.setattr(launch.importlib, "import_module", modules.__getitem__)
        monkeypatch.setattr(launch, "_run_agent", started)
        launch.start_processes({"accelerator": "tpu", "devices": devices, "num_nodes": 1})
        return started.call_args and started.call_args.args

    with started_as(environment(PJRT_DEVICE="TPU")):
        assert agent([0]) is agent("auto", cores=1) is None
        assert agent("auto") == (4, 1, 0, launch.STANDALONE)
        assert agent("auto", machines=("a", "b"), machine=1) == (4, 2, 1, f"a:{launch.TPU_PORT}")
        for message, answers in (("2 of 4 cores", {}), ("v2 or v3", {"cores_of_chip": 2}), ("=CPU", {"device": "CPU"})):
            with pytest.raises(InputError, match=message):
                agent(2, **answers)
    with started_as(environment(PJRT_DEVICE="CPU")):
        assert agent("auto", device="CPU") is None


@pytest.mark.parametrize(("override", "message"), [
    ("optimizer=lamb", "optimizer.name: only sgd, .* with trainer=fsdp"),
    ("phases={a: {epochs: 1}, b: {epochs: 1}}", "phases: one phase alone"),
])  # fmt: skip
def test_fsdp_refuses_options(override, message):
    check_fsdp(config("trainer=fsdp"), "bf16-mixed")
    with pytest.raises(InputError, match=message):
        check_fsdp(config("trainer=fsdp", override), "32-true")
