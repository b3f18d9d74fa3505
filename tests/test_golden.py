"""Compare what carvision composes and writes with tests/golden, and resume runs of earlier code (scripts/golden.py)."""

import difflib
import importlib.util
import json
import math
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from carvision.config.schema import ALLOWED, check_of
from tests import forked
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
RENEW = "if that is deliberate, scripts/golden.py writes tests/golden anew (see there)"
# Words of an earlier run and search; without data.root, as photos may have moved since
NETWORK = [
    "data.images_per_model=20", "data.image_px=32", "data.num_workers=0", "model.backbone=resnet10_slim",
    "model.backbone_kwargs={channels:[4,4,4,4],stem_width:4,avg_down:false}", "optimizer=sgd",
    "callbacks.progress_bar=false", "logger=none",
]  # fmt: skip
RUN = [
    *NETWORK, "+model/head@model.heads.speed=linear", "phases={head:{epochs:1,train_layers:none},all:{epochs:3}}",
    "trainer.max_epochs=null", "optimizer.lr=0.01", "callbacks.ema_decay=0.9", "callbacks.patience=5",
]  # fmt: skip
# Losses of the same run without an interruption, epoch after epoch
TRAIN_LOSS = [4.34691, 4.49499, 4.43322, 4.35972]
VAL_LOSS = [4.2912, 4.27167, 4.26505, 4.26304]
SEARCH = [
    *NETWORK, "trainer.max_epochs=4", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "augment=choice(none,light)",
    "sweep.trials=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("golden", ROOT / "scripts" / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_equal(found: str, file: str) -> None:
    expected = (GOLDEN / file).read_text(encoding="utf-8")
    lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), "committed", "now", n=1, lineterm="")
    assert found == expected, f"tests/golden/{file}: {RENEW}\n" + "\n".join(lines)


def test_every_command_experiment_and_choice_composes_the_configuration_it_did():
    command = [sys.executable, ROOT / "scripts" / "golden.py", "compose", ROOT]
    require_equal(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout, "configs.yaml")


def test_every_composed_value_is_allowed_and_every_allowed_key_is_composed(golden):
    sections = golden.read_yaml((GOLDEN / "configs.yaml").read_text(encoding="utf-8"))
    sections["phases"] = {"phases.a.epochs": 1, "phases.a.train_layers": "all", "phases.a.optimizer": {}}
    sections["phases"]["phases.a.schedule.name"] = "constant"
    composed = set()
    for section, values in sections.items():
        for key, value in values.items():
            parts = key.split(".")
            for start, index in (("model.heads.", 2), ("phases.", 1)):
                if key.startswith(start):
                    parts[index] = "*"
            composed |= {".".join(parts[:num]) for num in range(1, len(parts) + 1)}
            known = key
            while check_of(known) is None and "." in known:  # up to the mapping that holds the key
                known = known.rpartition(".")[0]
            check, inside = check_of(known), {key.removeprefix(f"{known}."): value}
            if value not in ("???", "(none)", {}):  # "(none)": missing, unlike in the section compared with
                assert check and check(value if known == key else inside) is None, (section, key, value)
    assert set(ALLOWED) - composed == set()


@pytest.mark.slow
def test_commands_write_the_files_columns_and_keys_they_did(golden, demo_photos, tmp_path):
    (tmp_path / "photos").symlink_to(demo_photos)

    def start(command: str, words: list[str]) -> None:
        forked.run(f"carvision.{command}", *words, cwd=tmp_path, check=0, env={"OMP_NUM_THREADS": "1"})

    golden.run_all(start, tmp_path, names=golden.TESTED)
    require_equal(golden.as_yaml(golden.outputs(tmp_path)), "outputs.yaml")


def test_an_earlier_run_that_was_interrupted_inside_an_epoch_is_resumed(run_forked, demo_photos, tmp_path):
    """It was made by the version of carvision that tests/golden was begun with, and is never made anew."""
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "run", run)
    before = (run / "history.csv").read_text(encoding="utf-8")
    words = [*RUN, f"data.root={demo_photos}", f"features.dir={tmp_path / 'features'}"]
    run_forked("carvision.train", *words, f"run.dir={run}", "run.report=false", check=0)
    assert (run / "history.csv").read_text(encoding="utf-8").startswith(before)
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [0, 1, 2, 3] and history["phase"].tolist() == ["head", "all", "all", "all"]
    assert history["train/loss"].tolist() == pytest.approx(TRAIN_LOSS, rel=2e-4)
    assert history["val/loss"].tolist() == pytest.approx(VAL_LOSS, rel=2e-4)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_epoch"] == 3 and math.isfinite(metrics["test"]["loss"])
    assert (run / "model.safetensors").exists()


def test_an_earlier_search_that_was_interrupted_inside_a_trial_is_resumed(run_forked, demo_photos, tmp_path):
    """Like the run. Its first trial was complete, its second had one of four epochs."""
    folder = tmp_path / "search"
    shutil.copytree(GOLDEN / "search", folder)
    histories = [folder / "trials" / name / "history.csv" for name in ("0000", "0001")]
    before = [file.read_text(encoding="utf-8") for file in histories]
    words = [*SEARCH, f"data.root={demo_photos}", f"features.dir={tmp_path / 'features'}"]
    run_forked("carvision.sweep", *words, f"sweep.dir={folder}", check=0)
    table = pd.read_csv(folder / "trials.csv")
    assert table["trial"].tolist() == [0, 1, 2] and set(table["state"]) == {"complete"}
    assert table["epochs"].tolist() == [4, 4, 4]
    for file, text in zip(histories, before, strict=True):
        assert file.read_text(encoding="utf-8").startswith(text)
