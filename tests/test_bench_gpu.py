"""scripts/bench_gpu.py: its table of measurements, and a whole benchmark on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "bench_gpu.py"


def line(kind: str, speed: float, **values) -> dict:
    same = {"device": "a GPU", "cores": 16, "workers": 15, "image_px": 224, "batch_size": 64, "network": "resnet50"}
    return {**same, "compile": False, "kind": kind, "images_per_s": speed, "precision": "bf16-mixed", **values}


def test_the_table_has_medians_of_the_repeats_and_their_ratios():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    measures = [line("step", speed) for speed in (1000, 990, 1010)]
    measures += [line("carvision", speed, peak_memory_mb=5000, first_step_s=20.0) for speed in (900, 950, 5)]
    measures += [line("timm", 800, utilisation=80.0), line("step", 2000, compile=True)]
    plain, compiled = bench.summarise(measures)
    assert plain["step"]["images_per_s"] == 1000 and plain["carvision"]["images_per_s"] == 900
    assert plain["of_step"] == 0.9 and plain["of_timm"] == 1.125
    assert compiled["compile"] and "of_step" not in compiled  # carvision was not measured
    rows = bench.as_markdown([plain, compiled]).splitlines()
    assert rows[2].startswith("| a GPU | resnet50 | 64 | no | 1,000.0 ±1% | 900.0 ")
    assert "(5,000 MB) | 800.0 ±0% (80 %) | 90.0% | 112.5% | 20.0 s |" in rows[2]
    assert rows[3] == "| a GPU | resnet50 | 64 | yes | 2,000.0 ±0% | - | - | - | - | - |"


@pytest.mark.slow
def test_the_benchmark_runs_on_the_cpu(tmp_path):
    options = "--networks=test_resnet --image-px=32 --batch-size=8 --photos=64 --epochs=2 --repeats=1 --workers=1"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device=cpu", "--out=bench", *options.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert row["device"] == "cpu" and row["step"]["precision"] == row["carvision"]["precision"] == "32-true"
    speeds = {kind: row[kind]["images_per_s"] for kind in ("step", "carvision", "timm")}
    assert all(speed > 0 for speed in speeds.values())
    assert row["of_step"] == speeds["carvision"] / speeds["step"]
    measures = [json.loads(text) for text in (tmp_path / "bench" / "measures.jsonl").read_text().splitlines()]
    assert [measure["kind"] for measure in measures] == ["step", "carvision", "timm"]
    assert (tmp_path / "bench" / "bench.md").read_text() in done.stdout
