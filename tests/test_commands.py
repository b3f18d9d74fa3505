"""The commands as people run them: in their own processes, from any folder."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.data.layouts import write_class_folders
from tests.forked import wait_until

TINY = ["data.image_px=32", "data.batch_size=16", "data.num_workers=1"]
TINY += ["data.images_per_model=20", "model.backbone=test_resnet", "model.weights=random"]


def test_train_alone_trains_on_the_demo_data(run_module, demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "trainer.max_epochs=1", *TINY]
    done = run_module("carvision.train", *overrides, check=0)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("run: runs/demo/")
    folder = tmp_path / last.removeprefix("run: ")
    assert "make/top1" in json.loads((folder / "metrics.json").read_text())["test"]
    assert "all heads right" in done.stdout and "marginal" in done.stdout
    assert "Warning" not in done.stderr, done.stderr


def test_ctrl_c_keeps_the_epochs_that_are_done(demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "trainer.max_epochs=500", "run.dir=run", *TINY]
    command = [sys.executable, "-m", "carvision.train", *overrides]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell that runs the tests in the background makes them ignore the signal, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    history, last = tmp_path / "run" / "history.csv", tmp_path / "run" / "checkpoints" / "last.ckpt"
    wait_until(lambda: last.exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "SIGINT: stopping with a checkpoint" in messages and "Traceback" not in messages, messages
    assert "the same command with run.dir=run resumes it" in messages
    assert len(pd.read_csv(history)) >= 1
    assert last.exists() and (tmp_path / "run" / "loss.png").exists()


def test_check_exits_with_1_if_photos_cannot_be_used(run_module, tmp_path):
    done = run_module("carvision.check", "data=folder", "data.root=nowhere", "out=run", check=1)
    [line] = done.stderr.splitlines()  # also for a mistake found late
    assert line.startswith("error: data.root")
    root = tmp_path / "photos"
    write_class_folders(root, {"oak": 4, "ash": 5})
    photos = sorted(root.rglob("*.jpg"))
    done = run_module("carvision.check", "data=folder", f"data.root={root}", "out=good", "num_workers=0", check=0)
    assert done.stdout.splitlines()[-1] == "check: good"
    photos[0].write_bytes(photos[0].read_bytes()[:-40])
    photos[1].write_bytes(b"")
    run_module("carvision.check", "data=folder", f"data.root={root}", "out=bad", "num_workers=1", check=1)
    problems = pd.read_csv(tmp_path / "bad" / "problems.csv")
    assert sorted(problems["path"]) == sorted(str(p.relative_to(root)) for p in photos[:2])
    assert (tmp_path / "bad" / "counts_class.png").exists() and (tmp_path / "bad" / "samples_class.png").exists()


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs_from_any_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("carvision-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import carvision.config.compose as c; print(c.conf_dir())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "carvision" / "conf")
    command = [sys.executable, "-m", "carvision.train", "--cfg", "job", "data=oxford102"]
    shown = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "name: oxford102" in shown.stdout, shown.stderr
    assert {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")} == {
        p.relative_to(site / "carvision" / "conf") for p in (site / "carvision" / "conf").rglob("*.yaml")
    }
