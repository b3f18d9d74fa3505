"""Start the processes of a run, know which one this is, and end all of them when one fails.

trainer=ddp, fsdp and tpu start their processes with torchrun's agent, in the process of the command itself. The user
may start them with torchrun or SLURM's srun as well. Imports no Lightning, which the agent's process does not need.
"""

import atexit
import contextlib
import importlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import distributed as dist

from carvision.errors import InputError, one_line
from carvision.system.runtime import STOP_SIGNALS
from carvision.training.distributed.collectives import broadcast_object

T = TypeVar("T")

STANDALONE = "localhost:0"  # the address of the first process where all are on this machine; on any free port
TPU_PORT = 29_500  # of the first machine of a pod slice
AGENT = "CARVISION_AGENT"  # environment variable with the process id of the agent in a carvision.train
POLL_S = 0.5  # interval at which the agent looks whether a process has ended
START_WITHIN = timedelta(minutes=5)
WAIT_WITHIN = timedelta(days=7)  # for the first process, which may be downloading
LAUNCHER_ENDS_WITHIN_S = 5.0
VARIABLES = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_NTASKS")}

_patient_group: Any = None  # of all processes, in which they may wait for days
_held_signals: list[int] = []  # those that came after an error


def launcher() -> str | None:
    """Return what started this process as one of several: "torchrun" (its agent, also in another carvision.train),
    "srun", or None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    in_slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    alone = os.environ.get("SLURM_NTASKS") == "1" and not _is_in_step()  # in a batch script of one task
    return "srun" if in_slurm and not alone else None


def _is_in_step() -> bool:
    """Return whether srun started this process: a batch script has SLURM's other variables, too."""
    return "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ


def is_first_process() -> bool:
    """Return whether this is the only or the first of a run's processes, which writes and prints."""
    by = launcher()
    return by is None or int(os.environ.get(VARIABLES[by][0]) or 0) == 0


def num_started() -> int:
    """Return how many processes the launcher started; 1 without one."""
    by = launcher()
    return 1 if by is None else int(os.environ[VARIABLES[by][1]])


def num_sharing() -> int:
    """Return how many processes of the run share this process's cores. srun gives each task its own."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launcher() == "torchrun" else 1


def create_environment():
    """Return Lightning's cluster environment. Under SLURM it does not requeue: `stopping` handles the signals."""
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if launcher() == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if launcher() == "torchrun" else LightningEnvironment()


def require_all_used(num_devices: int, num_nodes: int) -> None:
    """Raise InputError if the launcher started more or fewer processes than the Trainer would use."""
    started, wanted = num_started(), num_devices * num_nodes
    if started != wanted:
        raise InputError(
            f"trainer.devices: {launcher() or 'this call'} started {started} process{'es' * (started > 1)}, and "
            f"trainer.devices={num_devices} with trainer.num_nodes={num_nodes} needs {wanted}; "
            + ("give both the same" if launcher() else "carvision train starts several")
        )


def start_processes(trainer: dict) -> None:
    """Return once this process is one that trains. Where a run needs several and nothing has started them yet, start
    this command as often, under torchrun's agent, and exit with the status of the first process that fails.

    trainer: the keys of conf/trainer. Call it before Lightning is imported.
    """
    if launcher() == "torchrun":
        _end_with_agent()
    if trainer["accelerator"] == "tpu":
        _use_tpu_cores(trainer["devices"])
    elif launcher() is None:
        num_nodes, devices = trainer["num_nodes"], trainer["devices"]
        if devices == "auto":
            devices = max(1, torch.cuda.device_count()) if trainer["accelerator"] in ("gpu", "auto") else 1
        num = len(devices) if isinstance(devices, list) else devices
        if num > 1 or num_nodes > 1:
            _run_agent(num, num_nodes, *_machine_and_address(num_nodes))


def _machine_and_address(num_nodes: int) -> tuple[int, str]:
    """Return this machine's number, and the address of the first one."""
    if num_nodes == 1:
        return 0, STANDALONE
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        if name not in os.environ:
            raise InputError(
                f"trainer.num_nodes: {num_nodes} machines need the environment variables MASTER_ADDR, MASTER_PORT (of "
                f"the first one) and NODE_RANK (0, 1, ...), and there is no {name}; or start with torchrun"
            )
    return int(os.environ["NODE_RANK"]), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def require_xla() -> None:
    """Raise InputError if torch-xla or a device for it is missing."""
    wanted = os.environ.get("PJRT_DEVICE")
    try:
        device = importlib.import_module("torch_xla.runtime").device_type()
    except Exception as error:  # ImportError, or anything else from a build for another torch
        raise InputError(
            f"trainer.accelerator: tpu can't be used here ({one_line(error, 120)}); run scripts/setup_tpu.sh, and then "
            ".venv-tpu/bin/python -m carvision.train trainer=tpu"
        ) from None
    if device != "TPU" and wanted != "CPU":
        raise InputError(
            "trainer.accelerator: tpu, and this machine has none; use trainer=cpu or trainer=gpu, or set the "
            "environment variable PJRT_DEVICE=CPU, which runs the TPU's code on the processor"
        )


