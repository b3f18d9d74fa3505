"""Run steps that may crash or hang in child processes, so that each gets an answer: import packages, ask torch, decode.

The parent side is probe(); the child is `python -m carvision.diagnosis.probe STEP...`, which answers each step with one
line of JSON: {"step", "seconds", and what was found or "error"}. Steps are import:<module>, devices (what torch finds),
decoding, data:<folder>.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings

from carvision.diagnosis.findings import abbreviate

LIMIT_S = 180.0  # for all steps
TORCH = "import:torch"
REASONS = {
    "SIGILL": " (the processor lacks an instruction that the package was built with)",
    "SIGKILL": " (probably out of memory)",
}


def probe(steps: list[str], limit_s: float = LIMIT_S) -> dict[str, dict]:
    """Return {step: what was found, or {"error": the reason}}.

    A step that ends the process, or is not finished after limit_s, gets that as its error, and those after it have no
    answer; nor have those after import:torch if that fails.
    """
    command = [sys.executable, "-m", "carvision.diagnosis.probe", *steps]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
        messages = " ".join(done.stderr.decode(errors="replace").splitlines()[-5:])
        ending = f"the process {_how_it_ended(done.returncode)}{f' ({abbreviate(messages)})' if messages else ''}"
        lines = done.stdout
    except subprocess.TimeoutExpired as error:
        lines, ending = error.stdout or b"", f"did not answer within {limit_s:g} seconds"
    except OSError as error:
        lines, ending = b"", f"no process could be started for it ({error.strerror})"
    answers = {}
    for line in lines.splitlines():
        answer = json.loads(line)
        answers[answer.pop("step")] = answer
    if len(answers) < len(steps) and "error" not in answers.get(TORCH, {}):
        answers[steps[len(answers)]] = {"error": ending}
    return answers


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"was killed by {name}{REASONS.get(name, '')}"


def main() -> None:
    """Run the steps of the command line, and print each answer."""
    # Packages may print while they are imported: answers go to the original stdout, everything else to stderr
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for step in sys.argv[1:]:
        started = time.perf_counter()
        try:
            found = run_step(*step.partition(":")[::2])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package may even call sys.exit
            found = {"error": abbreviate(f"{type(error).__name__}: {error}")}
        found = {"step": step, "seconds": time.perf_counter() - started, **found}
        print(json.dumps(found), file=stdout, flush=True)
        if step == TORCH and "error" in found:  # others import it, and would fail in odd ways
            return


def run_step(kind: str, argument: str) -> dict:
    """Run one step, such as import:torch (kind "import", argument "torch"); return what was found."""
    if kind == "import":
        importlib.import_module(argument)
        return {}
    if kind == "devices":
        return read_torch_devices()
    from carvision.diagnosis.speed import measure_data, measure_decoding

    return measure_decoding() if kind == "decoding" else measure_data(argument)


def read_torch_devices() -> dict:
    """Return torch's builds and threads, and the GPUs it finds, with memory and compute capability."""
    import torch

    found = {
        "cuda_build": torch.version.cuda or torch.version.hip,
        "num_threads": torch.get_num_threads(),
        "mps": torch.backends.mps.is_available(),
        "gpus": [],
        "architectures": [],
        "cuda_error": "",
    }
    if not found["cuda_build"]:
        return found
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:
            found["cuda_error"] = abbreviate(error)
        return found
    found["architectures"] = torch.cuda.get_arch_list()
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


if __name__ == "__main__":
    main()
