"""Feature files: written atomically, refused if damaged, at most so many."""

import logging
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from carvision.training.features import store


def write(file, rows: np.ndarray, bad: dict | None = None) -> None:
    new = store.FeatureFileWriter(file, rows.shape, str(rows.dtype))
    new.rows[:] = rows
    new.finish(bad or {})
    new.abandon()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4, 3, 3), "float32"), ((7, 2), "float64")])
def test_features_are_read_as_they_were_written(shape, dtype, tmp_path):
    rows = np.random.default_rng(0).normal(size=shape).astype(dtype)
    write(tmp_path / "sub" / "a.safetensors", rows, {1: "is no photo: déjà vu"})
    features = store.open_features(tmp_path / "sub" / "a.safetensors")
    assert np.array_equal(features.rows.numpy(), rows) and features.rows.numpy().dtype == dtype
    assert features.bad == {1: "is no photo: déjà vu"}
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["a.safetensors"]
    assert np.array_equal(load_file(tmp_path / "sub" / "a.safetensors")["features"].numpy(), rows)  # by anybody


def test_a_damaged_file_is_not_used(tmp_path, caplog):
    file = tmp_path / "a.safetensors"
    assert store.open_features(file) is None and not caplog.text  # missing
    write(file, np.ones((3, 2), np.float32), {2: "is empty"})
    content = file.read_bytes()
    for index in (0, 5, 40, 4096, 4103, -1, None):
        damaged = bytearray(content[:-3] if index is None else content)
        damaged[index or 0] ^= index is not None
        file.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.open_features(file) is None, index
        assert f"{file} is damaged" in caplog.text


def test_two_writers_of_the_same_file_do_not_disturb_each_other(tmp_path):
    file, rows = tmp_path / "a.safetensors", np.arange(6, dtype=np.float32).reshape(3, 2)
    first, second = store.FeatureFileWriter(file, (3, 2), "float32"), store.FeatureFileWriter(file, (3, 2), "float32")
    first.rows[:], second.rows[:2] = rows, rows[:2]
    first.finish({})
    taken = store.open_features(file)
    second.rows[2:] = rows[2:]
    second.finish({})
    assert torch.equal(taken.rows, store.open_features(file).rows)
    store.FeatureFileWriter(file, (3, 2), "float32").abandon()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_least_recently_used_files_make_room(tmp_path):
    files = [tmp_path / f"{name * 32}.safetensors" for name in "abcd"]
    for age, file in enumerate(files):
        write(file, np.ones((100, 10), np.float32))
        os.utime(file, (1e9 - age, 1e9 - age))
    size = files[0].stat().st_size
    store.open_features(files[3])  # the oldest has just been used
    old, new = (tmp_path / f"{'e' * 32}.{number}.0123abcd.partial" for number in (1, 2))
    old.touch()
    new.touch()
    os.utime(old, (1e9, 1e9))
    store.make_room(tmp_path, 3 * size, needed=size)
    assert {*tmp_path.iterdir()} == {files[0], files[3], new}


def test_files_of_others_neither_count_nor_are_deleted(tmp_path):
    """Even if named like ours: weights may be named by a digest, too."""
    ours = tmp_path / f"{'a' * 32}.safetensors"
    write(ours, np.ones((100, 10), np.float32))
    size = ours.stat().st_size
    strange = [tmp_path / name for name in ("resnet50.safetensors", f"{'b' * 32}.safetensors", "film.mkv.partial")]
    strange += [tmp_path / f"{'c' * 32}.safetensors", tmp_path / f"{'d' * 32}.safetensors", tmp_path / "notes.txt"]
    for file in strange:
        save_file({"features": torch.zeros(5000)}, file)
        os.utime(file, (1e9, 1e9))
    strange[3].write_bytes(b"")
    strange[4].unlink()
    strange[4].symlink_to(strange[0])
    store.make_room(tmp_path, size)
    assert ours.exists()
    store.make_room(tmp_path, 0)
    assert {*tmp_path.iterdir()} == {*strange}


def test_the_folder_follows_the_key_or_the_environment(monkeypatch):
    monkeypatch.delenv("CARVISION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert store.features_folder(None).as_posix() == "/xdg/carvision/features"
    monkeypatch.setenv("CARVISION_CACHE", "/own")
    assert [store.features_folder(key).as_posix() for key in (None, "/a")] == ["/own/features", "/a"]


def test_the_digest_of_weights_changes_with_every_change():
    zeros, plain = torch.zeros(2, 3), torch.randn(2, 3, 4, 4)
    weights = [{"a": zeros}, {"a": zeros + 1}, {"a": zeros.T}, {"a": zeros.double()}, {"c": zeros}]
    assert len({store.digest_of_tensors(tensors) for tensors in weights}) == 5
    layouts = [plain, plain.to(memory_format=torch.channels_last)]
    assert len({store.digest_of_tensors({"a": tensor}) for tensor in layouts}) == 1
