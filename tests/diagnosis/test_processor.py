"""Cores and memory, from facts alone."""

import pytest

from carvision.diagnosis.hardware import describe_processor, judge_processor, read_memory, read_processor

GOOD = {
    "name": "Quick", "machine": 16, "usable": 16, "quota": None, "load": 0.5,
    "memory": 64e9, "available": 50e9, "memory_limit": None,
}  # fmt: skip


def test_this_machine_can_be_described():
    assert describe_processor(read_processor())[0][0] == "processor"
    assert judge_processor(GOOD, 16) == []


@pytest.mark.parametrize(
    "facts, threads, severity, words",
    [
        ({"quota": 2.0, "usable": 2}, 16, "slow", "time for 2 cores, and torch's 16 threads"),
        ({"usable": 4}, 8, "slow", "8 threads on 4 cores"),
        ({"usable": 1}, 1, "slow", "there is one"),
        ({"load": 40.0}, 8, "slow", "40.0 processes want 16 cores"),
        ({"available": 1e9}, 8, "breaks", "1.0 GB can be used"),
        ({"memory_limit": int(512e6)}, 8, "breaks", "512 MB can be used"),
    ],
)
def test_too_little_is_told(facts, threads, severity, words):
    [finding] = judge_processor({**GOOD, **facts}, threads)
    assert finding.severity == severity and words in finding.what and finding.fix


def test_limits_of_a_container_are_described():
    rows = dict(describe_processor({**GOOD, "quota": 1.5, "usable": 2, "memory_limit": int(4e9)}))
    assert rows["processor"] == "2 of 16 cores (time for 1.5), Quick, load 0.5"
    assert rows["memory"] == "64 GB, 50 GB free, of which this container may take 4.0 GB"


def test_a_system_that_tells_nothing(tmp_path):
    facts = {**GOOD, **read_memory(tmp_path / "none"), "load": None}
    assert facts["memory"] is None
    assert judge_processor(facts) == []
    assert [name for name, _ in describe_processor(facts)] == ["processor"]
