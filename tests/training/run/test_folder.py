"""A run's folder: errors of its disk, its lock, its configuration, the space of its checkpoints."""

import errno
import logging
import os
import shutil
import threading

import pytest
from safetensors import SafetensorError

from carvision.config.compose import is_as_shipped
from carvision.errors import InputError
from carvision.files import locks
from carvision.training.module import LitClassifier
from carvision.training.run.checkpoints import checkpoint_bytes, require_space
from carvision.training.run.folder import disk_errors, flat_config, lock_run_folder, require_same_config, write_config
from tests.small_runs import config
from tests.training.test_module import lit_classifier

FULL = os.strerror(errno.ENOSPC)


def test_a_disk_without_locks_is_reported_and_a_folder_in_use_refused(tmp_path, monkeypatch, caplog):
    def fail_with(number: int) -> None:
        def lockf(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(locks.fcntl, "lockf", lockf)

    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
        fail_with(number)
        with lock_run_folder(tmp_path):
            pass
        assert f"has no locks ([Errno {number}]" in caplog.text
    for number in (errno.EAGAIN, errno.EACCES):
        fail_with(number)
        with pytest.raises(InputError, match="another process is training into"):
            lock_run_folder(tmp_path)


@pytest.mark.parametrize(("error", "line"), [
    (OSError(errno.ENOSPC, FULL), r"run\.dir: no space is left on the disk of"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), r"run\.dir: no space is left"),
    (SafetensorError(f'IoError(Os {{ code: 28, kind: StorageFull, message: "{FULL}" }})'), "no space is left"),
    (OSError(errno.EIO, os.strerror(errno.EIO)), r"run\.dir: the disk of .* fails \(Input/output error\)"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS)), "fails .Read-only file system"),
    (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "fails .File too large"),
    (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "fails .Stale file handle"),
])  # fmt: skip
def test_a_disk_error_is_one_line(error, line, tmp_path):
    with pytest.raises(InputError, match=line) as caught, disk_errors(tmp_path):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.EIO, os.strerror(errno.EIO), "/photos/table.csv"),  # perhaps of another disk
    RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
    InputError(f"a download could not be written ({FULL})"),
])  # fmt: skip
def test_other_errors_stay_as_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_thread_that_cannot_write_is_reported_once(tmp_path, caplog, capsys):
    def failing(error: Exception) -> None:
        raise error

    before = []
    hook, threading.excepthook = threading.excepthook, before.append
    try:
        with caplog.at_level(logging.WARNING), disk_errors(tmp_path):
            for error in (OSError(errno.ENOSPC, FULL), OSError(errno.ENOSPC, FULL), ValueError("a mistake")):
                thread = threading.Thread(target=failing, args=[error])
                thread.start()
                thread.join()
        assert threading.excepthook == before.append
    finally:
        threading.excepthook = hook
    assert [str(args.exc_value) for args in before] == ["a mistake"]
    assert len(caplog.records) == 1 and FULL in caplog.text and capsys.readouterr().err == ""


def test_keys_that_affect_no_result_may_change(tmp_path):
    write_config(config("data.root=/here"), tmp_path)
    free = ["data.root=/there", "data.num_workers=3", "trainer.profiler=simple", "logger=none", "run.max_minutes=1"]
    require_same_config(config(*free), tmp_path)
    with pytest.raises(InputError, match=r"other values: trainer\.accumulate_grad_batches=1 became 2\. Give"):
        require_same_config(config(*free, "trainer.accumulate_grad_batches=2"), tmp_path)


