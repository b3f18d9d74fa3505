"""Check the cores and memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from carvision.diagnosis.finding import Finding, size_text
from carvision.machine import core_quota, memory_limit, num_cores, processor_name

MIN_MEMORY = 2e9  # bytes: torch with Lightning, a small network and two processes that read photos


def read_processor() -> dict:
    """Return facts about cores, load and memory."""
    return {
        "name": processor_name(),
        "machine": os.cpu_count() or 1,
        "usable": num_cores(),
        "quota": core_quota(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **read_memory(),
    }


def read_memory(file: Path = Path("/proc/meminfo")) -> dict:
    """Return "memory" and "available" in bytes, None if unknown, and the control group's "memory_limit"."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        found = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdigit()}
    except OSError:
        found = {}
    return {
        "memory": found.get("MemTotal:"),
        "available": found.get("MemAvailable:"),
        "memory_limit": memory_limit(),
    }


def describe_processor(facts: dict) -> list[tuple[str, str]]:
    """Return rows (name, text) about processor and memory."""
    usable, machine, quota = facts["usable"], facts["machine"], facts["quota"]
    cores = f"{usable} of {machine} cores" if usable < machine else f"{usable} cores"
    cores += f" (time for {quota:g})" if quota is not None else ""
    load = "" if facts["load"] is None else f", load {facts['load']:.1f}"
    rows = [("processor", f"{cores}, {facts['name']}{load}")]
    if facts["memory"]:
        limit = facts["memory_limit"]
        allowed = f", of which this container may take {size_text(limit)}" if _limited(facts) else ""
        rows.append(("memory", f"{size_text(facts['memory'])}, {size_text(facts['available'] or 0)} free{allowed}"))
    return rows


def _limited(facts: dict) -> bool:
    return facts["memory_limit"] is not None and facts["memory_limit"] < (facts["memory"] or float("inf"))


def judge_processor(facts: dict, num_threads: int | None = None) -> list[Finding]:
    """Return findings about cores, load and memory. num_threads: torch's; None if it could not be asked."""
    findings = []
    usable, machine, quota = facts["usable"], facts["machine"], facts["quota"]
    threads = num_threads or 0
    if quota is not None and quota < machine and threads > usable:
        what = f"this container has time for {quota:g} cores, and torch's {threads} threads slow each other down"
        findings.append(
            Finding("slow", "cores", what, f"set OMP_NUM_THREADS={usable}, or give the container more cores")
        )
    elif threads > usable:
        what = f"torch would use {threads} threads on {usable} cores"
        findings.append(Finding("slow", "threads", what, f"set OMP_NUM_THREADS={usable}"))
    if usable == 1:
        what = "there is one: reading photos and training take turns"
        findings.append(Finding("slow", "cores", what, "a machine or container with more cores"))
    if facts["load"] is not None and facts["load"] > usable + 0.5:
        what = (
            f"{facts['load']:.1f} processes want {usable} cores already: all takes longer, also what is measured here"
        )
        findings.append(Finding("slow", "load", what, "see what runs (top), and end what is not needed"))
    limits = [value for value in (facts["available"], facts["memory_limit"]) if value is not None]
    if limits and min(limits) < MIN_MEMORY:
        what = f"{size_text(min(limits))} can be used; the kernel ends processes that want more, without a message"
        fix = "end other programs, raise the container's limit, or try data.num_workers=0 and a small data.batch_size"
        findings.append(Finding("breaks", "memory", what, fix))
    return findings
