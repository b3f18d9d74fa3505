"""Run probe.py's steps in their own processes: whatever they do, each gets an answer."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from carvision.diagnosis.finding import one_line
from carvision.diagnosis.probe import without_dependents

LIMIT_S = 90.0  # for one step


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
    message = one_line(" ".join(line for line in messages if line))
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
        "SIGILL": ": the processor lacks an instruction that the package was built with",
        "SIGKILL": ": as the kernel does when memory is used up",
        "SIGBUS": ": as where shared memory or the disk is full",
    }
    return f"was ended by {name}{why.get(name, '')}"
