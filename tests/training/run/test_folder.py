"""A run's folder: errors of its disk, its lock, its configuration, its checkpoints and their space."""

import errno
import logging
import os
import resource
import shutil
import threading
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError

from carvision.errors import InputError
from carvision.files import locks
from carvision.files.atomic import link_or_copy
from carvision.training.run.checkpoints import AtomicCheckpointIO, checkpoint_bytes, require_space
from carvision.training.run.folder import disk_errors, lock_run_folder, require_same_config
from carvision.training.run.resume import is_intact
from tests.small_runs import config, demo, refuse, train
from tests.training.run.test_killed_runs import assert_same_run
from tests.training.test_module import lit_classifier

FULL = os.strerror(errno.ENOSPC)


def test_a_disk_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    failing = mock.Mock(side_effect=OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)))
    monkeypatch.setattr(locks.fcntl, "lockf", failing)
    with lock_run_folder(tmp_path):
        pass
    assert f"has no locks ([Errno {errno.ENOLCK}]" in caplog.text


def test_a_disk_error_is_one_line_and_others_stay_as_they_are(tmp_path, caplog):
    for error, line in (
        (OSError(errno.ENOSPC, FULL), r"^run\.dir: no space is left on the disk of.*$"),
        (SafetensorError(f'IoError(Os {{ code: 28, kind: StorageFull, message: "{FULL}" }})'), "no space is left"),
    ):
        with pytest.raises(InputError, match=line), disk_errors(tmp_path):
            raise error
    with disk_errors(tmp_path):  # of a thread, such as TensorBoard's
        thread = threading.Thread(target=mock.Mock(side_effect=OSError(errno.ENOSPC, FULL)))
        thread.start()
        thread.join()
    assert f"a background writer stopped: [Errno {errno.ENOSPC}] {FULL}" in caplog.text
    other = OSError(errno.EIO, os.strerror(errno.EIO), "/photos/table.csv")  # perhaps of another disk
    with pytest.raises(OSError, match=r"table\.csv"), disk_errors(tmp_path):
        raise other


def test_keys_without_effect_may_change_and_those_of_later_versions_count_as_unchanged(tmp_path, caplog):
    free = ["data.root=/there", "data.num_workers=3", "trainer.profiler=simple", "logger=none", "run.max_minutes=1"]
    require_same_config(config(*free), config("data.root=/here"), tmp_path)
    earlier = config()
    del earlier["run"]["price_per_hour"], earlier["optimizer"]["sam_rho"], earlier["augment"]["steps"]["erase"]
    del earlier["model"]["heads"]["make"]["activity_l1_reduction"]
    earlier["trainer"]["deterministic"] = earlier.pop("deterministic")
    earlier["run"]["on_nonfinite_loss"] = "skip"  # which is no key any more
    with caplog.at_level(logging.INFO):
        require_same_config(config(), earlier, tmp_path)
    assert "optimizer.sam_rho" in caplog.text and "not in the run's first start" in caplog.text
    for changed, line in (
        ("trainer.accumulate_grad_batches=2", r"other values: trainer\.accumulate_grad_batches=1 became 2\. Give"),
        ("optimizer.sam_rho=0.05", "optimizer.sam_rho=None became 0.05"),
        ("deterministic=true", "deterministic=False became True"),
        ("model.heads.make.activity_l1_reduction=sum", "model.heads.make.activity_l1_reduction=None became sum"),
    ):
        with pytest.raises(InputError, match=line):
            require_same_config(config(changed), earlier, tmp_path)


def test_existing_checkpoints_count_as_free_space_once_per_file(tmp_path, monkeypatch):
    lit = lit_classifier()
    size = checkpoint_bytes(lit, False)
    assert size == 4 * 3 * sum(p.numel() for p in lit.parameters())  # with the two moments of AdamW
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(size))
    (tmp_path / "checkpoints" / "best.ckpt").hardlink_to(tmp_path / "checkpoints" / "last.ckpt")
    usage = mock.Mock(return_value=mock.Mock(free=2 * size + 1))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_space(tmp_path, lit, averaged=False)
    usage.return_value.free -= 1000
    with pytest.raises(InputError, match="MB free, and the checkpoints of this network need about"):
        require_space(tmp_path, lit, averaged=False)


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
