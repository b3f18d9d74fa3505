"""Training on cached features equals training through the backbone, and reads each photo once."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import carvision
from carvision.config.schema import random_transforms
from carvision.data.loading import dataset
from carvision.errors import InputError
from carvision.training.features import store
from carvision.training.features.cache import padded_batches
from tests.small_runs import config, demo, train
from tests.training.distributed.processes import write_manifest
from tests.training.run.test_resume import cut, start_and_cut  # noqa: F401 - cut is a fixture

FROZEN = ["model.train_layers=none", "augment=none", "optimizer.lr=0.01", "logger=none", "trainer.max_epochs=2"]
LAYERS = ["model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "model.trunk.batch_norm=true", "model.trunk.l2=0.01"]
AVERAGED = ["callbacks.ema_decay=0.9", "loss.class_weights=balanced", "loss.label_smoothing=0.1"]
SAMPLED = ["data.sampler=balanced", "data.epoch_fraction=0.5", "loss.head_weights=learned", "optimizer.sam_rho=0.05"]
NECK = ["model.neck=[spatial_dropout,attention]", "model.pool=gem"]


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets the name of every photo opened."""
    names, real = [], dataset.read_file

    def read_file(path):
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(dataset, "read_file", read_file)
    return names


def assert_same(ours, theirs, exactly: bool = True) -> None:
    """Require equal histories, weights and test metrics; not exactly: up to the rounding of float32."""
    close = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    history = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*history, **close)
    last = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (ours, theirs)]
    for name, value in last[0]["state_dict"].items():
        torch.testing.assert_close(value, last[1]["state_dict"][name], msg=name, **close)
    test = [json.loads((folder / "metrics.json").read_text())["test"] for folder in (ours, theirs)]
    assert test[0] == pytest.approx(test[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("overrides", [[], [*LAYERS, *AVERAGED], SAMPLED, NECK], ids=["plain", "deep", "drawn", "neck"])
def test_a_run_equals_that_through_the_backbone_and_reads_each_photo_once(overrides, demo_photos, decoded, tmp_path):
    overrides = [*demo(demo_photos), *FROZEN, f"features.dir={tmp_path / 'kept'}", *overrides]
    train(tmp_path / "kept_run", *overrides)
    assert len(decoded) == len(set(decoded)) == 240
    decoded.clear()
    train(tmp_path / "again", *overrides)
    assert not decoded
    train(tmp_path / "plain_run", *overrides, "features.keep=false")
    assert len(decoded) > 240
    # test_resnet takes other kernels for the smaller batches of validation than for those of training
    assert_same(tmp_path / "kept_run", tmp_path / "again")
    assert_same(tmp_path / "kept_run", tmp_path / "plain_run", exactly=False)
    seconds = json.loads((tmp_path / "kept_run" / "metrics.json").read_text())["seconds"]
    assert 0 < seconds["features"] < seconds["training"]
    log = (tmp_path / "kept_run" / "run.log").read_text()
    assert "computing the features of 240 photos, once" in log and str(tmp_path / "kept") in log
    assert carvision.load(tmp_path / "kept_run")(torch.zeros(2, 3, 32, 32))["model"].shape == (2, 12)


def test_equal_batch_sizes_give_equal_bits(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *FROZEN, "model.backbone=mobilenetv2_035", "trainer.max_epochs=1"]
    train(tmp_path / "kept", *overrides, f"features.dir={tmp_path / 'features'}")
    train(tmp_path / "plain", *overrides, "features.keep=false")
    last = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("kept", "plain")]
    assert all(torch.equal(value, last[1]["state_dict"][name]) for name, value in last[0]["state_dict"].items())


def test_a_later_phase_that_trains_the_backbone_reads_photos_again(demo_photos, decoded, tmp_path):
    phases = [
        "+phases.head={epochs: 2, train_layers: none}", "+phases.all={epochs: 1, optimizer: {lr: 0.001}}",
        "trainer.max_epochs=null", "callbacks.mode=max",  # of the loss: the last epoch is best, with another backbone
    ]  # fmt: skip
    overrides = [*demo(demo_photos), *FROZEN[1:3], *phases, f"features.dir={tmp_path / 'kept'}"]
    train(tmp_path / "ours", *overrides)
    num = {split: len(part) for split, part in pd.read_csv(tmp_path / "ours" / "splits.csv").groupby("split")}
    steps = -(-num["train"] // 16)
    # one pass of train and val, then an epoch of both, and test
    assert len(decoded) == num["train"] + num["val"] + steps * 16 + num["val"] + num["test"]
    train(tmp_path / "theirs", *overrides, "features.keep=false")
    assert_same(tmp_path / "ours", tmp_path / "theirs", exactly=False)


def test_a_run_interrupted_inside_an_epoch_resumes_from_the_file(cut, demo_photos, decoded, tmp_path):  # noqa: F811
    overrides = [*demo(demo_photos), *FROZEN, *LAYERS, f"features.dir={tmp_path / 'kept'}"]
    train(tmp_path / "whole", *overrides)
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
        runs = {name: tmp_path / f"{mode}_{name}" for name in ("kept", "again", "plain")}
        for name, folder in runs.items():
            extra = ["features.keep=false"] if name == "plain" else []
            train(folder, *overrides, f"data.on_bad_image={mode}", *extra)
        assert_same(runs["kept"], runs["plain"], exactly=False)
        assert_same(runs["kept"], runs["again"])
        bad = [set(pd.read_csv(folder / "bad_images.csv")["path"]) for folder in runs.values()]
        assert bad[0] == bad[1] == bad[2] and len(bad[0]) == 6
    with pytest.raises(InputError, match=r"photos/\w+.png: not a supported image format. Fix the photo"):
        train(tmp_path / "error", *overrides, "data.on_bad_image=error")
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_folds_share_one_file(demo_photos, decoded, tmp_path):
    folds = ["data.split.kind=kfold", "data.split.num_folds=3", "data.split.val_fraction=0.2"]
    train(tmp_path / "run", *demo(demo_photos), *FROZEN, *folds, f"features.dir={tmp_path / 'kept'}")
    assert len(decoded) == 240 and len(list((tmp_path / "kept").iterdir())) == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]["features"] > 0


def test_other_photos_weights_and_sizes_need_other_features(demo_photos, decoded, tmp_path):
    shutil.copytree(demo_photos, tmp_path / "data")
    overrides = [*demo(tmp_path / "data"), *FROZEN, f"features.dir={tmp_path / 'kept'}", "trainer.max_epochs=1"]
    train(tmp_path / "first", *overrides)
    photo = next((tmp_path / "data").rglob("*.jpg"))
    changes = ["seed=1", "data.image_px=40", "model.mean=[0.1,0.1,0.1]", "data.crop_to_box=false"]
    for number, change in enumerate(changes):
        decoded.clear()
        train(tmp_path / str(number), *overrides, change)
        assert len(decoded) == 240, change
    photo.write_bytes(photo.read_bytes())  # changes its time
    decoded.clear()
    train(tmp_path / "touched", *overrides)
    assert len(decoded) == 240


def test_a_damaged_file_is_recomputed(demo_photos, decoded, tmp_path):
    overrides = [*demo(demo_photos), *FROZEN, f"features.dir={tmp_path / 'kept'}", "trainer.max_epochs=1"]
    train(tmp_path / "first", *overrides)
    (file,) = (tmp_path / "kept").iterdir()
    content = bytearray(file.read_bytes())
    content[-1000] ^= 255
    file.write_bytes(content)
    decoded.clear()
    train(tmp_path / "second", *overrides)
    assert len(decoded) == 240 and "is damaged" in (tmp_path / "second" / "run.log").read_text()
    assert_same(tmp_path / "first", tmp_path / "second")


def test_a_full_disk_and_a_small_limit_keep_features_in_memory(demo_photos, decoded, tmp_path, monkeypatch):
    overrides = [*demo(demo_photos), *FROZEN, "trainer.max_epochs=2"]
    train(tmp_path / "limited", *overrides, f"features.dir={tmp_path / 'kept'}", "features.max_gb=0")
    assert len(decoded) == 240 and not (tmp_path / "kept").exists()
    assert "for this run alone: nothing is cached on the disk" in (tmp_path / "limited" / "run.log").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_allocate", full)
    decoded.clear()
    train(tmp_path / "full", *overrides, f"features.dir={tmp_path / 'kept'}")
    assert len(decoded) == 240 and not list((tmp_path / "kept").iterdir())
    assert "No space left on device" in (tmp_path / "full" / "run.log").read_text()
    monkeypatch.setattr("carvision.training.features.cache.MAX_MEMORY_BYTES", 10)
    decoded.clear()
    train(tmp_path / "large", *overrides, f"features.dir={tmp_path / 'kept'}")
    assert len(decoded) > 2 * 145 and "can't be cached" in (tmp_path / "large" / "run.log").read_text()
    assert_same(tmp_path / "limited", tmp_path / "full")
    assert_same(tmp_path / "limited", tmp_path / "large", exactly=False)


def test_with_augmentation_only_features_of_validation_and_test_are_cached(demo_photos, decoded, tmp_path):
    train(tmp_path / "run", *demo(demo_photos), *FROZEN, "augment=light", f"features.dir={tmp_path / 'kept'}")
    counts = pd.read_csv(tmp_path / "run" / "splits.csv")["split"].value_counts()
    assert len(decoded) == 2 * 16 * -(-counts["train"] // 16) + counts["val"] + counts["test"]
    log = (tmp_path / "run" / "run.log").read_text()
    assert "training photos change (augment.order=[flip], augment.crop_scale=[0.6, 1.0]" in log
    assert "augment=none caches their features" in log


def test_random_transforms_are_named():
    for overrides, named in (
        ([], None), (["augment.order=[flip]", "augment.steps.flip.p=0"], None),
        (["augment.mixup=0.2", "augment.mix_p=0"], None), (["augment.order=[flip]"], "augment.order=[flip]"),
        (["augment.crop_scale=[0.9,1]"], "augment.crop_scale=[0.9, 1]"), (["augment.cutmix=1.0"], "augment.cutmix=1.0"),
        (["data.resize=crop"], "data.resize=crop"),
    ):  # fmt: skip
        assert random_transforms(config("augment=none", *overrides)) == named


@pytest.mark.parametrize(("override", "line"), [
    ("augment=light", "features.keep: true is not possible with augment.order=[flip]"),
    ("model.train_layers=all", "features.keep: true needs a phase with a frozen backbone"),
])  # fmt: skip
def test_features_keep_is_refused_if_nothing_can_be_cached(override, line, demo_photos, tmp_path):
    with pytest.raises(InputError) as refused:
        train(tmp_path / "run", *demo(demo_photos), *FROZEN, "features.keep=true", override)
    assert str(refused.value).startswith(line) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("num", "batch_size", "world_size"), [(10, 4, 1), (10, 4, 3), (24, 4, 3), (1, 8, 2)])
def test_gathered_batches_of_all_processes_are_the_rows_in_order(num, batch_size, world_size):
    of_each = [padded_batches(num, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in of_each}) == 1
    assert all(len(batch) == batch_size for batches in of_each for batch in batches)
    order = [row for parts in zip(*of_each, strict=True) for keys in zip(*parts, strict=True) for row, _ in keys]
    assert order[:num] == list(range(num)) and set(order[num:]) <= {-1}
