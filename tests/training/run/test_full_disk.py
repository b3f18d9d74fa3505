"""Disks that are full or can be read only: real ones, small, in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_small_disk_costs_no_run(demo_photos, tmp_path):
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.mkdir()
    other.mkdir()
    mount = f"mount -t tmpfs -o size=23m tmpfs {disk}"
    tried = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True)
    if not tried or tried.returncode:
        pytest.skip("this machine lets nobody mount a small disk (unshare -rm)")
    script = f"{mount} && exec {sys.executable} -m tests.training.run.small_disk {disk} {demo_photos} {other}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all is well", done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr
    assert "a background writer stopped: [Errno 28] No space left on device" in done.stderr
