"""Training with a metric loss: its steps, metrics, saved proxies, and refusals."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from carvision.errors import InputError
from carvision.metrics.neighbours import Embedded, NeighbourMetrics
from carvision.training.build import build_datamodule, build_lit_classifier
from tests.small_runs import config, demo, train


def built(photos, *overrides: str):
    cfg = config(*demo(photos), *overrides)
    datamodule = build_datamodule(cfg, None)
    return datamodule, build_lit_classifier(cfg, datamodule.table)


def first_batch(datamodule) -> dict:
    return next(iter(datamodule.train_dataloader()))


@pytest.mark.parametrize("name", ["triplet", "coupled_clusters", "sub_centre_arcface", "proxy_anchor"])
def test_a_step_adds_the_weighted_metric_loss_to_the_heads_losses(demo_photos, name):
    datamodule, lit = built(demo_photos, f"metric_loss={name}", "metric_loss.weight=0.25", "augment=none")
    batch = first_batch(datamodule)
    if name in ("triplet", "coupled_clusters", "supcon"):
        assert torch.unique(batch["targets"]["model"], return_counts=True)[1].tolist() == [4, 4, 4, 4]
    lit.eval()
    with torch.no_grad():
        images = batch["images"].float() / 255
        outputs = lit.outputs(images, torch.full((16,), 1 / 16))
        heads = sum(
            torch.nn.functional.cross_entropy(outputs.logits[head], batch["targets"][head])
            for head in ("make", "model")
        )
        values = outputs.cosines if "arcface" in name or name == "proxy_anchor" else outputs.embeddings
        counts = torch.ones(16, dtype=torch.bool)
        expected = heads + 0.25 * lit.metric_learning.loss(values, batch["targets"]["model"], counts)
        torch.testing.assert_close(lit._step(images, batch, None), expected)
    assert outputs.embeddings.shape == (16, 128)
    assert (lit.model.proxies is not None) == ("arcface" in name or name == "proxy_anchor")
    if name == "sub_centre_arcface":
        assert lit.model.proxies.weight.shape == (12, 3, 128)


def test_photos_of_unknown_class_and_unreadable_ones_do_not_count(demo_photos):
    datamodule, lit = built(demo_photos, "metric_loss=triplet", "augment=none")
    batch = first_batch(datamodule)
    lit.eval()
    outputs = lit.outputs(batch["images"].float() / 255, torch.full((16,), 1 / 16))
    batch["targets"]["model"][:3] = -1
    batch["valid"][3:5] = False
    found = lit.metric_learning.embedded(outputs, batch["targets"], batch["valid"])
    rest = [values[5:] for values in (outputs.embeddings, batch["targets"]["model"], batch["valid"])]
    torch.testing.assert_close(found.loss, lit.metric_learning.loss(*rest))
    assert found.counts.tolist() == [False] * 5 + [True] * 11


@pytest.fixture(scope="module")
def trained(demo_photos, tmp_path_factory):
    """A run of two epochs with ArcFace, and heads that are probes."""
    overrides = ["metric_loss=arcface", "metric_loss.heads=probe", "optimizer.lr=0.003", "model.trunk.hidden=[16]"]
    return train(tmp_path_factory.mktemp("arcface") / "run", *demo(demo_photos), *overrides)


def test_the_best_epoch_has_the_best_neighbours(trained):
    history, metrics = pd.read_csv(trained / "history.csv"), json.loads((trained / "metrics.json").read_text())
    names = {f"{split}/embedding/loss" for split in ("train", "val")}
    names |= {f"val/embedding/{name}" for name in ("recall_at_1", "map_at_r")}
    assert names <= set(history) and "train/embedding/map_at_r" not in history
    assert metrics["best_epoch"] == history["val/embedding/map_at_r"].idxmax()
    assert 0 < metrics["test"]["embedding/map_at_r"] < metrics["test"]["embedding/recall_at_1"] <= 1
    losses = metrics["val"]["make/loss"] + metrics["val"]["model/loss"] + metrics["val"]["embedding/loss"]
    assert metrics["val"]["loss"] == pytest.approx(losses, rel=1e-5)
    assert "nearest neighbours in %" in (trained / "results.txt").read_text()


def test_proxies_are_saved_with_the_model_and_in_the_checkpoint(trained):
    model = carvision.load(trained)
    assert model.proxies.weight.shape == (12, 1, 128)
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["model.proxies.weight"], model.proxies.weight)
    assert model.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_the_neighbour_metrics_equal_naive_loops():
    generator = torch.Generator().manual_seed(0)
    x, targets = torch.randn(9, 4, generator=generator), torch.tensor([0, 0, 1, 1, 1, 2, -1, 0, 1])
    counts = (targets >= 0) & (torch.arange(9) != 7)
    metrics = NeighbourMetrics()
    for part in (slice(0, 4), slice(4, 9)):
        metrics.update(Embedded(torch.tensor(0.0), x[part], targets[part], counts[part]))
    cosines = torch.cosine_similarity(x[:, None], x[None], dim=2)
    first, precisions = [], []
    for i in np.flatnonzero(counts):
        others = [j for j in np.flatnonzero(counts) if j != i]
        order = sorted(others, key=lambda j: -float(cosines[i, j]))
        right = [bool(targets[j] == targets[i]) for j in order]
        if any(right):
            num = sum(right)
            first.append(right[0])
            precisions.append(sum(sum(right[: n + 1]) / (n + 1) for n in range(num) if right[n]) / num)
    assert metrics.compute() == pytest.approx({"recall_at_1": np.mean(first), "map_at_r": np.mean(precisions)})
    assert len(first) == 6  # class 2 has one photo


def test_an_embedding_trains_on_cached_features_as_through_the_backbone(demo_photos, tmp_path):
    overrides = ["metric_loss=triplet", "augment=none", "model.train_layers=none", "optimizer.lr=0.01"]
    kept = train(tmp_path / "kept", *demo(demo_photos), *overrides, "features.keep=true")
    plain = train(tmp_path / "plain", *demo(demo_photos), *overrides, "features.keep=false")
    assert "features of 240 photos" in (kept / "run.log").read_text()
    ours, theirs = (pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (kept, plain))
    np.testing.assert_allclose(ours.to_numpy(float), theirs.to_numpy(float), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_triplet_loss_alone_converges_on_the_demo_data(demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "data.images_per_model=20", "data.batch_size=32", "data.num_workers=0"]
    overrides += ["data.split.kind=stratified", "data.split.fractions=[0.6,0.35,0.05]", "data.image_px=64"]
    cfg = [*overrides, "metric_loss=triplet", "metric_loss.heads=probe", "model.backbone=resnet10_slim"]
    run = train(tmp_path / "run", *cfg, "trainer.max_epochs=30", "optimizer.lr=0.003", "run.test=false")
    neighbours = pd.read_csv(run / "history.csv")["val/embedding/map_at_r"]
    assert neighbours.iloc[-5:].mean() > 2.5 * neighbours.iloc[0]


def test_a_linear_start_does_not_train_the_embedding(demo_photos, tmp_path):
    overrides = ["metric_loss=triplet", "model.trunk.hidden=[8]", "model.start=linear", "augment=none"]
    overrides += ["trainer.max_epochs=1"]
    run = train(tmp_path / "run", *demo(demo_photos), *overrides, "optimizer.lr=1e-9", "run.test=false")
    model = carvision.load(run)
    torch.manual_seed(0)
    expected = built(demo_photos, *overrides[:2])[1].model
    ours, theirs = (each.embedding.layers.blocks[0][0].weight for each in (model, expected))
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(model.trunk.blocks[0][0].weight, expected.trunk.blocks[0][0].weight)


def test_another_label_can_be_separated(demo_photos):
    datamodule, lit = built(demo_photos, "metric_loss=arcface", "metric_loss.label=make", "data.sampler=per_class")
    assert lit.model.proxies.weight.shape[0] == 4
    for batch in datamodule.train_dataloader():
        assert torch.unique(batch["targets"]["make"], return_counts=True)[1].tolist() == [4, 4, 4, 4]


ONE_VALIDATION_PHOTO = [
    "metric_loss=arcface", "data.split.kind=stratified", "data.split.fractions=[0.9,0.05,0.05]",
    "data.split.keep_groups=false",
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "line"), [
    (["model.embedding.hidden=[8]"], "model.embedding.hidden: nothing would train these layers; choose a metric_loss"),
    (["model.difference.hidden=[8]"], "model.difference.hidden: nothing would train these layers"),
    (["metric_loss=triplet", "model.embedding.hidden=[]", "model.difference.hidden=[8]"],
     "model.difference.hidden: joins the trunk in model.embedding"),
    (["metric_loss=triplet", "augment=mixup"], "augment.mixup: metric losses need one class per photo"),
    (["metric_loss=triplet", "metric_loss.label=modle"], "metric_loss.label: 'modle' is no label of demo with classes"),
    (["metric_loss=triplet", "metric_loss.label=speed"], "metric_loss.label: 'speed' is no label of demo with classes"),
    (["metric_loss=triplet", "data.batch_size=18"], "data.batch_size: 18"),
    (["metric_loss=arcface", "data.batch_size=auto"], "data.batch_size: auto does not know the batches"),
    (ONE_VALIDATION_PHOTO,
     "callbacks.monitor: val/embedding/map_at_r is not defined, as no model has two validation photos"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(demo_photos, overrides, line):
    with pytest.raises(InputError) as caught:
        built(demo_photos, *overrides)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value), str(caught.value)
