"""Every metric loss against loops over photos, and against pytorch-metric-learning where it has the same one."""

import itertools
import math

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers
from torch.nn.functional import normalize

from carvision.data.table import UNKNOWN
from carvision.losses import metric as ours
from carvision.models.parts import Embedding, Proxies

TARGETS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 3])  # class 3 has one photo
ALL = torch.ones(len(TARGETS), dtype=torch.bool)
NUM_CLASSES, NUM_FEATURES = 5, 6  # class 4 has none


@pytest.fixture
def embeddings():
    return torch.randn(len(TARGETS), NUM_FEATURES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def proxies():
    torch.manual_seed(4)
    return Proxies(Embedding(proxies_per_class=2, num_classes=NUM_CLASSES), NUM_FEATURES)


def same(i: int) -> list[int]:
    return [j for j in range(len(TARGETS)) if j != i and TARGETS[j] == TARGETS[i]]


def other(i: int) -> list[int]:
    return [j for j in range(len(TARGETS)) if TARGETS[j] != TARGETS[i]]


def distance(x: torch.Tensor, i: int, j: int) -> float:
    return float((x[i] - x[j]).square().sum().sqrt())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("margin", [0.05, 0.7])
def test_triplet_batch_hard_equals_loops(embeddings, margin, unit_length):
    x = normalize(embeddings, dim=1) if unit_length else embeddings
    hardest = [(max(distance(x, i, j) for j in same(i)), i) for i in range(len(TARGETS)) if same(i)]
    expected = [max(0.0, far - min(distance(x, i, j) for j in other(i)) + margin) for far, i in hardest]
    found = ours.triplet(embeddings, TARGETS, ALL, margin, "batch_hard", unit_length)
    assert float(found) == pytest.approx(mean(expected))


@pytest.mark.parametrize("margin", [0.05, 0.7])
def test_triplet_semi_hard_equals_loops(embeddings, margin):
    x = normalize(embeddings, dim=1)
    expected, without = [], 0
    for i in range(len(TARGETS)):
        for j in same(i):
            negatives = [distance(x, i, k) for k in other(i)]
            farther = [d for d in negatives if d > distance(x, i, j)]
            without += not farther
            negative = min(farther) if farther else max(negatives)
            expected.append(max(0.0, distance(x, i, j) - negative + margin))
    assert without  # else the farthest negative would not be tested
    assert float(ours.triplet(embeddings, TARGETS, ALL, margin)) == pytest.approx(mean(expected))


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("margin", [0.1, 3.0])
def test_coupled_clusters_equals_loops(embeddings, margin, unit_length):
    x = normalize(embeddings, dim=1) if unit_length else embeddings
    expected = []
    for label in (0, 1, 2):
        members = [i for i in range(len(TARGETS)) if TARGETS[i] == label]
        centre = sum(x[i] for i in members) / len(members)
        squared = [float((x[i] - centre).square().sum()) for i in range(len(TARGETS))]
        nearest = min(squared[i] for i in range(len(TARGETS)) if i not in members)
        expected += [max(0.0, squared[i] + margin - nearest) / 2 for i in members]
    assert float(ours.coupled_clusters(embeddings, TARGETS, ALL, margin, unit_length)) == pytest.approx(mean(expected))


def test_supervised_contrastive_equals_loops(embeddings):
    x, temperature, expected = normalize(embeddings, dim=1), 0.3, []
    for i in range(len(TARGETS)):
        total = sum(math.exp(float(x[i] @ x[j]) / temperature) for j in range(len(TARGETS)) if j != i)
        if same(i):
            expected.append(-mean([math.log(math.exp(float(x[i] @ x[j]) / temperature) / total) for j in same(i)]))
    assert float(ours.supervised_contrastive(embeddings, TARGETS, ALL, temperature)) == pytest.approx(mean(expected))


@pytest.mark.parametrize(("per_class", "margin"), [(1, 0.5), (2, 0.5), (1, 2.5)])  # 2.5: many wider angles exceed pi
def test_arcface_equals_loops(embeddings, per_class, margin):
    proxies = Proxies(Embedding(proxies_per_class=per_class, num_classes=NUM_CLASSES), NUM_FEATURES)
    x, scale = embeddings.float(), 8.0
    found = float(ours.arcface(proxies(x), TARGETS, ALL, margin, scale))
    expected = []
    for i, target in enumerate(TARGETS.tolist()):
        logits = []
        for c in range(NUM_CLASSES):
            cosine = max(float(normalize(x[i], dim=0) @ normalize(w, dim=0)) for w in proxies.weight[c])
            angle = math.acos(cosine) + (margin if c == target else 0.0)
            logits.append(scale * (math.cos(angle) if angle <= math.pi else cosine - margin * math.sin(margin)))
        expected.append(-logits[target] + math.log(sum(math.exp(v) for v in logits)))
    assert found == pytest.approx(mean(expected), rel=1e-5)


def test_arcface_grows_with_the_angle_also_where_the_wider_one_exceeds_pi():
    angles = torch.linspace(0, math.pi - 1e-3, 50)
    cosines = torch.stack([angles.cos(), torch.zeros(50)], dim=1)
    each = [float(ours.arcface(c[None], torch.tensor([0]), torch.tensor([True]), 0.5, 8.0)) for c in cosines]
    assert all(b > a for a, b in itertools.pairwise(each))


def test_proxy_anchor_equals_loops(embeddings):
    proxies = Proxies(Embedding(proxies_per_class=1, num_classes=NUM_CLASSES), NUM_FEATURES)
    x, margin, alpha = embeddings.float(), 0.1, 5.0
    cosines = proxies(x)
    near, far = [], []
    for c in range(NUM_CLASSES):
        own = [float(cosines[i, c]) for i in range(len(TARGETS)) if TARGETS[i] == c]
        rest = [float(cosines[i, c]) for i in range(len(TARGETS)) if TARGETS[i] != c]
        if own:
            near.append(math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in own)))
        far.append(math.log(1 + sum(math.exp(alpha * (s + margin)) for s in rest)))
    found = ours.proxy_anchor(cosines, TARGETS, ALL, margin, alpha)
    assert float(found) == pytest.approx(mean(near) + mean(far), rel=1e-5)


