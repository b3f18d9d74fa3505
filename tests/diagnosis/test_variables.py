"""Environment variables and compilers, from facts alone."""

import pytest

from carvision.diagnosis.packages import judge_compiler, judge_variables, read_compiler


@pytest.mark.parametrize(
    "variables, severity, words",
    [
        ({"OMP_NUM_THREADS": "64"}, "slow", "is 64, on 8 cores"),
        ({"OMP_NUM_THREADS": "0"}, "slow", "not a number of threads"),
        ({"MKL_NUM_THREADS": "many"}, "slow", "not a number of threads"),
        ({"OMP_NUM_THREADS": "1"}, "note", "uses one of them"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "slow", "keep cores busy"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "slow", "is synchronous"),
        ({"TORCH_LOGS": "+dynamo"}, "slow", "takes time"),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, "slow", "TF32 is off"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "note", "hides all GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "note", "hides all GPUs"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "breaks", "not by torchrun"),
    ],
)
def test_a_variable_that_hurts(variables, severity, words):
    [finding] = judge_variables(variables, num_cores=8)
    assert finding.severity == severity and words in finding.what and finding.fix


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMP_NUM_THREADS": "4,2", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_LAUNCH_BLOCKING": "0", "TORCH_LOGS": ""},
        {"CUDA_VISIBLE_DEVICES": "1,2", "NVIDIA_TF32_OVERRIDE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"},
    ],
)
def test_variables_that_do_no_harm(variables):
    assert judge_variables(variables, num_cores=8) == []


def test_compilers(tmp_path):
    for name in ("clang++", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    found = read_compiler({"PATH": str(tmp_path), "CC": "mine"}, str(tmp_path))
    assert found["cpp"].endswith("clang++") and found["c"].endswith("mine") and found["headers"]
    assert judge_compiler(found, num_gpus=1) == []
    found = read_compiler({"PATH": str(tmp_path)}, str(tmp_path))
    assert judge_compiler(found, num_gpus=0) == []
    assert "none for C:" in judge_compiler(found, num_gpus=1)[0].what
    found = read_compiler({"PATH": ""}, str(tmp_path / "none"))
    assert "none for C++" in judge_compiler(found, num_gpus=0)[0].what
    assert "header files" in judge_compiler({**found, "cpp": "g++"}, num_gpus=0)[0].what
