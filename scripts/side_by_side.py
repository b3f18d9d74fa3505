"""Measure candidates in turns, and summarise: a table with ratios and spread, JSON, the machine. For the benchmarks.

    samples = measure({"ours": ["python", "a.py"], "timm": ["python", "b.py"], "here": function}, rounds=5)
    summary = summarise(samples, baseline="timm")
    print(table(summary, ["wall_s", "cpu_s", "peak_mb"]))
    write(out, {"machine": machine(), "samples": samples, "summary": summary})

A candidate is a command (a process per round) or a callable without arguments. Measured are wall_s; cpu_s, user and
system with all descendants; and on Linux peak_mb, the largest sum of the processes' proportional set sizes (PSS: a
shared page is divided among those who share it), sampled every 0.1 s. If the candidate returns a dict, or prints one as
JSON in its last line, its items are added, and replace those of the same name.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from carvision.system.machine import num_cores, processor_name
from carvision.system.versions import read_versions

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def measure(
    candidates: dict[str, Callable[[], object] | list[str]],
    rounds: int,
    warm_up: int = 0,
    memory: bool = True,
    environment: dict[str, str] | None = None,
) -> dict[str, list[dict]]:
    """Return {name: a dict of metrics per round}. Each round runs every candidate, every second one in reverse order.

    warm_up: first rounds that do not count. memory: False for callables of milliseconds, as sampling disturbs them.
    environment: variables for the commands, in addition to those of this process. Exits if a command fails.
    """
    samples: dict[str, list[dict]] = {name: [] for name in candidates}
    for number in range(-warm_up, rounds):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            candidate = candidates[name]
            one = _call(candidate, memory) if callable(candidate) else _run(name, candidate, memory, environment or {})
            if number >= 0:
                samples[name].append(one)
    return samples


def summarise(samples: dict[str, list[dict]], baseline: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return {name: {metric: {"median", "min", "max", "ratio", "ratio_min", "ratio_max"}}}.

    ratio: the median over rounds of the ratio to the baseline in the same round, as what disturbs a machine changes
    from round to round.
    """
    result: dict[str, dict] = {}
    for name, rounds in samples.items():
        result[name] = {}
        for metric in [key for key, value in rounds[0].items() if isinstance(value, int | float)]:
            values = [one[metric] for one in rounds]
            spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            bases = [one.get(metric) for one in samples[baseline]]
            ratios = [value / base for value, base in zip(values, bases, strict=True) if base]
            if len(ratios) == len(values):
                spread |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            result[name][metric] = spread
    return result


def table(summary: dict[str, dict[str, dict[str, float]]], columns: list[str]) -> str:
    """Format as Markdown: a row per candidate; per column the median (min to max) and the ratio to the baseline."""
    rows = []
    for name, found in summary.items():
        cells = [name]
        for column in columns:
            one = found.get(column)
            cells.append("-" if one is None else _spread(one["median"], one["min"], one["max"]))
            has_ratio = one is not None and "ratio" in one
            cells.append(_spread(one["ratio"], one["ratio_min"], one["ratio_max"]) if has_ratio else "-")
        rows.append(cells)
    return rows_as_table(["", *(word for column in columns for word in (column, "ratio"))], rows)


def rows_as_table(head: list[str], rows: list[list[str]]) -> str:
    """Format as Markdown whose columns are also aligned as plain text."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _spread(median: float, least: float, most: float) -> str:
    return f"{median:.4g} ({least:.4g} to {most:.4g})"


def machine() -> dict:
    """Describe this machine, as every table of measurements should; "load" is the current one."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor_name(), "cores": num_cores(), "ram_gb": round(ram / 1e9, 1), "load": os.getloadavg()[0],
        "system": platform.platform(), "python": platform.python_version(), "versions": read_versions(),
    }  # fmt: skip


def write(out: Path | None, result: dict) -> None:
    """Write JSON, if there is a file to write to."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _call(candidate: Callable[[], object], memory: bool) -> dict:
    with _peak_memory(os.getpid(), memory) as peak:
        cpu, began = cpu_seconds(), time.perf_counter()
        result = candidate()
        one = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_seconds() - cpu}
    return one | peak | (result if isinstance(result, dict) else {})


def _run(name: str, command: list[str], memory: bool, environment: dict[str, str]) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **environment})
        with _peak_memory(process.pid, memory) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
        if process.returncode != 0:
            sys.exit(f"{name} ended with {process.returncode}:\n{errors.read().decode(errors='replace')[-4000:]}")
    one = {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, **peak}
    last = lines[-1] if lines else ""
    return one | (json.loads(last) if last.startswith("{") else {})


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all its descendants, ended or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = sum(map(_cpu_seconds_of_one, _descendants(os.getpid())[1:]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + children


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds of another process and all its descendants, in steps of 10 ms."""
    return sum(map(_cpu_seconds_of_one, _descendants(pid)))


def _cpu_seconds_of_one(pid: int) -> float:
    with suppress(OSError):  # it has just ended
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / TICKS_PER_S  # user and system, its own and of its children that have ended
    return 0.0


@contextmanager
def _peak_memory(pid: int, wanted: bool):
    """Yield a dict that holds "peak_mb" afterwards, or nothing."""
    peak: dict[str, float] = {}
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            peak["peak_mb"] = max(peak.get("peak_mb", 0.0), memory_mb(pid))
            done.wait(0.1)

    watcher = threading.Thread(target=look)
    if wanted and Path("/proc/self/smaps_rollup").exists():
        watcher.start()
    try:
        yield peak
    finally:
        done.set()


def memory_mb(pid: int) -> float:
    """Return the sum of the current proportional set sizes of a process and its descendants."""
    total = 0
    for each in _descendants(pid):
        with suppress(OSError, StopIteration):  # it has just ended
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _descendants(pid: int) -> list[int]:
    """Return the ids of the process, first, and of its descendants."""
    found = [pid]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, file.read_text(encoding="utf-8").split())
    return found


if __name__ == "__main__":
    print(json.dumps(machine(), indent=1))