def _use_tpu_cores(devices: str | int | list[int]) -> None:
    """Return once this process has its core of a TPU; all machines of a pod slice run the same command."""
    require_xla()
    on_cpu = os.environ.get("PJRT_DEVICE") == "CPU"  # one device
    if launcher() == "torchrun":
        if num_started() > 1:
            if on_cpu:
                raise InputError("trainer.accelerator: PJRT_DEVICE=CPU has one device; start one process")
            # torch-xla does this itself only where torch.distributed exchanges the gradients
            pjrt = importlib.import_module("torch_xla._internal.pjrt")
            pjrt.initialize_multiprocess(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        return
    if on_cpu:
        return
    tpu = importlib.import_module("torch_xla._internal.tpu")
    num_cores, machines = tpu.num_available_devices(), tpu.get_worker_ips()
    if len(machines) == 1 and (num_cores == 1 or devices == 1 or isinstance(devices, list)):
        return
    if tpu.num_logical_cores_per_chip() > 1:
        raise InputError("trainer.devices: on a TPU v2 or v3 carvision takes one core; use trainer.devices=1")
    if devices not in ("auto", num_cores):
        raise InputError(f"trainer.devices: {devices} of {num_cores} cores; use auto, which takes all, or 1")
    address = f"{machines[0]}:{TPU_PORT}" if len(machines) > 1 else STANDALONE
    _run_agent(num_cores, len(machines), tpu.worker_id() if len(machines) > 1 else 0, address)


def _run_agent(num: int, num_machines: int, machine: int, address: str) -> NoReturn:
    """Run this command in `num` processes on each machine, as torchrun does, and exit like the one that failed first.

    Its error is printed, or the signal that killed it; the others are ended. Signals that end a run are passed on.
    address: host:port of the first machine.
    """
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    logging.disable()  # the agent logs each step of an ending
    os.environ[AGENT] = str(os.getpid())
    received: list[int] = []  # signals that were passed on

    class Agent(LocalElasticAgent):
        """Passes on the signals that end a run; torch's agent takes them for itself when it starts processes."""

        def _start_workers(self, worker_group) -> dict[int, Any]:
            started = super()._start_workers(worker_group)
            _pass_signals_on(self, received)
            return started

    backend, name = ("static", None) if num_machines > 1 else ("c10d", "localhost")
    parameters = RendezvousParameters(
        backend, address, "carvision", num_machines, num_machines, name,
        rank=machine, timeout=START_WITHIN.seconds,
    )  # fmt: skip
    try:
        rendezvous = get_rendezvous_handler(parameters)
        if num_machines > 1:
            rendezvous.next_rendezvous()  # wait for the other machines while a signal still ends this process
    except dist.DistError as error:
        raise _unreachable(error) from None
    with tempfile.TemporaryDirectory(prefix="carvision-") as folder:
        spec = WorkerSpec(
            "carvision", num, rendezvous, entrypoint=sys.executable,
            args=tuple(word.replace("$", "$$") for word in sys.orig_argv[1:]),  # the agent substitutes $names
            max_restarts=0, monitor_interval=POLL_S, local_addr=name,
        )  # fmt: skip
        agent = Agent(spec, DefaultLogsSpecs(folder))
        _pass_signals_on(agent, received)
        try:
            failures = agent.run().failures
        except SignalException as error:
            sys.exit(128 + error.sigval)
    if not failures:
        sys.exit(0)
    rank = min(failures, key=lambda rank: failures[rank].timestamp)  # of equal ones the first that the agent saw
    failure = failures[rank]
    if Path(failure.error_file).is_absolute():  # it left one
        print(failure.message, file=sys.stderr)
    elif -failure.exitcode in received:
        sys.exit(128 - failure.exitcode)
    elif failure.exitcode < 0:
        name, hint = failure.signal_name(), "; was there too little memory?" * (failure.exitcode == -9)
        print(f"error: the process with rank {rank} of this run was killed by {name}{hint}", file=sys.stderr)
    sys.exit(max(failure.exitcode, 1))


def _pass_signals_on(agent, received: list[int]) -> None:
    """From now on, pass the signals that end a run on to the agent's processes, which have sessions of their own, and
    append them to `received`."""

    def pass_on(number: int, frame) -> None:
        pids = [worker.id for worker in agent.get_worker_group().workers]
        if None in pids:  # not all are started
            sys.exit(128 + number)
        if number not in received:
            hint = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            print(f"{signal.Signals(number).name}: stopping with a checkpoint{hint}", file=sys.stderr, flush=True)
        received.append(number)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)


