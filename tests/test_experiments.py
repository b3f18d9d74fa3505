"""Every experiment builds its network on the meta device; one of each family trains, on miniature data.

Their values: tests/test_golden.py, with tests/golden/configs.yaml. Report R0's curve: tests/training/test_optim.py.
"""

import logging
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch

from carvision.config.compose import compose_alone, options_of, plain_config
from carvision.models.classifier import head_module
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.optim import build_phases
from tests.data import layouts

EXPERIMENTS = options_of("experiment")
SMALL = [
    "data.image_px=96",  # InceptionV3 and Inception-ResNet take no less than 75
    "data.batch_size=2", "data.num_workers=0", "data.allow_missing=true", "model.weights=random",
    "trainer.precision=32-true",
]  # fmt: skip
# One of each family: what only it trains with, and a smaller network of the same kind where its own is large.
TRAINED = {
    "compcars_focal": ["model.backbone=tf_efficientnet_b0"],  # R0: heads with layers and L2, augment=r0, r0_peak
    "compcars_drdl": ["model.backbone=resnet18"],  # coupled clusters, a difference branch, per_class batches
    "cars196_unseen": ["model.backbone=resnet18"],  # proxy anchor, heads that are probes, unseen classes
    "cars196_transfer2": ["model.backbone=resnet18"],  # R2: focal loss by softmax, one head
    "cars196_scratch_custom": [],  # leaky ReLU, batch norm as in Keras, no biases
    "stanford_cars_small_cnn_tuned": [],  # R1: the neck's blocks, augment=r1, plateau, crops to boxes
    "stanford_cars_finetuned": [],  # two heads on all layers, weight decay
    "oxford102_mobilenetv2": [],  # R4: a frozen backbone, penalties on weights and on activities
    "oxford102_benchmark": [],  # RMSprop, a share of the photos an epoch
    "ten_classes_mobilenetv2": [],  # R3: folders, phases
    "linear": [],  # heads alone, label smoothing; the linear start: tests/training/features/test_linear_start.py
    "fast": [],  # layer-wise rates, frozen statistics
    "quick": [],  # the same, after a phase of the heads alone
}


@pytest.fixture(scope="module")
def photos(demo_photos, tmp_path_factory):
    """{data.name: its folder} of photos in the layouts that the experiments read."""
    root = tmp_path_factory.mktemp("photos")
    layouts.write_stanford_mats(root / "stanford_cars", rows=layouts.many_stanford_rows(8, 2))
    layouts.write_oxford102(root / "oxford102", repeats=3)
    layouts.write_class_folders(root / "folder", {f"{top}/{name}": 8 for top in ("train", "val") for name in "ab"})
    drawn = dict.fromkeys(("compcars", "demo"), demo_photos)
    return {name: root / name for name in ("stanford_cars", "oxford102", "folder")} | drawn


def config(experiment: str, *overrides: str) -> dict:
    return plain_config(compose_alone("train", [f"experiment={experiment}", *SMALL, *overrides]))


def config_with_photos(experiment: str, photos: dict, *overrides: str) -> dict:
    cfg = config(experiment, "data.root=.", *overrides)
    cfg["data"]["root"] = str(photos[cfg["data"]["name"]])
    if cfg["data"]["name"] == "demo":
        cfg["data"]["images_per_model"] = 20
    if cfg["data"]["sampler"] == "per_class":
        cfg["data"]["batch_size"] = 8  # two classes
    return cfg


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_its_network_and_trains_what_its_phases_say(experiment, photos):
    """The meta device needs no memory for weights or activations: the largest networks take a second."""
    cfg = config_with_photos(experiment, photos)
    datamodule = build_datamodule(cfg, None)
    table = datamodule.table
    with torch.device("meta"):
        lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
        images = torch.zeros(2, 3, 96, 96)
    trained_before = None
    for number in range(len(lit.phases)):
        lit.start_phase(number)
        optimizer = lit.create_phase_optimizer()
        trained = {name: parameter for name, parameter in lit.model.named_parameters() if parameter.requires_grad}
        in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert in_optimizer == {id(parameter) for parameter in trained.values()}
        assert {f"{head_module(name)}.output.weight" for name in cfg["model"]["heads"]} <= trained.keys()
        assert trained.keys() != trained_before, "a phase that trains what the one before trained"
        trained_before = trained.keys()
    with mock.patch.object(lit.model, "proxies", None):  # they turn autocast off, which torch can't for meta tensors
        outputs = lit.model.train().outputs(images)
    shapes = {name: tuple(logits.shape) for name, logits in outputs.logits.items()}
    assert shapes == {name: (2, len(table.labels[name])) for name in cfg["model"]["heads"]}
    assert all(logits.requires_grad for logits in outputs.logits.values()) and outputs.penalty.shape == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("experiment", TRAINED)
def test_one_experiment_of_each_family_takes_two_steps_of_each_phase(experiment, photos):
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cfg = config_with_photos(experiment, photos, *TRAINED[experiment])
    datamodule = build_datamodule(cfg, None)
    lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
    for number in range(len(lit.phases)):
        lit.start_phase(number)
        before = {name: (p.requires_grad, p.detach().clone()) for name, p in lit.model.named_parameters()}
        pl.Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            use_distributed_sampler=False,
        ).fit(lit, datamodule)  # fmt: skip
        now = dict(lit.model.named_parameters())
        assert all(value.isfinite().all() for value in now.values())
        assert all(is_trained or torch.equal(now[name], value) for name, (is_trained, value) in before.items())
        assert any(is_trained and not torch.equal(now[name], value) for name, (is_trained, value) in before.items())


@pytest.mark.parametrize("experiment", ["linear", "fast"])
def test_recipes_take_any_photos(experiment):
    for words in (["data=folder"], ["data=manifest", "data.file=table.csv", "data.labels=[make]"]):
        assert config(experiment, *words, "data.root=.")["model"]["start"] == "linear"
