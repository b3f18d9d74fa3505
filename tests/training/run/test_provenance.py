"""environment.json: versions, hardware and command of each start of a run."""

import hashlib
import json
import sys

from carvision.system.versions import name_of, requirements
from tests.small_runs import demo, train


def test_a_resumed_run_records_both_starts(demo_photos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "carvision.train", "run.dir=a b"])
    train(run, *demo(demo_photos), "run.max_epochs_per_start=1", "seed=3", "logger=none")
    train(run, *demo(demo_photos), "seed=3", "data.num_workers=1", "logger=none")
    first, second = json.loads((run / "environment.json").read_text())
    assert first["command"] == "python -m carvision.train 'run.dir=a b'"
    assert first["time"] <= second["time"] and first["seed"] == second["seed"] == 3
    digest = hashlib.sha256((run / "splits.csv").read_bytes()).hexdigest()
    assert first["splits_sha256"] == second["splits_sha256"] == digest
    assert {name_of(line) for line in requirements()} <= set(first["versions"])
    assert first["deterministic"] is False and first["precision"] == "32-true"
    assert first["world_size"] == 1 and first["devices"] == ["cpu"] and first["num_threads"] >= 1
    assert set(first["carvision"]) == {"version", "commit", "changed"}
    assert not list(run.glob("*.partial"))