def test_keys_that_an_earlier_version_lacked_count_as_unchanged(tmp_path, caplog):
    earlier = config()
    del earlier["run"]["on_nonfinite_loss"], earlier["optimizer"]["sam_rho"], earlier["augment"]["steps"]["erase"]
    del earlier["trainer"]["accumulate_grad_batches"], earlier["data"]["on_bad_image"]
    del earlier["model"]["heads"]["make"]["activity_l1_reduction"]
    earlier["trainer"]["deterministic"] = earlier.pop("deterministic")
    write_config(earlier, tmp_path)
    with caplog.at_level(logging.INFO):
        require_same_config(config(), tmp_path)
    assert "optimizer.sam_rho" in caplog.text and "not in the run's first start" in caplog.text
    for changed, line in (
        ("optimizer.sam_rho=0.05", "optimizer.sam_rho=None became 0.05"),
        ("deterministic=true", "deterministic=False became True"),
        ("+model/head@model.heads.speed=linear", "model.heads.speed.hidden="),
        ("model.heads.make.activity_l1_reduction=sum", "model.heads.make.activity_l1_reduction=None became sum"),
        ("+optimizer.arguments.amsgrad=true", "optimizer.arguments.amsgrad=None became True"),
    ):
        with pytest.raises(InputError, match=line):
            require_same_config(config(changed), tmp_path)


def test_values_of_conf_are_told_apart_from_those_that_were_given():
    overrides = ["augment=r0", "schedule=r0", "optimizer=sgd", "trainer=ddp", "data=folder", "data.root=/photos"]
    composed = flat_config(config(*overrides))
    for key in ("optimizer.momentum", "augment.steps.hue.turns", "trainer.num_nodes", "data.split.kind", "seed"):
        assert is_as_shipped(key, composed[key]), key
    assert is_as_shipped("model.heads.class.l2", composed["model.heads.class.l2"])
    for key in ("data.root", "data.image_px", "model.backbone"):
        assert not is_as_shipped(key, composed[key]), key


ADAM, SGD = {"name": "adamw", "lr": 0.1}, {"name": "sgd", "lr": 0.1, "momentum": 0.0}


@pytest.mark.parametrize(("phases", "averaged", "weights", "stored"), [
    ([(ADAM, "all")], False, 1, 2),
    ([(ADAM, "all")], True, 2, 2),
    ([({**SGD, "momentum": 0.9}, "all")], False, 1, 1),
    ([(SGD, "all")], False, 1, 0),
    ([(SGD, "all"), (ADAM, "all")], False, 1, 2),
])  # fmt: skip
def test_the_bytes_of_a_checkpoint_depend_on_the_optimizer(phases, averaged, weights, stored):
    lit = lit_of(phases)
    assert checkpoint_bytes(lit, averaged) == 4 * (weights + stored) * size_of(lit)


def test_only_trained_parameters_have_moments():
    frozen = lit_of([(ADAM, "none")])
    trained = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    assert 0 < trained < size_of(frozen)
    assert checkpoint_bytes(frozen, False) == 4 * (size_of(frozen) + 2 * trained)
    later = lit_of([(ADAM, "none"), (ADAM, "all")])
    assert checkpoint_bytes(later, False) == 4 * 3 * size_of(later)


def test_existing_checkpoints_count_as_free_space_once_per_file(tmp_path, monkeypatch):
    lit = lit_of([(ADAM, "all")])
    size = checkpoint_bytes(lit, False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(size))
    (tmp_path / "checkpoints" / "best.ckpt").hardlink_to(tmp_path / "checkpoints" / "last.ckpt")

    def with_free(free: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        with monkeypatch.context() as replaced:
            replaced.setattr(shutil, "disk_usage", lambda path: usage)
            require_space(tmp_path, lit, averaged=False)

    with_free(3 * size)
    with pytest.raises(InputError, match="MB free, and the checkpoints of this network need about"):
        with_free(3 * size - 1000)


def lit_of(phases: list[tuple[dict, str]]) -> LitClassifier:
    lit = lit_classifier()
    named = [{**lit.phases[0], "optimizer": o, "train_layers": layers} for o, layers in phases]
    lit.phases = named
    lit.start_phase(0)
    return lit


def size_of(lit: LitClassifier) -> int:
    return sum(p.numel() for p in lit.parameters())
