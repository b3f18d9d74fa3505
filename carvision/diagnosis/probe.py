"""Run steps that may crash or hang in child processes, so that each gets an answer: import packages, ask torch, decode.

The parent side is probe(); the child is `python -m carvision.diagnosis.probe STEP...`, which answers each step with one
line of JSON: {"step", "seconds", and what was found or "error"}. Steps are import:<module>, devices (what torch finds),
decoding, data:<folder>, hub.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from carvision.diagnosis.finding import abbreviate

LIMIT_S = 90.0  # for one step
TORCH_STEPS = ("import:torchvision", "import:timm", "import:torchmetrics", "import:pytorch_lightning", "devices")
PHOTO_STEPS = ("decoding", "data")


def probe_together(groups: list[list[str]], limit_s: float = LIMIT_S) -> dict[str, dict]:
    """Probe the groups of steps in parallel, each in its own process."""
    answers: dict[str, dict] = {}
    with ThreadPoolExecutor(len(groups)) as threads:
        for found in threads.map(lambda steps: probe(steps, limit_s), groups):
            answers |= found
    return answers


def probe(steps: list[str], limit_s: float = LIMIT_S) -> dict[str, dict]:
    """Return {step: what was found, or {"error": the reason}}. A step is missing if one that it needs has failed.

    A step that crashes or takes longer than limit_s gets that as its error; the others continue in a new process.
    """
    answers: dict[str, dict] = {}
    steps = list(steps)
    while steps:
        found, reason = _probe_once(steps, limit_s)
        answers |= found
        for step in found:
            steps.remove(step)
            if "error" in found[step]:
                steps = without_dependents(steps, step)
        if steps:  # the process ended in the first of them
            answers[steps[0]] = {"error": reason}
            steps = without_dependents(steps[1:], steps[0])
    return answers


def _probe_once(steps: list[str], limit_s: float) -> tuple[dict[str, dict], str]:
    """Return the answers of one process, and why there are no more."""
    command = [sys.executable, "-m", "carvision.diagnosis.probe", *steps]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:
        return {}, f"no process could be started for it ({error.strerror})"
    answers: dict[str, dict] = {}
    lines: queue.Queue = queue.Queue()
    messages: deque[str] = deque(maxlen=5)
    threads = [
        threading.Thread(target=_forward_lines, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_forward_lines, args=(process.stderr, messages.append), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        while len(answers) < len(steps):
            line = lines.get(timeout=limit_s)
            if line is None:
                break
            answer = json.loads(line)
            answers[answer.pop("step")] = answer
        process.wait(timeout=limit_s)
    except (queue.Empty, subprocess.TimeoutExpired):
        return answers, f"did not answer within {limit_s:g} seconds"
    finally:
        process.kill()
        process.wait()
    threads[1].join(timeout=1)
    message = abbreviate(" ".join(line for line in messages if line))
    return answers, f"the process {_how_it_ended(process.returncode)}{f' ({message})' if message else ''}"


def _forward_lines(stream, take) -> None:
    for line in stream:
        take(line)
    take(None)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = {
        "SIGILL": " (the processor lacks an instruction that the package was built with)",
        "SIGKILL": " (probably out of memory)",
        "SIGBUS": " (probably shared memory or the disk is full)",
    }
    return f"was killed by {name}{why.get(name, '')}"


def without_dependents(steps: list[str], failed: str) -> list[str]:
    """Return the steps that can still be tried after one has failed."""
    if failed == "import:torch":
        return [step for step in steps if step not in TORCH_STEPS]
    if failed in ("import:PIL", "import:numpy"):
        return [step for step in steps if step.partition(":")[0] not in PHOTO_STEPS]
    return steps


def main() -> None:
    """Run the steps of the command line, and print each answer."""
    # Packages may print while they are imported: answers go to the original stdout, everything else to stderr
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
            found = {"error": abbreviate(f"{type(error).__name__}: {error}")}
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
    """Return torch's builds and threads, and the GPUs it finds, with memory and compute capability."""
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
            found["cuda_error"] = abbreviate(error)
        return found
    found["architectures"] = torch.cuda.get_arch_list()
    found["cudnn"] = torch.backends.cudnn.version()
    for number in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(number)
            capability = torch.cuda.get_device_capability(number)
        except Exception as error:  # a broken GPU, or one that another process uses exclusively
            found["gpus"].append({"name": f"number {number}", "error": abbreviate(error)})
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
