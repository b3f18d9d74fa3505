"""Commands in processes forked from one that has imported everything: a start takes a second, not ten."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

# One for all tests of this process; imports these before the first fork
CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["tests.small_runs", "carvision.search.trial", "carvision.search.run", "carvision.search.plots"]
CONTEXT.set_forkserver_preload(IMPORTED)


def process(target, *arguments, **options) -> multiprocessing.Process:
    """Return a process of the fork server, not started yet. It sees no GPU."""
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        forkserver._forkserver.ensure_running()
    address = forkserver._forkserver._forkserver_address
    return CONTEXT.Process(target=_run, args=(address, target, *arguments), **options)


def _run(address: str, target, *arguments) -> None:
    """Run the target; what it forks in turn comes from the same server, not from one that imports everything again."""
    forkserver._forkserver._forkserver_address = address
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    target(*arguments)


def start(module: str, *arguments, cwd: Path, env: dict | None = None, out: Path, first: str = ""):
    """Start `python -m module arguments` in a session of its own; its output goes to <out>.stdout and <out>.stderr.

    env: its whole environment; None: this process's. first: Python code to run before.
    """
    variables = dict(os.environ) if env is None else env
    started = process(_main, module, list(map(str, arguments)), cwd, variables, out, first)
    started.start()
    return started


def _main(module: str, arguments: list[str], cwd: Path, variables: dict[str, str], out: Path, first: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell that runs the tests may have ignored
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    exec(first, {})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def finish(processes: list, outs: list[Path], timeout_s: float = 300) -> list[subprocess.CompletedProcess]:
    """Wait for started processes, kill what they started, and return their status and output."""
    try:
        for process in processes:
            process.join(timeout_s)
            assert process.exitcode is not None, f"not ended after {timeout_s} s"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    texts = [[Path(f"{out}.{name}").read_text(encoding="utf-8") for name in ("stdout", "stderr")] for out in outs]
    codes = [process.exitcode for process in processes]
    return [subprocess.CompletedProcess([], code, *text) for code, text in zip(codes, texts, strict=True)]


def run(module: str, *arguments, cwd: Path, check: int | None = None, env: dict | None = None):
    """Run `python -m module arguments` without a GPU. env: added to this environment."""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    out = cwd.with_name(f"{cwd.name}.out")  # beside the folder, which stays as it was for the command
    (done,) = finish([start(module, *arguments, cwd=cwd, env=variables, out=out)], [out])
    assert check in (None, done.returncode), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(condition, timeout_s: float = 240) -> None:
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()
