"""Every experiment of conf/experiment composes, builds its network and trains, on miniature data in its layout."""

import logging
import math
import re
import warnings

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from carvision.config import conf_dir, plain_config
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.schedules import lr_factor
from tests.data import layouts

EXPERIMENTS = sorted(file.stem for file in (conf_dir() / "experiment").glob("*.yaml"))
SMALL = {
    "data.image_px": "96",  # InceptionV3 and Inception-ResNet take no less than 75
    "data.batch_size": "2",
    "data.num_workers": "0",
    "data.allow_missing": "true",
    "model.weights": "random",
    "trainer.precision": "32-true",
}


@pytest.fixture(scope="module")
def photos(demo_photos, tmp_path_factory):
    """{data.name: its folder}, with photos in the layout that the experiments read."""
    root = tmp_path_factory.mktemp("photos")
    layouts.write_stanford_mats(root / "stanford_cars", rows=layouts.many_stanford_rows(8, 2))
    layouts.write_oxford102(root / "oxford102", repeats=3)
    layouts.write_class_folders(root / "folder", {f"{top}/{name}": 8 for top in ("train", "val") for name in "ab"})
    return {name: root / name for name in ("stanford_cars", "oxford102", "folder")} | {
        "compcars": demo_photos,
        "demo": demo_photos,
    }


