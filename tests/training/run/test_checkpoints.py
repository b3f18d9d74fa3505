"""Checkpoint files: written atomically, recognised when damaged; a disk that is full or read-only."""

import errno
import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch

from carvision.files.atomic import link_or_copy
from carvision.training.run.checkpoints import AtomicCheckpointIO, Output
from carvision.training.run.resume import is_intact
from tests.conftest import ROOT


def test_a_checkpoint_is_read_as_it_was_written_and_damage_is_found(tmp_path):
    weights = torch.randn(300, 100)
    checkpoint = {"state_dict": {"w": weights, "tied": weights, "part": weights[:10]}, "note": [1, 2.5, None]}
    io, file = AtomicCheckpointIO(), tmp_path / "sub" / "last.ckpt"
    io.save_checkpoint(checkpoint, file)
    again = io.load_checkpoint(file)  # with torch's safe default
    assert again["note"] == checkpoint["note"] and torch.equal(again["state_dict"]["w"], weights)
    content = file.read_bytes()
    assert is_intact(file) and len(content) < 1.1 * 4 * 300 * 100  # memory that tensors share is written once
    for index in (int(share * len(content)) for share in (0.1, 0.5, 0.9)):
        for damaged in (content[:index] + bytes([content[index] ^ 0x40]) + content[index + 1 :], content[:index]):
            file.write_bytes(damaged)
            assert not is_intact(file)


def test_a_failed_write_leaves_the_earlier_checkpoint_alone(tmp_path, monkeypatch):
    io, file = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, file)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(Output, "write", lambda self, data: setattr(self, "error", full.side_effect) or full())
    with pytest.raises(OSError, match="No space left on device"):
        io.save_checkpoint({"epoch": 2}, file)
    assert [*tmp_path.iterdir()] == [file] and io.load_checkpoint(file) == {"epoch": 1}


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    last.write_bytes(b"123")
    best.write_bytes(b"old")
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(errno.EPERM, "Operation not permitted")))
    link_or_copy(last, best)
    assert best.read_bytes() == b"123" and best.stat().st_ino != last.stat().st_ino
    assert {*tmp_path.iterdir()} == {last, best}


@pytest.mark.slow
def test_a_small_disk_costs_no_run(demo_photos, tmp_path):
    """A real one, in a mount namespace of its own."""
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
