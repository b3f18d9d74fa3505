"""What disks do to a run's folder, without such disks: their errors are raised, in the words of those who report them."""

import errno
import logging
import os
import threading

import pytest
from safetensors import SafetensorError

from carvision.errors import InputError
from carvision.training import run_folder
from carvision.training.run_folder import disk_errors, lock_folder

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_told_and_used(number, tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "lockf", lockf)
    with lock_folder(tmp_path):
        pass
    assert f"has no locks ([Errno {number}]" in caplog.text


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_folder_that_is_in_use_is_refused(number, tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "lockf", lockf)
    with pytest.raises(InputError, match="another process is training into"):
        lock_folder(tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, FULL), r"run\.dir: no space is left on the disk of"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), r"run\.dir: no space is left"),
        (SafetensorError(f'IoError(Os {{ code: 28, kind: StorageFull, message: "{FULL}" }})'), "no space is left"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), r"run\.dir: the disk of .* fails \(Input/output error\)"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "fails .Read-only file system"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "fails .File too large"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "fails .Stale file handle"),
        (RuntimeError(f"unable to write to file </torch_12_34_0>: {FULL} (28)"), "/dev/shm is too small.*--shm-size=8g"),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                f"RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: {FULL} (28)"
            ),
            r"/dev/shm is too small.*data\.num_workers=0",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            "/dev/shm is too small",
        ),
    ],
)
def test_a_disks_error_is_one_line(error, told, tmp_path):
    with pytest.raises(InputError, match=told) as caught, disk_errors(tmp_path):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.EIO, os.strerror(errno.EIO), "/photos/table.csv"),  # of another disk, perhaps
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
        InputError(f"a download could not be written ({FULL})"),
    ],
)
def test_other_errors_stay_as_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_thread_that_can_not_write_is_told_once(tmp_path, caplog, capsys):
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
