"""Run probe steps that may crash or hang: python -m carvision.diagnosis.probe STEP...

Each step answers with one line of JSON: {"step", "seconds", and what was found or "error"}. Steps are import:<module>,
devices (what torch finds), decoding, data:<folder>, hub. probing.py survives whatever they do.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import warnings

from carvision.diagnosis.finding import one_line

TORCH_STEPS = ("import:torchvision", "import:timm", "import:torchmetrics", "import:pytorch_lightning", "devices")
PHOTO_STEPS = ("decoding", "data")


def without_dependents(steps: list[str], failed: str) -> list[str]:
    """Return the steps that can still be tried after one has failed."""
    if failed == "import:torch":
        return [step for step in steps if step not in TORCH_STEPS]
    if failed in ("import:PIL", "import:numpy"):
        return [step for step in steps if step.partition(":")[0] not in PHOTO_STEPS]
    return steps


def main() -> None:
    # Packages may print while they are imported: answers go to the original stdout, everything else to stderr.
    """Run the steps of the command line, and print each answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    steps = sys.argv[1:]
    while steps:
        step = steps.pop(0)
        started = time.perf_counter()
        try:
            found = run_step(*step.partition(":")[::2])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package may even call sys.exit
            found = {"error": one_line(f"{type(error).__name__}: {error}")}
            steps = without_dependents(steps, step)
        print(json.dumps({"step": step, "seconds": time.perf_counter() - started, **found}), file=answers, flush=True)


def run_step(kind: str, argument: str) -> dict:
    """Run one step, such as import:torch (kind "import", argument "torch"); return what was found."""
    if kind == "import":
        module = importlib.import_module(argument)
        return {"file": getattr(module, "__file__", None) or str(next(iter(getattr(module, "__path__", [])), ""))}
    if kind == "devices":
        return read_torch_devices()
    if kind == "hub":
        return reach_hub()
    from carvision.diagnosis.speed import measure_data, measure_decoding

    return measure_decoding() if kind == "decoding" else measure_data(argument)


def read_torch_devices() -> dict:
    """Return what torch finds: builds, threads, GPUs with memory and compute capability."""
    import torch

    found = {
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "num_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mps": torch.backends.mps.is_available(),
        "gpus": [],
        "architectures": [],
        "cuda_error": "",
    }
    if torch.version.cuda is None and torch.version.hip is None:
        return found
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:
            found["cuda_error"] = one_line(error)
        return found
    found["architectures"] = torch.cuda.get_arch_list()
    found["cudnn"] = torch.backends.cudnn.version()
    for number in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(number)
            capability = torch.cuda.get_device_capability(number)
        except Exception as error:  # a broken GPU, or one that another process uses exclusively
            found["gpus"].append({"name": f"number {number}", "error": one_line(error)})
            continue
        name = torch.cuda.get_device_name(number)
        found["gpus"].append({"name": name, "free": free, "total": total, "capability": list(capability)})
    return found


def reach_hub() -> dict:
    """Return the hub's address if it answers within 5 s; raises OSError if not."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub.constants import ENDPOINT

    with contextlib.suppress(HTTPError):  # also an answer
        urlopen(Request(ENDPOINT, method="HEAD"), timeout=5).close()
    return {"hub": ENDPOINT}


if __name__ == "__main__":
    main()
