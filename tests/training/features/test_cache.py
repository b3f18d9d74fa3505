"""Training on cached features equals training through the backbone, and reads each photo once; their folder."""

import json
import os
import shutil
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from carvision.config.schema import random_transforms
from carvision.data.loading import dataset
from carvision.errors import InputError
from carvision.files.arrays import ArrayWriter
from carvision.training.features.store import feature_file, make_room, open_features
from tests.small_runs import config, demo, train
from tests.training.distributed.processes import write_manifest
from tests.training.run.test_resume import cut, start_and_cut  # noqa: F401 - cut is a fixture

FROZEN = ["model.train_layers=none", "augment=none", "optimizer.lr=0.01", "logger=none", "trainer.max_epochs=2"]
LAYERS = ["model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "model.trunk.batch_norm=true", "model.trunk.l2=0.01"]
AVERAGED = ["callbacks.ema_decay=0.9", "loss.class_weights=balanced", "loss.label_smoothing=0.1"]
SAMPLED = ["data.sampler=balanced", "data.epoch_fraction=0.5", "loss.head_weights=learned", "optimizer.sam_rho=0.05"]
NECK = ["model.neck=[spatial_dropout,attention]", "model.pool=gem", "metric_loss=triplet"]


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets every photo opened."""
    opened, real = [], dataset.read_file
    monkeypatch.setattr(dataset, "read_file", lambda path: opened.append(path) or real(path))
    return opened


def weights_of(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same(ours, theirs, exactly: bool = True) -> None:
    """Require equal histories, weights and test metrics; not exactly: up to the rounding of float32."""
    close = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    history = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*history, **close)
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), **close)
    test = [json.loads((folder / "metrics.json").read_text())["test"] for folder in (ours, theirs)]
    assert test[0] == pytest.approx(test[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("overrides", [[], [*LAYERS, *AVERAGED], SAMPLED, NECK], ids=["plain", "deep", "drawn", "neck"])
def test_a_run_equals_that_through_the_backbone_and_reads_each_photo_once(overrides, demo_photos, decoded, tmp_path):
    overrides = [*demo(demo_photos), *FROZEN, f"features.dir={tmp_path / 'kept'}", *overrides]
    kept = train(tmp_path / "kept_run", *overrides)
    assert len(decoded) == len(set(decoded)) == 240
    decoded.clear()
    again = train(tmp_path / "again", *overrides)
    assert not decoded
    plain = train(tmp_path / "plain_run", *overrides, "features.keep=false")
    assert len(decoded) > 240
    # test_resnet takes other kernels for the smaller batches of validation than for those of training
    assert_same(kept, again)
    assert_same(kept, plain, exactly=False)
    seconds = json.loads((kept / "metrics.json").read_text())["seconds"]
    assert 0 < seconds["features"] < seconds["training"]


def test_a_later_phase_that_trains_the_backbone_reads_photos_again(demo_photos, decoded, tmp_path):
    overrides = [
        *demo(demo_photos), *FROZEN[1:3], f"features.dir={tmp_path / 'kept'}", "trainer.max_epochs=null",
        "+phases.head={epochs: 2, train_layers: none}", "+phases.all={epochs: 1, optimizer: {lr: 0.001}}",
        "callbacks.mode=max",  # of the loss: the last epoch is best, with another backbone
    ]  # fmt: skip
    ours = train(tmp_path / "ours", *overrides)
    num = pd.read_csv(ours / "splits.csv")["split"].value_counts()
    # one pass of train and val, then an epoch of both, and test
    assert len(decoded) == num["train"] + num["val"] + -(-num["train"] // 16) * 16 + num["val"] + num["test"]
    assert_same(ours, train(tmp_path / "theirs", *overrides, "features.keep=false"), exactly=False)


def test_equal_batch_sizes_give_equal_bits_also_after_an_interruption(cut, demo_photos, decoded, tmp_path):  # noqa: F811
    overrides = [*demo(demo_photos), *FROZEN, *LAYERS, "model.backbone=mobilenetv2_035"]
    train(tmp_path / "plain", *overrides, "features.keep=false")
    overrides += [f"features.dir={tmp_path / 'kept'}"]
    train(tmp_path / "whole", *overrides)
    whole, plain = (weights_of(tmp_path / name) for name in ("whole", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in whole.items())
    decoded.clear()
    cut(1, 3)
    start_and_cut(tmp_path / "parts", *overrides)
    train(tmp_path / "parts", *overrides)
    assert not decoded
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_unreadable_photos_and_unknown_labels(tmp_path, decoded):
    """Skip, blank and error, from the pass and from the file that it left."""
    data = write_manifest(tmp_path / "data", {"train": 30, "val": 9, "test": 7}, bad=True)
    overrides = [*data, *FROZEN, *LAYERS, f"features.dir={tmp_path / 'kept'}"]
    for mode in ("skip", "blank"):
        own = [*overrides, f"data.on_bad_image={mode}"]
        kept, again = (train(tmp_path / f"{mode}_{number}", *own) for number in (1, 2))
        plain = train(tmp_path / f"{mode}_plain", *own, "features.keep=false")
        assert_same(kept, plain, exactly=False)
        assert_same(kept, again)
        bad = [set(pd.read_csv(folder / "bad_images.csv")["path"]) for folder in (kept, again, plain)]
        assert bad[0] == bad[1] == bad[2] and len(bad[0]) == 6
    with pytest.raises(InputError, match=r"photos/\w+.png: not a supported image format. Fix the photo"):
        train(tmp_path / "error", *overrides, "data.on_bad_image=error")
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_other_photos_weights_sizes_and_damaged_files_need_other_features(demo_photos, decoded, tmp_path):
    shutil.copytree(demo_photos, tmp_path / "data")
    overrides = [*demo(tmp_path / "data"), *FROZEN, f"features.dir={tmp_path / 'kept'}", "trainer.max_epochs=1"]
    train(tmp_path / "first", *overrides)
    (file,) = (tmp_path / "kept").iterdir()
    photo = next((tmp_path / "data").rglob("*.jpg"))
    content = bytearray(file.read_bytes())
    content[-1000] ^= 255
    for change in ("seed=1", "data.image_px=40", "data.crop_to_box=false", "damaged", "touched"):
        decoded.clear()
        if change == "damaged":
            file.write_bytes(content)
        elif change == "touched":
            photo.write_bytes(photo.read_bytes())  # changes its time
        train(tmp_path / change, *overrides, *([change] if "=" in change else []))
        assert len(decoded) == 240, change
    assert "is damaged" in (tmp_path / "damaged" / "run.log").read_text()
    assert_same(tmp_path / "first", tmp_path / "damaged")


def test_a_full_disk_and_a_small_limit_keep_features_in_memory(demo_photos, decoded, tmp_path, monkeypatch):
    overrides = [*demo(demo_photos), *FROZEN, f"features.dir={tmp_path / 'kept'}"]
    limited = train(tmp_path / "limited", *overrides, "features.max_gb=0")
    assert "for this run alone: nothing is cached on the disk" in (limited / "run.log").read_text()
    assert len(decoded) == 240 and not (tmp_path / "kept").exists()
    monkeypatch.setattr(os, "posix_fallocate", mock.Mock(side_effect=OSError(28, "No space left on device")))
    assert "No space left on device" in (train(tmp_path / "full", *overrides) / "run.log").read_text()
    assert len(decoded) == 2 * 240 and not list((tmp_path / "kept").iterdir())
    monkeypatch.setattr("carvision.training.features.cache.MAX_MEMORY_BYTES", 10)
    assert "can't be cached" in (train(tmp_path / "large", *overrides) / "run.log").read_text()
    assert len(decoded) > 2 * 240 + 2 * 145
    assert_same(limited, tmp_path / "full")
    assert_same(limited, tmp_path / "large", exactly=False)


def test_with_augmentation_only_features_of_validation_and_test_are_cached(demo_photos, decoded, tmp_path):
    overrides = [*demo(demo_photos), *FROZEN, "augment=light", f"features.dir={tmp_path / 'kept'}"]
    folder = train(tmp_path / "run", *overrides)
    num = pd.read_csv(folder / "splits.csv")["split"].value_counts()
    assert len(decoded) == 2 * 16 * -(-num["train"] // 16) + num["val"] + num["test"]
    assert "training photos change (augment.order=[flip], augment.crop_scale=" in (folder / "run.log").read_text()


def test_random_transforms_are_named_and_features_keep_refused_if_nothing_can_be_cached(demo_photos, tmp_path):
    assert random_transforms(config("augment=none", "augment.order=[flip]", "augment.steps.flip.p=0")) is None
    for word in ("augment.cutmix=1.0", "data.resize=crop"):
        assert random_transforms(config("augment=none", word)) == word
    for word, reason in (("augment=light", r"is not possible with augment\.order=\[flip\]"),
                         ("model.train_layers=all", "needs a phase with a frozen backbone")):  # fmt: skip
        with pytest.raises(InputError, match=rf"^features\.keep: true {reason}"):
            train(tmp_path / "run", *demo(demo_photos), *FROZEN, "features.keep=true", word)


def write_features(file) -> None:
    with ArrayWriter(file, "float32") as new:
        new.append(np.ones((100, 10)))
        new.finish({"bad": {}, "seconds_per_photo": 0.1})


def test_the_least_recently_used_files_make_room(tmp_path):
    files = [feature_file(str(tmp_path), name * 32) for name in "abcd"]
    for age, file in enumerate(files):
        write_features(file)
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
    write_features(ours)
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