def config(experiment: str, *overrides: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        small = [f"{key}={value}" for key, value in SMALL.items()]
        return plain_config(compose("train", overrides=[f"experiment={experiment}", *small, *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_two_steps_of_each_phase(experiment, photos):
    name = config(experiment, "data.root=.")["data"]["name"]
    few = ["data.images_per_model=20"] if name == "demo" else []
    if config(experiment, "data.root=.")["data"]["sampler"] == "per_class":
        few.append("data.batch_size=8")  # two classes
    cfg = config(experiment, f"data.root={photos[name]}", *few)
    datamodule = build_datamodule(cfg, None)
    lit = build_lit_classifier(cfg, datamodule.table)
    trained_before = None
    for number in range(len(lit.hparams.phases)):
        lit.start_phase(number)
        trained = {name: p.detach().clone() for name, p in lit.model.named_parameters() if p.requires_grad}
        frozen = {name: p.detach().clone() for name, p in lit.model.named_parameters() if not p.requires_grad}
        fit_two_steps(lit, datamodule)
        now = dict(lit.model.named_parameters())
        assert all(value.isfinite().all() for value in now.values())
        assert all(torch.equal(now[name], value) for name, value in frozen.items())
        assert any(not torch.equal(now[name], value) for name, value in trained.items())
        assert trained.keys() != trained_before, "a phase that trains what the one before trained"
        trained_before = trained.keys()


def fit_two_steps(lit: pl.LightningModule, datamodule: pl.LightningDataModule) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(lit, datamodule)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_header_has_the_command_and_what_it_reproduces_or_reached(experiment):
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text()
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert f"python -m carvision.train experiment={experiment} " in header
    assert re.search(r"Report R[0-4]|Measured", header)


def of_report(pattern: str) -> list[str]:
    return [name for name in EXPERIMENTS if re.fullmatch(pattern, name)]


def test_all_networks_and_settings_of_the_reports_are_there():
    assert of_report("compcars_.*") == ["compcars_baseline", "compcars_drdl", "compcars_focal", "compcars_optimal"]
    r1 = "alexnet|vgg16|resnet50|densenet121|imagenet|efficientnet_b0|inception_v3|small_cnn"
    assert len(of_report(f"stanford_cars_({r1})")) == len(of_report(f"stanford_cars_({r1})_tuned")) == 8
    assert len(of_report("cars196_(transfer[123]|scratch_(resnet50|vgg16|custom))")) == 6
    assert of_report("ten_classes_mobilenetv2")
    r4 = "mobilenetv2|vgg16|vgg19|inception_resnet_v2|mobilenet|xception|resnet50|inception_v3|densenet201|nasnet"
    assert len(of_report(f"oxford102_({r4}|benchmark|finetune_densenet201)")) == 12


REPORTED = "compcars_.*|cars196_.*|ten_classes_.*|oxford102_.*|stanford_cars_.*"


@pytest.mark.parametrize("experiment", of_report(REPORTED))
def test_what_was_reported_or_measured_begins_with_random_heads(experiment):
    model = config(experiment, "data.root=.", "model.weights=pretrained")["model"]
    assert model["start"] == "random"


@pytest.mark.parametrize("data", ["demo", "folder", "stanford_cars", "oxford102", "compcars", "manifest"])
@pytest.mark.parametrize("experiment", ["linear", "fast"])
def test_recipes_take_any_photos(experiment, data):
    own = {"manifest": ["data.file=table.csv", "data.labels=[make]"]}.get(data, [])
    cfg = config(experiment, f"data={data}", "data.root=.", *own)
    assert cfg["model"]["start"] == "linear" and cfg["data"]["name"] == data


def test_settings_that_the_reports_state():
    """A few that a slip in a shared file would change in many experiments."""
    baseline, focal = config("compcars_baseline", "data.root=."), config("compcars_focal", "data.root=.")
    assert baseline["trainer"]["max_epochs"] == 80 and baseline["data"]["split"]["fractions"] == [0.675, 0.225, 0.1]
    assert focal["model"]["trunk"]["hidden"] == [512] and focal["model"]["heads"]["model"]["l2"] == 1e-3
    assert (focal["loss"]["form"], focal["loss"]["alpha"], focal["loss"]["gamma"]) == ("binary_of_softmax", 0.25, 2.0)
    third = config("cars196_transfer3", "data.root=.")
    assert third["loss"]["name"] == "cross_entropy" and third["model"]["trunk"]["hidden"] == [4096, 4096]
    assert third["model"]["trunk"]["bias"] is False and list(third["model"]["heads"]) == ["model"]
    flowers = config("oxford102_vgg19", "data.root=.")
    assert flowers["model"]["trunk"] | {"dropout": 0.0} == flowers["model"]["trunk"]
    assert (flowers["model"]["trunk"]["l2"], flowers["model"]["trunk"]["activity_l1"]) == (0.01, 0.001)
    assert flowers["optimizer"]["eps"] == 1e-7 and flowers["data"]["epoch_fraction"] == 0.5
    tuning = config("oxford102_finetune_densenet201", "data.root=.")["phases"]
    assert list(tuning) == ["head", "top_block"] and tuning["top_block"]["optimizer"]["lr"] == 1e-4


def test_r0_trains_by_its_curve_and_is_judged_with_penalties():
    """Its code has the peak 0.1, whatever rate the optimizer was given."""
    for name in ("compcars_baseline", "compcars_optimal", "compcars_focal"):
        cfg = config(name, "data.root=.")
        schedule = {key: value for key, value in cfg["schedule"].items() if key != "name"}
        factor = lr_factor("r0", cfg["optimizer"]["lr"], num_steps=40, steps_per_epoch=1, **schedule)
        rates = [cfg["optimizer"]["lr"] * factor(epoch) for epoch in range(40)]
        assert rates[:2] == pytest.approx([1e-6, 1e-6 + (0.1 - 1e-6) / 6])
        assert rates[39] == pytest.approx(0.1 * math.exp(-3.9))
        assert (cfg["callbacks"]["monitor"], cfg["callbacks"]["mode"]) == ("val/loss_total", "min")
        assert (cfg["model"]["mean"], cfg["model"]["std"]) == ([0.0] * 3, [1.0] * 3)
    constant = config("compcars_optimal", "data.root=.", "schedule=constant")
    assert constant["schedule"] == {"name": "constant"} and constant["optimizer"]["lr"] == 1e-3


def test_r1_keeps_by_top3_and_stops_by_loss():
    callbacks = config("stanford_cars_vgg16", "data.root=.")["callbacks"]
    assert (callbacks["monitor"], callbacks["mode"], callbacks["patience"]) == ("val/model/top3", "max", 5)
    assert (callbacks["stop_monitor"], callbacks["stop_mode"]) == ("val/loss", "min")
    for name in of_report("stanford_cars_.*_tuned"):
        cfg = config(name, "data.root=.", "model.weights=pretrained")
        destroys = cfg["optimizer"]["name"] != "sgd" and cfg["optimizer"]["lr"] > 5e-4
        assert not destroys or name in ("stanford_cars_alexnet_tuned", "stanford_cars_small_cnn_tuned")


def test_r4_sums_the_activities_over_the_batch_and_drdl_trains_on_all_of_part_1():
    assert config("oxford102_nasnet", "data.root=.")["model"]["trunk"]["activity_l1_reduction"] == "sum"
    split = config("compcars_drdl", "data.root=.")["data"]["split"]
    assert split["kind"] == "official" and split["test_as_train"]