def _end_with_agent() -> None:
    """End this process once its parent, the agent, is gone."""
    agent = int(os.environ.get(AGENT) or os.getppid())

    def watch() -> None:
        while os.getppid() == agent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-agent").start()


@contextmanager
def run_together(trainer: dict) -> Iterator[None]:
    """Run the body in all processes of a run, connected. An error in one ends it with status 1, and the launcher ends
    the others; only the error of the first to fail is reported. At the end the others wait for the first.

    trainer: the keys of conf/trainer.
    """
    devices, num_nodes = trainer["devices"], trainer["num_nodes"]
    if launcher() == "srun" and not _is_in_step():
        raise InputError(
            f"trainer: SLURM has {num_started()} tasks for this job, and this process is not one that srun started; "
            "write srun before the command, or ask for one task (--ntasks=1)"
        )
    if devices != "auto" and trainer["accelerator"] != "tpu":
        require_all_used(len(devices) if isinstance(devices, list) else devices, num_nodes)
    if num_started() == 1:
        yield
        return
    ending = None
    try:
        if not dist.is_initialized():  # by an earlier run of the same command
            _connect(trainer["accelerator"])
        try:
            yield
        except SystemExit as error:  # in all of them, after a signal
            ending = error
        _wait_for_all()
    except Exception as error:
        _fail(error)
    if ending:
        raise ending


def _connect(accelerator: str) -> None:
    """Connect the processes. Lightning takes the connection that it finds."""
    global _patient_group
    environment = create_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    rank, num = environment.global_rank(), environment.world_size()
    on_gpus = accelerator in ("gpu", "auto") and torch.cuda.is_available()
    try:
        store = next(dist.rendezvous("env://", rank, num, timeout=START_WITHIN))[0]
    except dist.DistError as error:
        raise _unreachable(error) from None
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num)
    _patient_group = dist.new_group(backend="gloo", timeout=WAIT_WITHIN)
    if on_gpus:
        atexit.register(dist.destroy_process_group)  # NCCL asks for it


def _unreachable(error: dist.DistError) -> InputError:
    return InputError(
        f"trainer: the other processes of this run can't be reached ({one_line(error, 200)}); start all of them within "
        f"{START_WITHIN.seconds // 60} minutes, under SLURM with srun"
    )


def is_secondary_failure(error: BaseException) -> bool:
    """Return whether the error only follows from the end of another process, which has an error of its own."""
    lost = isinstance(error, dist.DistError) or re.search("gloo/|NCCL|Connection (closed|reset)", str(error))
    return num_started() > 1 and bool(lost) and not isinstance(error, InputError)


def hold_signals(number: int | None) -> None:
    """Keep the launcher from ending this process before it has cleaned up after an error. number: what it has sent."""
    _held_signals.extend([number] if number else [])
    for each in STOP_SIGNALS:
        signal.signal(each, lambda number, _: _held_signals.append(number))


def _fail(error: Exception) -> NoReturn:
    """End this process with the error: in the file that torchrun's agent reads, else printed."""
    secondary = is_secondary_failure(error)
    if secondary:
        error = InputError(f"the connection to another process of this run was lost ({one_line(error, 200)})")
    is_line = isinstance(error, InputError) and not os.environ.get("CARVISION_DEBUG")
    text = f"error: {error}" if is_line else "".join(traceback.format_exception(error)).rstrip()
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:  # the agent reports the earliest error; that of the lost process comes before
        report = {"message": text, "timestamp": int(time.time()) + 60 * secondary}
        Path(file).write_text(json.dumps(report), encoding="utf-8")
    else:
        until = time.monotonic() + LAUNCHER_ENDS_WITHIN_S * (secondary or not is_first_process())
        while not _held_signals and time.monotonic() < until:  # srun ends this process if another has failed
            time.sleep(0.1)
        if not (secondary and _held_signals):
            print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # at once: what waits for the device or for other processes would not end


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the body in the first process, then in the others, which find what it wrote."""
    if not is_first_process():
        _wait_for_all()
    yield
    if is_first_process():
        _wait_for_all()


def broadcast_at_start(compute: Callable[[], T]) -> T:
    """Return in all processes what the first computes, however long that takes."""
    with first_process_first():
        value = compute() if is_first_process() else None
    return broadcast_object(cast(T, value))


def _wait_for_all() -> None:
    if _patient_group is not None:
        sys.stdout.flush()  # the launcher may end all when one has ended
        dist.barrier(group=_patient_group)
