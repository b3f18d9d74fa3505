"""Checkpoint files: written atomically, recognised when damaged; a disk that fails."""

import errno
import os
import resource
from unittest import mock

import torch

from carvision.files.atomic import link_or_copy
from carvision.training.run.checkpoints import AtomicCheckpointIO
from carvision.training.run.resume import is_intact
from tests.small_runs import demo, refuse, train
from tests.training.run.test_killed_runs import assert_same_run


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


def test_a_failing_disk_ends_the_run_in_one_line_and_costs_nothing(demo_photos, tmp_path):
    """It takes no file as large as a checkpoint."""
    overrides = [*demo(demo_photos), "optimizer.lr=0.01"]
    whole = train(tmp_path / "whole", *overrides)
    folder = train(tmp_path / "run", *overrides, "run.max_epochs_per_start=1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        refuse(r"the disk of .* fails \(File too large\).* the same command .* resumes the run", folder, *overrides)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*folder.rglob("*.partial")]
    assert_same_run(train(folder, *overrides), whole)


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    (tmp_path / "best.ckpt").write_bytes(b"123")
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(errno.EPERM, "Operation not permitted")))
    link_or_copy(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == b"123" and len([*tmp_path.iterdir()]) == 2
