"""scripts/bench_gpu.py: its table of measurements, and a whole benchmark on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "bench_gpu.py"


def test_the_table_has_medians_of_the_repeats_and_their_ratios():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    same = {"device": "a GPU", "cores": 16, "workers": 15, "image_px": 224, "batch_size": 64, "network": "resnet50"}
    same |= {"compile": False, "precision": "bf16-mixed"}
    speeds = [("step", speed) for speed in (1000, 990, 1010)] + [("carvision", speed) for speed in (900, 950, 5)]
    measures = [{**same, "kind": kind, "images_per_s": speed} for kind, speed in [*speeds, ("timm", 800)]]
    measures.append({**measures[0], "images_per_s": 2000, "compile": True})
    plain, compiled = bench.summarise(measures)
    assert plain["step"]["images_per_s"] == 1000 and plain["carvision"]["images_per_s"] == 900
    assert plain["of_step"] == 0.9 and plain["of_timm"] == 1.125
    assert compiled["compile"] and "of_step" not in compiled  # carvision was not measured


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
