"""GPUs and TPUs, from files as the kernel shows them and from what torch answers."""

import pytest

from carvision.diagnosis.hardware import describe_devices, judge_devices, read_accelerators

NONE = {"nvidia_cards": 0, "nvidia_nodes": 0, "nvidia_driver": None, "tpu_chips": 0, "infiniband": 0}
CARD = {**NONE, "nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "470.82.01"}
GPU = {"name": "Fast", "free": 70e9, "total": 80e9, "capability": [9, 0]}
TORCH = {"cuda_build": "12.8", "cuda_error": "", "gpus": [], "architectures": ["sm_75", "sm_80", "sm_90", "compute_90"]}
VERSIONS = {"torch": "2.9.0"}


def test_cards_are_seen_without_torch(tmp_path):
    def device(name, vendor, kind, number="0x0001"):
        folder = tmp_path / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("class", kind), ("device", number)):
            (folder / file).write_text(text + "\n")

    assert read_accelerators(tmp_path) == NONE
    device("0", "0x10de", "0x030200")
    device("1", "0x10de", "0x040300")  # its sound
    device("2", "0x1ae0", "0x120000", "0x0063")
    device("3", "0x1ae0", "0x020000", "0x0042")  # a network card
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/nvidiactl").touch()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(version)
    wanted = {"nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "550.54.15", "tpu_chips": 1}
    assert read_accelerators(tmp_path) == {**NONE, **wanted}


@pytest.mark.parametrize(
    "system, torch, severity, words",
    [
        (CARD, {"cuda_build": None}, "breaks", "was built without CUDA"),
        (CARD, {"cuda_error": "Your driver is too old (found 11040)"}, "breaks", "470.82.01 is too old"),
        (CARD, {"cuda_error": "No CUDA GPUs are available"}, "breaks", "(No CUDA GPUs are available)"),
        ({**CARD, "nvidia_nodes": 0}, {}, "breaks", "does not show it here"),
        ({**CARD, "nvidia_nodes": 0, "nvidia_driver": None}, {}, "slow", "does not show it here"),
        (CARD, {"gpus": [{**GPU, "capability": [6, 1]}]}, "breaks", "compute capability 6.1"),
        (CARD, {"gpus": [{**GPU, "capability": [7, 5]}]}, "note", "no bf16"),
        (CARD, {"gpus": [{**GPU, "free": 1e9}]}, "slow", "has 1.0 GB of 80 GB free"),
        (CARD, {"gpus": [{"name": "number 0", "error": "busy"}]}, "breaks", "does not answer: busy"),
        (CARD, {"gpus": [GPU, {**GPU, "name": "Slow"}]}, "slow", "2 kinds (Fast, Slow)"),
        (NONE, {"error": "did not answer within 90 seconds"}, "breaks", "did not answer"),
        ({**NONE, "tpu_chips": 4}, {}, "breaks", "torch-xla is not installed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_device(system, torch, severity, words):
    [finding] = judge_devices(system, {**TORCH, **torch}, VERSIONS)
    assert finding.severity == severity and words in finding.what, finding
    assert describe_devices(system, {**TORCH, **torch})


@pytest.mark.parametrize(
    "system, torch",
    [
        (NONE, {}),
        (NONE, {"cuda_build": None}),
        (CARD, {"gpus": [GPU, GPU]}),
        (CARD, {"gpus": [{**GPU, "capability": [8, 6]}]}),  # runs code for 8.0
        (CARD, {"gpus": [{**GPU, "capability": [12, 0]}]}),  # compiles the PTX for 9.0
        (CARD, {"gpus": [{**GPU, "capability": [12, 1]}], "architectures": ["sm_120a", "compute_120f"]}),
    ],
)
def test_what_is_in_order(system, torch):
    assert judge_devices(system, {**TORCH, **torch}, VERSIONS) == []


def test_newer_than_the_build_without_ptx():
    torch = {**TORCH, "architectures": ["sm_80", "sm_90"], "gpus": [{**GPU, "capability": [12, 0]}]}
    [finding] = judge_devices(CARD, torch, VERSIONS)
    assert finding.severity == "breaks"


def test_where_torch_could_not_be_asked_the_rest_is_told():
    assert judge_devices(CARD, {}, VERSIONS) == []
    assert describe_devices(CARD, {}) == [("GPU", "1 by NVIDIA, which torch can't use"), ("driver", "470.82.01")]
    assert ("GPU", "Apple's; trainer=gpu takes it") in describe_devices(NONE, {**TORCH, "mps": True})
