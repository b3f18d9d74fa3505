"""Training on kept features is training through the backbone: the same figures and weights, and no photo read twice."""

import json
import shutil
from pathlib import Path

import numpy as np
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

FROZEN = ["model.train_layers=none", "augment=none", "optimizer.lr=0.01", "logger=none", "trainer.max_epochs=3"]
LAYERS = ["model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "model.trunk.batch_norm=true", "model.trunk.l2=0.01"]
AVERAGED = ["callbacks.ema_decay=0.9", "loss.class_weights=balanced", "loss.label_smoothing=0.1"]
SAMPLED = ["data.sampler=balanced", "data.epoch_fraction=0.5", "loss.head_weights=learned", "optimizer.sam_rho=0.05"]
NECK = ["model.neck=[spatial_dropout,attention]", "model.pool=gem"]


@pytest.fixture
def decoded(monkeypatch):
    """A list to which the name of every photo is added that is opened."""
    names, real = [], dataset.read_file

    def read_file(path):
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(dataset, "read_file", read_file)
    return names


def assert_same(ours, theirs, exactly: bool = True) -> None:
    """History, weights and test figures. Not exactly: but for the rounding of float32."""
    close = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    history = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*history, **close)
    last = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (ours, theirs)]
    for name, value in last[0]["state_dict"].items():
        torch.testing.assert_close(value, last[1]["state_dict"][name], msg=name, **close)
    test = [json.loads((folder / "metrics.json").read_text())["test"] for folder in (ours, theirs)]
    assert test[0] == pytest.approx(test[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("overrides", [[], [*LAYERS, *AVERAGED], SAMPLED, NECK], ids=["plain", "deep", "drawn", "neck"])
def test_the_run_is_that_through_the_backbone_and_reads_each_photo_once(overrides, demo_photos, decoded, tmp_path):
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
    told = (tmp_path / "kept_run" / "run.log").read_text()
    assert "computing the features of 240 photos, once" in told and str(tmp_path / "kept") in told


def test_batches_of_one_size_give_the_same_to_the_bit(demo_photos, tmp_path):
    """145 photos train: nine batches of 16 and one of which one place is new."""
    overrides = [*demo(demo_photos), *FROZEN, "model.backbone=mobilenetv2_035", "data.image_px=64"]
    train(tmp_path / "kept", *overrides, f"features.dir={tmp_path / 'features'}")
    train(tmp_path / "plain", *overrides, "features.keep=false")
    last = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("kept", "plain")]
    assert all(torch.equal(value, last[1]["state_dict"][name]) for name, value in last[0]["state_dict"].items())


def test_later_phases_go_through_the_backbone_again(demo_photos, decoded, tmp_path):
    phases = [
        "+phases.head={epochs: 2, train_layers: none}",
        "+phases.all={epochs: 1, optimizer: {lr: 0.001}}",
        "trainer.max_epochs=null",
        "callbacks.mode=max",  # of the loss: the last epoch's, whose backbone is another
    ]
    overrides = [*demo(demo_photos), *FROZEN[1:3], *phases, f"features.dir={tmp_path / 'kept'}"]
    train(tmp_path / "ours", *overrides)
    num = {split: len(part) for split, part in pd.read_csv(tmp_path / "ours" / "splits.csv").groupby("split")}
    steps = -(-num["train"] // 16)
    # one pass of train and val, then an epoch of both, and test
    assert len(decoded) == num["train"] + num["val"] + steps * 16 + num["val"] + num["test"]
    train(tmp_path / "theirs", *overrides, "features.keep=false")
    assert_same(tmp_path / "ours", tmp_path / "theirs", exactly=False)


def test_cut_inside_an_epoch_it_goes_on_from_the_file(cut, demo_photos, decoded, tmp_path):  # noqa: F811
    overrides = [*demo(demo_photos), *FROZEN, *LAYERS, f"features.dir={tmp_path / 'kept'}"]
    train(tmp_path / "whole", *overrides)
    decoded.clear()
    cut(1, 3)
    start_and_cut(tmp_path / "parts", *overrides)
    train(tmp_path / "parts", *overrides)
    assert not decoded
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_photos_that_cannot_be_read_and_unknown_labels(tmp_path, decoded):
    """skip, blank and error, from the pass and from the file that it left."""
    data = write_manifest(tmp_path / "data", {"train": 30, "val": 9, "test": 7}, bad=True)
    overrides = [*data, *FROZEN, *LAYERS, f"features.dir={tmp_path / 'kept'}"]
    for mode in ("skip", "blank"):
        for name, extra in {"kept": [], "again": [], "plain": ["features.keep=false"]}.items():
            train(tmp_path / f"{mode}_{name}", *overrides, f"data.on_bad_image={mode}", *extra)
        assert_same(tmp_path / f"{mode}_kept", tmp_path / f"{mode}_plain", exactly=False)
        assert_same(tmp_path / f"{mode}_kept", tmp_path / f"{mode}_again")
        lists = [
            set(pd.read_csv(tmp_path / f"{mode}_{n}" / "bad_images.csv")["path"]) for n in ("kept", "again", "plain")
        ]
        assert lists[0] == lists[1] == lists[2] and len(lists[0]) == 6
    with pytest.raises(InputError, match=r"photos/\w+.png: not a photo in any format known. Fix the photo"):
        train(tmp_path / "error", *overrides, "data.on_bad_image=error")
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_folds_share_one_file(demo_photos, decoded, tmp_path):
    folds = ["data.split.kind=kfold", "data.split.num_folds=3", "data.split.val_fraction=0.2"]
    train(tmp_path / "run", *demo(demo_photos), *FROZEN, *folds, f"features.dir={tmp_path / 'kept'}")
    assert len(decoded) == 240 and len(list((tmp_path / "kept").iterdir())) == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]["features"] > 0


def test_other_photos_weights_and_sizes_are_other_features(demo_photos, decoded, tmp_path):
    shutil.copytree(demo_photos, tmp_path / "data")
    overrides = [*demo(tmp_path / "data"), *FROZEN, f"features.dir={tmp_path / 'kept'}", "trainer.max_epochs=1"]
    train(tmp_path / "first", *overrides)
    photo = next((tmp_path / "data").rglob("*.jpg"))
    for number, change in enumerate(
        ["seed=1", "data.image_px=40", "model.mean=[0.1,0.1,0.1]", "data.crop_to_box=false"]
    ):
        decoded.clear()
        train(tmp_path / str(number), *overrides, change)
        assert len(decoded) == 240, change
    photo.write_bytes(photo.read_bytes())  # another time of change
    decoded.clear()
    train(tmp_path / "touched", *overrides)
    assert len(decoded) == 240


def test_a_damaged_file_is_computed_anew(demo_photos, decoded, tmp_path):
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


def test_a_full_disk_and_a_small_limit_keep_them_in_memory(demo_photos, decoded, tmp_path, monkeypatch):
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


def test_the_model_that_comes_out_is_whole(demo_photos, tmp_path):
    train(tmp_path / "run", *demo(demo_photos), *FROZEN)
    model = carvision.load(tmp_path / "run")
    assert model(torch.zeros(2, 3, 32, 32))["model"].shape == (2, 12)


def test_augmented_photos_keep_the_features_of_validation_alone(demo_photos, decoded, tmp_path):
    train(tmp_path / "run", *demo(demo_photos), *FROZEN, "augment=light", f"features.dir={tmp_path / 'kept'}")
    counts = pd.read_csv(tmp_path / "run" / "splits.csv")["split"].value_counts()
    assert len(decoded) == 3 * 16 * -(-counts["train"] // 16) + counts["val"] + counts["test"]
    told = (tmp_path / "run" / "run.log").read_text()
    assert "training photos change (augment.order=[flip], augment.crop_scale=[0.6, 1.0]" in told
    assert "with augment=none their features are cached" in told


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["augment=none"], None),
        (["augment=none", "augment.order=[flip]", "augment.steps.flip.p=0"], None),
        (["augment=none", "augment.mixup=0.2", "augment.mix_p=0"], None),
        (["augment=none", "augment.order=[flip]"], "augment.order=[flip]"),
        (["augment=none", "augment.crop_scale=[0.9,1]"], "augment.crop_scale=[0.9, 1]"),
        (["augment=none", "augment.cutmix=1.0"], "augment.cutmix=1.0"),
        (["augment=none", "data.resize=crop"], "data.resize=crop"),
    ],
)
def test_what_changes_photos_is_named(overrides, what):
    assert random_transforms(config(*overrides)) == what


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["augment=light"], "features.keep: true is not possible with augment.order=[flip]"),
        (["model.train_layers=all"], "features.keep: true needs a phase with a frozen backbone"),
    ],
)
def test_where_nothing_can_be_kept_true_is_refused(overrides, line, demo_photos, tmp_path):
    with pytest.raises(InputError) as caught:
        train(tmp_path / "run", *demo(demo_photos), *FROZEN, "features.keep=true", *overrides)
    assert str(caught.value).startswith(line) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("num", "batch_size", "world_size"), [(10, 4, 1), (10, 4, 3), (24, 4, 3), (1, 8, 2)])
def test_processes_share_the_rows_so_that_they_come_back_in_order(num, batch_size, world_size):
    of_each = [padded_batches(num, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in of_each}) == 1
    assert all(len(batch) == batch_size for batches in of_each for batch in batches)
    order = [  # as gather_rows puts them together
        row for parts in zip(*of_each, strict=True) for places in zip(*parts, strict=True) for row, _ in places
    ]
    assert order[:num] == list(range(num)) and set(order[num:]) <= {-1}
    assert np.count_nonzero(np.array(order) >= 0) == num
