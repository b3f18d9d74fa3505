"""The folder of cached features: at most so many bytes, and others' files stay."""

import os

import numpy as np
import torch

from carvision.files.arrays import ArrayWriter
from carvision.training.features.store import digest_of_tensors, feature_file, make_room, open_features


def write(file) -> None:
    with ArrayWriter(file, "float32") as new:
        new.append(np.ones((100, 10)))
        new.finish({"bad": {}})


def test_the_least_recently_used_files_make_room(tmp_path):
    files = [feature_file(str(tmp_path), name * 32) for name in "abcd"]
    for age, file in enumerate(files):
        write(file)
        os.utime(file, (1e9 - age, 1e9 - age))
    size = files[0].stat().st_size
    open_features(files[3])  # the oldest has just been used
    partials = [ArrayWriter(feature_file(str(tmp_path), "e" * 32), "float32").partial for _ in range(2)]
    for partial in partials:
        partial.touch()
    os.utime(partials[0], (1e9, 1e9))
    make_room(tmp_path, 3 * size, needed=size)
    assert {*tmp_path.iterdir()} == {files[0], files[3], partials[1]}


def test_files_of_others_neither_count_nor_are_deleted(tmp_path):
    ours = feature_file(str(tmp_path), "a" * 32)
    write(ours)
    names = f"embeddings.npy {'b' * 32}.npy carvision-{'c' * 31}.npy film.mkv.partial {'d' * 32}.safetensors".split()
    strange = [tmp_path / name for name in names]
    for file in strange:
        file.write_bytes(bytes(5000))
        os.utime(file, (1e9, 1e9))
    link = feature_file(str(tmp_path), "f" * 32)
    link.symlink_to(strange[0])
    make_room(tmp_path, ours.stat().st_size)
    assert ours.exists()
    make_room(tmp_path, 0)
    assert {*tmp_path.iterdir()} == {*strange, link}


def test_the_digest_of_weights_changes_with_every_change():
    zeros, plain = torch.zeros(2, 3), torch.randn(2, 3, 4, 4)
    weights = [{"a": zeros}, {"a": zeros + 1}, {"a": zeros.T}, {"a": zeros.double()}, {"c": zeros}]
    assert len({digest_of_tensors(tensors) for tensors in weights}) == 5
    by_channel = plain.to(memory_format=torch.channels_last)
    assert digest_of_tensors({"a": plain}) == digest_of_tensors({"a": by_channel})
