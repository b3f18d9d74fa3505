"""Coordinate the processes of one run: who started them, which one is first, and how all end when one fails.

Three launchers: "plain" (Lightning starts the others from the first), torchrun, and SLURM's srun. Before Lightning
connects the processes, they exchange values through a key-value store, which the first process serves (under torchrun
its agent).
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies.launchers import subprocess_script
from torch import distributed as dist

from carvision.errors import InputError, one_line

log = logging.getLogger(__name__)

T = TypeVar("T")

FAILED, ENDED = "failed", "ended"
CHECK_EVERY_S = 1.0
GRACE_S = 10.0  # then a process that should have ended, but hangs in a collective, is killed
START_WITHIN = timedelta(minutes=5)

_store: dist.Store | None = None  # kept until the process ends: the others may still ask the first's
_turn = 0  # numbers the shared values, in the same order in all processes
_children: list[subprocess.Popen] = []


def launcher() -> str:
    """Return which launcher started this process: "torchrun", "srun" or "plain"."""
    if TorchElasticEnvironment.detect():
        return "torchrun"
    in_slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    alone = os.environ.get("SLURM_NTASKS") == "1" and not _is_in_step()  # in a batch script of one task
    return "srun" if in_slurm and not alone else "plain"


def _is_in_step() -> bool:
    """Return whether srun started this process: a batch script has SLURM's other variables, too."""
    return "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ


def is_first_process() -> bool:
    """Return whether this is the only or the first of a run's processes, which writes and prints."""
    names = {"torchrun": ["RANK"], "srun": ["SLURM_PROCID"], "plain": ["LOCAL_RANK", "NODE_RANK"]}[launcher()]
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def num_started() -> int | None:
    """Return how many processes the launcher started; None if Lightning starts them."""
    name = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS", "plain": ""}[launcher()]
    return int(os.environ[name]) if name else None


def num_sharing(trainer: dict) -> int:
    """Return how many processes of the run share this process's cores. trainer: the keys of conf/trainer."""
    if launcher() == "torchrun":
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if launcher() == "srun":  # it gives each task its own cores
        return 1
    devices = trainer["devices"]
    if devices == "auto":
        return max(1, torch.cuda.device_count()) if trainer["accelerator"] in ("gpu", "auto") else 1
    return len(devices) if isinstance(devices, list) else devices


def create_environment() -> ClusterEnvironment:
    """Return Lightning's cluster environment. Under SLURM it does not requeue: `stopping` handles the signals."""
    return {
        "torchrun": TorchElasticEnvironment,
        "srun": lambda: SLURMEnvironment(auto_requeue=False),
        "plain": LightningEnvironment,
    }[launcher()]()


def require_all_used(num_devices: int, num_nodes: int) -> None:
    """Raise InputError if the launcher started more or fewer processes than the Trainer would use."""
    started = num_started()
    if started is not None and started != num_devices * num_nodes:
        raise InputError(
            f"trainer.devices: {launcher()} started {started} process{'es' * (started > 1)}, and trainer.devices="
            f"{num_devices} with trainer.num_nodes={num_nodes} needs {num_devices * num_nodes}; give both the same"
        )


@contextmanager
def run_together(trainer: dict) -> Iterator[None]:
    """Run the body in all processes of a run: an error in one ends all of them, and only the first to fail prints it
    (the others exit with status 1). At the end the others wait for the first.

    trainer: the keys of conf/trainer.
    """
    devices = trainer["devices"]
    one = devices == 1 or (isinstance(devices, list) and len(devices) == 1)
    on_tpu = trainer["accelerator"] == "tpu"  # where torchrun starts a process for each core
    if num_started() in (None, 1) and (on_tpu or (one and trainer["num_nodes"] == 1)):
        yield
        return
    if launcher() == "srun" and not _is_in_step():
        raise InputError(
            f"trainer: SLURM has {num_started()} tasks for this job, and this process is not one that srun started; "
            "write srun before the command, or ask for one task (--ntasks=1)"
        )
    try:
        _connect(trainer["num_nodes"])
    except dist.DistError as error:
        text = one_line(error, 200)
        raise InputError(
            f"trainer: the other processes of this run can't be reached ({text}); start all of them within "
            f"{START_WITHIN.seconds // 60} minutes, under SLURM with srun"
        ) from None
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        if devices != "auto" and not on_tpu:
            require_all_used(len(devices) if isinstance(devices, list) else devices, trainer["num_nodes"])
        yield
    except (Exception, KeyboardInterrupt) as error:
        _fail(error)  # keep watching: this process may hang while it cleans up
        raise
    except BaseException:  # all processes raise it together
        _end_together()
        over.set()
        raise
    _end_together()
    over.set()


