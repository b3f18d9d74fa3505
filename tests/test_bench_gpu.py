"""scripts/bench_gpu.py: a whole benchmark on the CPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_benchmark_runs_on_the_cpu(tmp_path):
    options = "--networks=test_resnet --image-px=32 --batch-size=8 --photos=64 --epochs=2 --repeats=1 --workers=1"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench_gpu.py", "--device=cpu", "--out=bench", *options.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert row["of_step"] == row["carvision"]["images_per_s"] / row["step"]["images_per_s"] > 0
    measures = [json.loads(text) for text in (tmp_path / "bench" / "measures.jsonl").read_text().splitlines()]
    assert [measure["kind"] for measure in measures] == ["step", "carvision", "timm"]
