"""Launchers by their environment variables: which process is first, and what is refused; fsdp's limits."""

import os
from datetime import timedelta
from unittest import mock

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from carvision.errors import InputError
from carvision.training.distributed import launch
from carvision.training.distributed.fsdp import check_fsdp
from tests.small_runs import config
from tests.training.distributed.processes import by_srun, by_torchrun, environment, free_port


@pytest.fixture
def started_as():
    """started_as(variables): give this process the environment of one that a launcher started."""

    def start(variables: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(variables)

    with mock.patch.dict(os.environ):
        yield start


@pytest.mark.parametrize("rank", [0, 1])
def test_each_launcher_has_one_first_process(started_as, rank):
    for variables, launcher, kind, started in (
        (by_torchrun(rank, 3, 1), "torchrun", TorchElasticEnvironment, 3),
        # inside of SLURM torchrun counts
        ({**by_srun(5, 8, 1), **by_torchrun(rank, 3, 1)}, "torchrun", TorchElasticEnvironment, 3),
        (by_srun(rank, 2, 1), "srun", SLURMEnvironment, 2),
        (environment(NODE_RANK=rank, LOCAL_RANK=0), "plain", LightningEnvironment, None),
        (environment(SLURM_NTASKS=4, SLURM_JOB_NAME="bash", LOCAL_RANK=rank), "plain", LightningEnvironment, None),
        ({**by_sbatch(1), "LOCAL_RANK": str(rank)}, "plain", LightningEnvironment, None),
    ):
        started_as(variables)
        assert (launch.launcher(), launch.num_started()) == (launcher, started)
        assert launch.is_first_process() == (rank == 0), variables
        made = launch.create_environment()
        assert type(made) is kind and not getattr(made, "auto_requeue", False)
    started_as({**by_torchrun(0, 2, 1), "RANK": "1", "GROUP_RANK": "1"})  # the first of the second machine
    assert not launch.is_first_process()


def test_the_launcher_must_start_as_many_processes_as_the_trainer_uses(started_as):
    started_as(by_srun(0, 4, 1))
    launch.require_all_used(2, 2)
    with pytest.raises(InputError, match=r"srun started 4 processes, and trainer.devices=2 with trainer.num_nodes=1"):
        launch.require_all_used(2, 1)
    started_as(environment())
    launch.require_all_used(2, 1)


def by_sbatch(num: int) -> dict[str, str]:
    """Return the environment of a batch script, which srun has not started."""
    return {name: value for name, value in by_srun(0, num, 1).items() if name != "SLURM_STEP_ID"}


def test_a_batch_script_of_several_tasks_needs_srun(started_as, monkeypatch):
    monkeypatch.setattr(launch, "_connect", lambda num_nodes: pytest.fail("waits for others that nobody starts"))
    started_as(by_sbatch(4))
    for devices in (1, "auto"):
        with pytest.raises(InputError, match=r"4 tasks .* write srun"), launch.run_together(trainer(devices=devices)):
            pass


def test_missing_processes_and_addresses_are_reported_in_one_line(started_as, monkeypatch):
    started_as(environment(MASTER_ADDR="127.0.0.1", NODE_RANK=1))
    with pytest.raises(InputError, match="there is no MASTER_PORT"), launch.run_together(trainer(num_nodes=2)):
        pass
    monkeypatch.setattr(launch, "START_WITHIN", timedelta(seconds=1))
    monkeypatch.setattr(launch, "_store", None)
    started_as(by_srun(0, 2, free_port()))
    with pytest.raises(InputError, match=r"^.* can't be reached .* srun"), launch.run_together(trainer(devices=2)):
        pass


def trainer(**values) -> dict:
    return {"accelerator": "cpu", "devices": 1, "num_nodes": 1, **values}


@pytest.mark.parametrize(("override", "message"), [
    ("callbacks.ema_decay=0.9", "callbacks.ema_decay: no averages with trainer=fsdp"),
    ("optimizer=lamb", "optimizer.name: only sgd, .* with trainer=fsdp"), ("compile=true", "compile: not with"),
    ("phases={a: {epochs: 1}, b: {epochs: 1}}", "phases: one phase alone"),
])  # fmt: skip
def test_fsdp_refuses_options(override, message):
    check_fsdp(config("trainer=fsdp"), "bf16-mixed")
    with pytest.raises(InputError, match=message):
        check_fsdp(config("trainer=fsdp", override), "32-true")