def broadcast_at_start(compute: Callable[[], T]) -> T:
    """Return in all processes what the first computes, before Lightning connects them. JSON types only: others get a
    list for a tuple."""
    if _store is None:
        return compute()
    key = _next_key()
    if is_first_process():
        value = compute()
        _store.set(key, json.dumps(value))
        return value
    _wait_for(_store, key)
    return json.loads(_store.get(key))


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the body in the first process, then in the others, which find what it wrote."""
    key = _next_key()
    if _store is not None and not is_first_process():
        _wait_for(_store, key)
    yield
    if _store is not None and is_first_process():
        _store.set(key, "")


def _next_key() -> str:
    global _turn
    _turn += 1
    return f"turn {_turn}"


def _connect(num_nodes: int) -> None:
    """Open the store, and set the address at which Lightning's own connection will find the first process."""
    global _store
    if _store is not None:  # another run of the same command
        return
    cast(Any, subprocess_script)._launch_process_observer = _children.extend  # Lightning's kills the first process
    if launcher() == "plain" and (num_nodes > 1 or not is_first_process()):
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")[: 3 if num_nodes > 1 else 2]:
            if name not in os.environ:
                raise InputError(
                    f"trainer.num_nodes: {num_nodes} machines need the environment variables MASTER_ADDR, MASTER_PORT "
                    f"(of the first one) and NODE_RANK (0, 1, ...), and there is no {name}; or start with torchrun"
                )
    if launcher() == "plain" and is_first_process():
        host, port = os.environ.setdefault("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT") or 0)
        store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True)
        os.environ["MASTER_PORT"] = str(store.port)
    elif launcher() == "plain":
        store = _client()
    else:
        environment = create_environment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        rank, num = environment.global_rank(), environment.world_size()
        store = next(dist.rendezvous("env://", rank, num, timeout=START_WITHIN))[0]
    _store = _prefixed(store)


def _client() -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=START_WITHIN)


def _prefixed(store: dist.Store) -> dist.Store:
    return dist.PrefixStore(f"carvision {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _wait_for(store: dist.Store, key: str) -> None:
    """Wait for the key, however long (the first process may be downloading), or until the first process is gone."""
    while not _is_there(store, key, if_gone=True):
        time.sleep(0.05)
        if _is_there(store, FAILED, if_gone=False):
            sys.exit(1)


def _is_there(store: dist.Store, key: str, if_gone: bool) -> bool:
    """Return whether the key is set; if_gone if the store, and with it the first process, is gone."""
    try:
        return store.check([key])
    except RuntimeError:
        return if_gone


def _end_together() -> None:
    """Wait for the first process, which has more to do at the end: a launcher may kill all when one ends."""
    assert _store is not None
    key = f"{ENDED} {_next_key()}"
    if is_first_process():
        _store.set(key, "")
    else:
        _wait_for(_store, key)


def is_secondary_failure(error: BaseException) -> bool:
    """Return whether the error only follows from the failure of another process, which reports its own."""
    if _store is None or isinstance(error, (InputError, KeyboardInterrupt)):
        return False
    until = time.monotonic() + 3 * CHECK_EVERY_S
    while not _is_there(_store, FAILED, if_gone=True):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _fail(error: BaseException) -> None:
    """Return in the process that reports the error; exit with status 1 in the others."""
    assert _store is not None
    try:
        if is_secondary_failure(error) or _store.add(FAILED, 1) > 1:
            raise SystemExit(1) from None
    except RuntimeError:  # the store is gone, and with it the first process
        raise SystemExit(1) from None
    if isinstance(error, dist.DistError) or re.search("gloo/|NCCL|Connection (closed|reset)", str(error)):
        raise InputError(
            "another process of this run ended without a message; did the system kill it (memory)?"
        ) from None


def _watch(over: threading.Event) -> None:
    """Kill this process if it should have ended and can't."""
    store = _prefixed(_client())
    while not over.wait(CHECK_EVERY_S):
        died = [child for child in _children if child.poll()]
        if died or _is_there(store, FAILED, if_gone=True):
            if over.wait(GRACE_S):
                return
            if died and not _is_there(store, FAILED, if_gone=True):
                print(f"error: another process of this run ended with status {died[0].returncode}", file=sys.stderr)
            for child in _children:
                child.send_signal(signal.SIGKILL)
            sys.stderr.flush()
            os._exit(1)
