"""carvision.pack as people run it, and as machines end it."""

import json
import os
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT
from tests.data.layouts import write_class_folders


def start(folder, *overrides: str, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "carvision.pack", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **kwargs)


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_killed_in_the_middle_it_goes_on_and_keeps_what_is_finished(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 150, "ash": 150})
    overrides = ["data=folder", "data.root=photos", "shard_mb=0.01", "num_workers=1"]
    whole = start(tmp_path, *overrides, "out=whole")
    _, told = whole.communicate(timeout=120)
    assert whole.returncode == 0, told
    killed = start(tmp_path, *overrides, "out=pack", start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "pack").glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "pack" / "packing").glob("unsplit*.json")}
    assert len(kept) < len(list((tmp_path / "whole").glob("*.tar"))) and not (tmp_path / "pack" / "pack.json").exists()
    again = start(tmp_path, *overrides, "out=pack")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0 and f"{len(kept)} of " in told, told
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")
    for name, when in kept.items():
        assert (tmp_path / "pack" / "packing" / name).stat().st_mtime_ns == when
    index = json.loads((tmp_path / "pack" / "pack.json").read_text())
    assert index["heads"] == ["class"] and index["photos"] == {"unsplit": 300}


def test_verify_names_the_damaged_shard(run_module, tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    overrides = ["data=folder", "data.root=photos", "data.split.kind=stratified", "shard_mb=0.01", "num_workers=0"]
    done = run_module("carvision.pack", *overrides, "out=pack", check=0)
    assert done.stdout.splitlines()[-1] == "pack: pack"
    assert done.stdout.startswith("24 photos, ")
    assert run_module("carvision.pack", "verify=pack", "num_workers=0", check=0).stdout.startswith(
        "All shards are whole"
    )
    shard = tmp_path / "pack" / "val-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    done = run_module("carvision.pack", "verify=pack", "num_workers=0", check=1)
    assert done.stdout.startswith(f"val-00000.tar: it has {shard.stat().st_size:,} bytes instead of")


def test_mistakes_are_one_line_and_import_no_pandas(run_module, tmp_path):
    for overrides, told in (
        (["data=folder", "data.root=photos"], "out: must be given; add out=<folder>"),
        (
            ["data=folder", "data.root=photos", "out=pack", "photos=tiny"],
            "photos: 'tiny' is not one of original, shrunk",
        ),
        (
            ["data=folder", "data.root=photos", "out=pack", "data.split.kind=kfold"],
            "data.split.kind: kfold is for training",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "carvision.pack", *overrides],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        lines = done.stderr.splitlines()
        (error,) = [line for line in lines if not line.startswith("import time:")]
        assert done.returncode == 1 and error.startswith(f"error: {told}")
        assert not any(line.endswith((" torch", " pandas")) for line in lines)
    assert not (tmp_path / "pack").exists()
