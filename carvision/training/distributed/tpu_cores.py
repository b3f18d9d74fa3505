"""Start a process for each core of a TPU with torchrun. Imports neither torch nor Lightning, so that a missing package
is reported at once."""

import importlib
import os
import sys

from carvision.errors import InputError, one_line

PORT = 29_500  # of the first machine of a pod slice


def require_xla() -> None:
    """Raise InputError if torch-xla or a device for it is missing."""
    wanted = os.environ.get("PJRT_DEVICE")
    try:
        runtime = importlib.import_module("torch_xla.runtime")
        device = runtime.device_type()
    except Exception as error:  # ImportError, or anything else from a build for another torch
        text = one_line(error, 120)
        raise InputError(
            f"trainer.accelerator: tpu can't be used here ({text}); run scripts/setup_tpu.sh, and then "
            ".venv-tpu/bin/python -m carvision.train trainer=tpu"
        ) from None
    if device != "TPU" and wanted != "CPU":
        raise InputError(
            "trainer.accelerator: tpu, and this machine has none; use trainer=cpu or trainer=gpu, or set the "
            "environment variable PJRT_DEVICE=CPU, which runs the TPU's code on the processor"
        )


def use_cores(devices: str | int | list[int]) -> None:
    """Return once this process has its core; else restart the command under torchrun. Call first of all.

    devices: trainer.devices, of one machine. All machines of a pod slice run the same command.
    """
    require_xla()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this process
        if int(os.environ["WORLD_SIZE"]) > 1:
            if os.environ.get("PJRT_DEVICE") == "CPU":
                raise InputError("trainer.accelerator: PJRT_DEVICE=CPU has one device; start one process")
            # torch-xla does this itself only with torch.distributed, which is not used here
            pjrt = importlib.import_module("torch_xla._internal.pjrt")
            pjrt.initialize_multiprocess(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        return
    if os.environ.get("PJRT_DEVICE") == "CPU":  # one device
        return
    tpu = importlib.import_module("torch_xla._internal.tpu")
    num_cores, machines = tpu.num_available_devices(), tpu.get_worker_ips()
    if len(machines) == 1 and (num_cores == 1 or devices == 1 or isinstance(devices, list)):
        return
    if tpu.num_logical_cores_per_chip() > 1:
        raise InputError("trainer.devices: on a TPU v2 or v3 carvision takes one core; use trainer.devices=1")
    if devices not in ("auto", num_cores):
        raise InputError(f"trainer.devices: {devices} of {num_cores} cores; use auto, which takes all, or 1")
    os.execv(sys.executable, [sys.executable, *torchrun(num_cores, machines, tpu.worker_id()), *sys.argv[1:]])


def torchrun(num_cores: int, machines: list[str], machine: int) -> list[str]:
    """Return the arguments of "python" for torchrun, without the overrides. machines: addresses, by rank."""
    where = ["--standalone"]
    if len(machines) > 1:
        where = [f"--nnodes={len(machines)}", f"--node-rank={machine}", f"--master-addr={machines[0]}"]
        where += [f"--master-port={PORT}"]
    return ["-m", "torch.distributed.run", *where, f"--nproc-per-node={num_cores}", "-m", "carvision.train"]
