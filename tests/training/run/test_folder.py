"""A run's folder: errors of its disk, its lock, its configuration, the space of its checkpoints."""

import errno
import logging
import os
import shutil
import threading
from unittest import mock

import pytest
from safetensors import SafetensorError

from carvision.errors import InputError
from carvision.files import locks
from carvision.training.run.checkpoints import checkpoint_bytes, require_space
from carvision.training.run.folder import disk_errors, lock_run_folder, require_same_config
from tests.small_runs import config
from tests.training.test_module import lit_classifier

FULL = os.strerror(errno.ENOSPC)


def test_a_disk_without_locks_is_reported_and_a_folder_in_use_refused(tmp_path, monkeypatch, caplog):
    failing = mock.Mock()
    monkeypatch.setattr(locks.fcntl, "lockf", failing)
    failing.side_effect = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    with lock_run_folder(tmp_path):
        pass
    assert f"has no locks ([Errno {errno.ENOLCK}]" in caplog.text
    failing.side_effect = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    with pytest.raises(InputError, match="another process is training into"):
        lock_run_folder(tmp_path)


def test_a_disk_error_is_one_line_and_others_stay_as_they_are(tmp_path, caplog):
    for error, line in (
        (OSError(errno.ENOSPC, FULL), r"^run\.dir: no space is left on the disk of.*$"),
        (SafetensorError(f'IoError(Os {{ code: 28, kind: StorageFull, message: "{FULL}" }})'), "no space is left"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), r"^run\.dir: the disk of .* fails \(Input/output error\).*$"),
    ):
        with pytest.raises(InputError, match=line), disk_errors(tmp_path):
            raise error
    with disk_errors(tmp_path):  # of a thread, such as TensorBoard's
        thread = threading.Thread(target=mock.Mock(side_effect=OSError(errno.ENOSPC, FULL)))
        thread.start()
        thread.join()
    assert f"a background writer stopped: [Errno {errno.ENOSPC}] {FULL}" in caplog.text
    for error in (
        OSError(errno.EIO, os.strerror(errno.EIO), "/photos/table.csv"),  # perhaps of another disk
        InputError(f"a download could not be written ({FULL})"),
    ):
        with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value is error


def test_keys_that_affect_no_result_may_change(tmp_path):
    earlier = config("data.root=/here")
    free = ["data.root=/there", "data.num_workers=3", "trainer.profiler=simple", "logger=none", "run.max_minutes=1"]
    require_same_config(config(*free), earlier, tmp_path)
    with pytest.raises(InputError, match=r"other values: trainer\.accumulate_grad_batches=1 became 2\. Give"):
        require_same_config(config(*free, "trainer.accumulate_grad_batches=2"), earlier, tmp_path)


def test_keys_that_an_earlier_version_lacked_count_as_unchanged(tmp_path, caplog):
    earlier = config()
    del earlier["run"]["price_per_hour"], earlier["optimizer"]["sam_rho"], earlier["augment"]["steps"]["erase"]
    del earlier["model"]["heads"]["make"]["activity_l1_reduction"]
    earlier["trainer"]["deterministic"] = earlier.pop("deterministic")
    earlier["run"]["on_nonfinite_loss"] = "skip"  # which is no key any more
    with caplog.at_level(logging.INFO):
        require_same_config(config(), earlier, tmp_path)
    assert "optimizer.sam_rho" in caplog.text and "not in the run's first start" in caplog.text
    for changed, line in (
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
