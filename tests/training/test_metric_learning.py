"""Training with a metric loss: its steps, metrics, saved proxies, and refusals."""

import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import carvision
from carvision.errors import InputError
from carvision.metrics.neighbours import Embedded, NeighbourMetrics, leave_one_out_metrics
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.optim import build_phases
from tests.small_runs import config, demo, train


def built(photos, *overrides: str):
    cfg = config(*demo(photos), *overrides)
    datamodule = build_datamodule(cfg, None)
    return datamodule, build_lit_classifier(cfg, datamodule, build_phases(cfg))


@pytest.mark.parametrize("name", ["triplet", "coupled_clusters", "sub_centre_arcface", "proxy_anchor"])
def test_a_step_adds_the_weighted_metric_loss_to_the_heads_losses(demo_photos, name):
    datamodule, lit = built(demo_photos, f"metric_loss={name}", "metric_loss.weight=0.25", "augment=none")
    batch = next(iter(datamodule.train_dataloader()))
    if name in ("triplet", "coupled_clusters"):
        assert torch.unique(batch["targets"]["model"], return_counts=True)[1].tolist() == [4, 4, 4, 4]
    lit.eval()
    with torch.no_grad():
        images = batch["images"].float() / 255
        outputs = lit.outputs(images, torch.full((16,), 1 / 16))
        heads = sum(F.cross_entropy(outputs.logits[head], batch["targets"][head]) for head in ("make", "model"))
        values = outputs.cosines if "arcface" in name or name == "proxy_anchor" else outputs.embeddings
        counts = torch.ones(16, dtype=torch.bool)
        expected = heads + 0.25 * lit.metric_learning.loss(values, batch["targets"]["model"], counts)
        torch.testing.assert_close(lit._step(images, batch, None), expected)
    assert outputs.embeddings.shape == (16, 128)
    assert (lit.model.proxies is not None) == ("arcface" in name or name == "proxy_anchor")


def test_photos_of_unknown_class_and_unreadable_ones_do_not_count(demo_photos):
    datamodule, lit = built(demo_photos, "metric_loss=triplet", "augment=none")
    batch = next(iter(datamodule.train_dataloader()))
    outputs = lit.eval().outputs(batch["images"].float() / 255, torch.full((16,), 1 / 16))
    batch["targets"]["model"][:3] = -1
    batch["valid"][3:5] = False
    found = lit.metric_learning.embedded(outputs, batch["targets"], batch["valid"])
    rest = [values[5:] for values in (outputs.embeddings, batch["targets"]["model"], batch["valid"])]
    torch.testing.assert_close(found.loss, lit.metric_learning.loss(*rest))
    assert found.counts.tolist() == [False] * 5 + [True] * 11


def test_the_best_epoch_has_the_best_neighbours_and_the_model_its_proxies(demo_photos, tmp_path):
    overrides = ["metric_loss=arcface", "metric_loss.heads=probe", "optimizer.lr=0.003", "model.trunk.hidden=[16]"]
    trained = train(tmp_path / "run", *demo(demo_photos), *overrides)
    history, metrics = pd.read_csv(trained / "history.csv"), json.loads((trained / "metrics.json").read_text())
    assert "train/embedding/loss" in history and "train/embedding/map_at_r" not in history
    assert metrics["best_epoch"] == history["val/embedding/map_at_r"].idxmax()
    assert 0 < metrics["test"]["embedding/map_at_r"] < metrics["test"]["embedding/recall_at_1"] <= 1
    losses = metrics["val"]["make/loss"] + metrics["val"]["model/loss"] + metrics["val"]["embedding/loss"]
    assert metrics["val"]["loss"] == pytest.approx(losses, rel=1e-5)
    model = carvision.load(trained)
    assert model.proxies.weight.shape == (12, 1, 128)
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["model.proxies.weight"], model.proxies.weight)
    assert model.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_the_neighbour_metrics_of_batches_are_those_of_all_photos_that_count():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 1, 1, 1, 2, -1, 0, 1])
    counts = (targets >= 0) & (torch.arange(9) != 7)
    metrics = NeighbourMetrics()
    for part in (slice(0, 4), slice(4, 9)):
        metrics.update(Embedded(torch.tensor(0.0), x[part], targets[part], counts[part]))
    found = leave_one_out_metrics(F.normalize(x[counts]).numpy(), targets[counts].numpy(), recall_at=[1])
    assert metrics.compute() == pytest.approx({name: found[name] for name in ("recall_at_1", "map_at_r")})


@pytest.mark.parametrize(("overrides", "line"), [
    (["model.difference.hidden=[8]"], "model.difference.hidden: nothing would train these layers"),
    (["metric_loss=triplet", "augment=mixup"], "augment.mixup: metric losses need one class per photo"),
    (["metric_loss=arcface", "data.batch_size=auto"], "data.batch_size: auto does not know the batches"),
    (["metric_loss=arcface", "data.split.kind=stratified", "data.split.fractions=[0.9,0.05,0.05]",
      "data.split.keep_groups=false"],
     "callbacks.monitor: val/embedding/map_at_r is not defined, as no model has two validation photos"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(demo_photos, overrides, line):
    with pytest.raises(InputError) as caught:
        built(demo_photos, *overrides)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value), str(caught.value)