def test_losses_are_those_of_pytorch_metric_learning(embeddings):
    x, size = embeddings.float(), {"num_classes": NUM_CLASSES, "embedding_size": NUM_FEATURES}
    hard = losses.TripletMarginLoss(margin=0.7, reducer=reducers.MeanReducer())
    theirs = hard(x, TARGETS, miners.BatchHardMiner()(x, TARGETS))
    torch.testing.assert_close(ours.triplet(x, TARGETS, ALL, 0.7, "batch_hard"), theirs)
    torch.testing.assert_close(ours.supervised_contrastive(x, TARGETS, ALL, 0.3), losses.SupConLoss(0.3)(x, TARGETS))
    proxies = Proxies(Embedding(proxies_per_class=2, num_classes=NUM_CLASSES), NUM_FEATURES)
    margin = losses.SubCenterArcFaceLoss(**size, margin=math.degrees(0.5), scale=8.0, sub_centers=2)
    margin.W.data = proxies.weight.detach().flatten(0, 1).T  # (D, C * K)
    torch.testing.assert_close(ours.arcface(proxies(x), TARGETS, ALL, 0.5, 8.0), margin(x, TARGETS))
    proxies = Proxies(Embedding(proxies_per_class=1, num_classes=NUM_CLASSES), NUM_FEATURES)
    anchor = losses.ProxyAnchorLoss(NUM_CLASSES, NUM_FEATURES, 0.1, 5.0)
    anchor.proxies.data = proxies.weight.detach()[:, 0].clone()
    torch.testing.assert_close(ours.proxy_anchor(proxies(x), TARGETS, ALL, 0.1, 5.0), anchor(x, TARGETS))


EACH = [(name, {}) for name in ("triplet", "coupled_clusters", "supcon", *ours.WITH_PROXIES)]
EACH += [("triplet", {"mining": "batch_hard"})]


@pytest.mark.parametrize(("name", "values"), EACH)
def test_photos_that_do_not_count_change_nothing(embeddings, proxies, name, values):
    loss, with_proxies = ours.create_metric_loss(name, **values), name in ours.WITH_PROXIES

    def value(x: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> tuple[float, torch.Tensor]:
        x = x.detach().float().requires_grad_()
        found = loss(proxies(x) if with_proxies else x, targets, counts)
        (slope,) = torch.autograd.grad(found, x)
        return float(found.detach()), slope

    alone, slope = value(embeddings, TARGETS, ALL)
    assert alone > 0 and slope.abs().sum() > 0
    more = torch.cat([embeddings, 9 * embeddings[:2], embeddings[:1]])  # the last one equals a photo that counts
    targets = torch.cat([TARGETS, torch.tensor([0, UNKNOWN, 1])])
    counts = torch.cat([ALL, torch.zeros(3, dtype=torch.bool)])
    found, slope_of_more = value(more, targets, counts)
    assert found == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(slope_of_more[: len(TARGETS)], slope, rtol=1e-4, atol=1e-6)
    assert slope_of_more[len(TARGETS) :].abs().sum() == 0


@pytest.mark.parametrize(("name", "values"), EACH)
@pytest.mark.parametrize("batch", ["none counts", "all different", "all of one class", "all equal"])
def test_odd_batches_have_a_finite_loss_and_finite_slopes(proxies, name, values, batch):
    x = torch.randn(4, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    x = (torch.ones(4, NUM_FEATURES) if batch == "all equal" else x).requires_grad_()
    targets = torch.tensor({"all different": [0, 1, 2, 3], "all of one class": [1] * 4}.get(batch, [0, 0, 1, 1]))
    counts = torch.full((4,), batch != "none counts")
    loss = ours.create_metric_loss(name, **values)
    found = loss(proxies(x) if name in ours.WITH_PROXIES else x, targets, counts)
    (slope,) = torch.autograd.grad(found, x)
    assert found.isfinite() and slope.isfinite().all()
    if batch == "none counts" and name != "proxy_anchor":  # log(1 + 0) of each class
        assert found == 0
