"""All heads of a split together."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from carvision.data.table import UNKNOWN, LabelDescription
from carvision.metrics.auc import AREAS, ScoreHistograms
from carvision.metrics.heads import TOP, HeadMetrics, NumberMetrics, metrics_at50, metrics_from_counts
from carvision.metrics.neighbours import Embedded, NeighbourMetrics
from carvision.models.decoding import RULES, decode


class JointMetrics(Metric):
    """Of all heads with classes together, under each decoding rule: each head's top-1, joint top-1 (all right), and how
    often children and their parents agree."""

    full_state_update = False
    count: Tensor
    right: Tensor
    seen: Tensor
    agreeing: Tensor

    def __init__(self, rules: tuple[str, ...], heads: list[str], has_parents: bool):
        super().__init__()
        self.rules, self.heads, self.has_parents = rules, heads, has_parents
        size = len(heads) + 1  # the last place is for all heads together
        for name, shape in {
            "count": (size,),
            "right": (len(rules), size),
            "seen": (),
            "agreeing": (len(rules),),
        }.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, predicted: list[dict[str, Tensor]], targets: dict[str, Tensor], agree: list[Tensor], valid: Tensor
    ) -> None:
        """predicted, agree: of each rule {head: int64 (B,)} and bool (B,). targets {head: int64 (B,)}; valid bool (B,).

        Joint top-1 counts the photos of which all classes are known.
        """
        true = torch.stack([targets[name] for name in self.heads])
        known = (true != UNKNOWN) & valid
        guesses = torch.stack([of_rule[name] for of_rule in predicted for name in self.heads])
        right = (guesses.view(len(self.rules), *true.shape) == true) & known
        self.count.add_(with_all(known).sum(dim=-1))
        self.right.add_(with_all(right).sum(dim=-1))
        self.seen.add_(valid.sum())
        self.agreeing.add_((torch.stack(agree) & valid).sum(dim=1))

    def compute(self) -> dict[str, dict[str, float]]:
        """{rule: figures}"""
        count, seen, figures = self.count.cpu(), self.seen.cpu(), {}
        for rule, right, agreeing in zip(self.rules, self.right.cpu(), self.agreeing.cpu(), strict=True):
            pairs = zip([*self.heads, "joint"], right, count, strict=True)
            figures[rule] = {f"{name}/top1": float(part / whole) for name, part, whole in pairs if whole > 0}
            if self.has_parents and seen > 0:
                figures[rule]["joint/consistent"] = float(agreeing / seen)
        return figures


def with_all(heads: Tensor) -> Tensor:
    """bool (..., H, B) -> (..., H + 1, B): the last is where all heads are."""
    return torch.cat([heads, heads.all(dim=-2, keepdim=True)], dim=-2)


class MeanOverPhotos(Metric):
    """The mean over photos of what is itself a mean over a batch, of which the last may have fewer: of the penalties,
    those on activities are, and of a metric loss."""

    full_state_update = False
    total: Tensor
    photos: Tensor

    def __init__(self):
        super().__init__()
        for name in ("total", "photos"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, num_photos: Tensor) -> None:
        """Two scalars."""
        self.total.add_(value * num_photos)
        self.photos.add_(num_photos)

    def compute(self) -> float | None:
        """None where no photo counted."""
        return float(self.total.cpu() / self.photos.cpu()) if self.photos else None


class EpochMetrics(nn.Module):
    """All figures of one split over an epoch.

    outputs: {head: number of classes, or None for a number}. rule: how make and model are decoded.
    compare_rules: also count what every other rule would have given. with_auc: also the areas under the ROC curve.
    metric_weight: of a metric loss in the sum; None: there is none. with_neighbours: also Recall@1 and MAP@R.
    """

    def __init__(
        self,
        outputs: dict[str, int | None],
        head_weights: dict[str, float],
        parents: dict[str, tuple[str, Tensor]],
        rule: str,
        compare_rules: bool = False,
        with_auc: bool = False,
        metric_weight: float | None = None,
        with_neighbours: bool = False,
    ):
        super().__init__()
        self.outputs, self.head_weights, self.rule = outputs, head_weights, rule
        heads = nn.ModuleList(HeadMetrics(n) if n else NumberMetrics() for n in outputs.values())
        self.heads = cast(Sequence[Metric], heads)  # which the list, a module itself, does not tell
        classes = {name: n for name, n in outputs.items() if n}
        rules = RULES if compare_rules and parents else (rule,)
        self.rules = rules if classes else ()
        scores = nn.ModuleList(ScoreHistograms(n) for n in classes.values() if with_auc)
        self.scores = cast(Sequence[ScoreHistograms], scores)
        self.joint = JointMetrics(self.rules, list(classes), bool(parents)) if classes else None
        self.links = [(child, parent) for child, (parent, _) in parents.items()]
        for i, (_, codes) in enumerate(parents.values()):
            self.register_buffer(f"codes_{i}", codes, persistent=False)  # so that they move with the module
        self.penalty = MeanOverPhotos()
        self.metric_weight = metric_weight
        self.metric_loss = None if metric_weight is None else MeanOverPhotos()
        self.neighbours = NeighbourMetrics() if with_neighbours and metric_weight is not None else None

    def update(
        self,
        logits: dict[str, Tensor],
        targets: dict[str, Tensor],
        losses: dict[str, Tensor],
        weights: dict[str, Tensor],
        valid: Tensor,
        penalty: Tensor,
        num_photos: Tensor | None = None,
        embedded: Embedded | None = None,
    ) -> None:
        """losses, weights {head: (B,)}: of each photo, weight 0 where the label isn't known or the photo is bad.

        num_photos: scalar, for how many photos the penalty counts; None: those that are valid. embedded: where there
        is a metric loss.
        """
        class_logits = {name: logits[name] for name, n in self.outputs.items() if n}
        parents = {child: (parent, self.get_buffer(f"codes_{i}")) for i, (child, parent) in enumerate(self.links)}
        likeliest = {name: values.argmax(dim=1) for name, values in class_logits.items()}
        decoded = [decode(class_logits, parents, rule, likeliest) for rule in self.rules]
        if self.joint is not None:
            agree = [valid] * len(self.rules)
            for child, (parent, codes) in parents.items():
                agree = [so_far & (codes[of[child]] == of[parent]) for so_far, of in zip(agree, decoded, strict=True)]
            self.joint.update(decoded, targets, agree, valid)
        predicted = decoded[self.rules.index(self.rule)] if decoded else {}
        for (name, n), head in zip(self.outputs.items(), self.heads, strict=True):
            values = logits[name], targets[name], losses[name], weights[name]
            head.update(*((predicted[name], *values, likeliest[name]) if n else values))
        for name, scores in zip(class_logits, self.scores, strict=False):  # none without AUC
            scores.update(logits[name], targets[name], weights[name])
        self.penalty.update(penalty, valid.sum() if num_photos is None else num_photos)
        if self.metric_loss is not None:
            assert embedded is not None
            self.metric_loss.update(embedded.loss.detach(), embedded.counts.sum())
        if self.neighbours is not None:
            assert embedded is not None
            self.neighbours.update(embedded)

    def compute(self) -> dict[str, float]:
        """{"loss", "loss_total", "make/top1", ..., "joint/top1", "joint/consistent", "embedding/map_at_r"}.

        A metric over no photo is undefined, and left out: those of a head of which no photo's class is known, and the
        losses where no photo counted at all. The loss is the sum over the heads that have one.
        """
        figures, losses = {}, []
        for name, head in zip(self.outputs, self.heads, strict=True):
            values = head.compute()
            losses += [self.head_weights[name] * values["loss"]] if values else []
            figures |= {f"{name}/{figure}": value for figure, value in values.items()}
        classes = [name for name, n in self.outputs.items() if n]
        for name, scores in zip(classes, self.scores, strict=False):
            figures |= {f"{name}/{figure}": value for figure, value in scores.compute().items()}
        for rule, values in self.compute_rules().items():
            if rule == self.rule:
                figures |= {name: value for name, value in values.items() if name.startswith("joint/")}
        of_embeddings = self.metric_loss.compute() if self.metric_loss is not None else None
        if of_embeddings is not None and self.metric_weight is not None:
            figures["embedding/loss"] = of_embeddings
            losses.append(self.metric_weight * of_embeddings)
        if self.neighbours is not None:
            figures |= {f"embedding/{figure}": value for figure, value in self.neighbours.compute().items()}
        if not losses:
            return figures
        return {"loss": sum(losses), "loss_total": sum(losses) + (self.penalty.compute() or 0.0), **figures}

    def compute_rules(self) -> dict[str, dict[str, float]]:
        """{decoding rule: {"make/top1", "model/top1", "joint/top1", "joint/consistent"}}."""
        return self.joint.compute() if self.joint is not None else {}

    def reset(self) -> None:
        for metric in self._all():
            metric.reset()

    def counters(self) -> list[dict[str, Tensor]]:
        """All that was counted so far, in all processes together; for set_counters() of another start of a run."""
        counted = []
        for metric in self._all():
            with metric.sync_context():
                state = cast(dict[str, Tensor], metric.metric_state)  # lists are of neighbours, which no step counts
                counted.append({name: value.clone() for name, value in state.items()})
        return counted

    def set_counters(self, counted: list[dict[str, Tensor]]) -> None:
        """In one of several processes: each counts on from what it has.

        Counters of a version that counted no scores in training lack them: the areas under the ROC curve of that epoch
        are then of the photos that follow.
        """
        metrics = self._all()
        if len(counted) == len(metrics) - len(self.scores):
            metrics = [metric for metric in metrics if not isinstance(metric, ScoreHistograms)]
        for metric, values in zip(metrics, counted, strict=True):
            for name, value in values.items():
                setattr(metric, name, value.to(metric.device))
            metric._update_count = 1  # else torchmetrics takes it for new, and warns

    def _all(self) -> list[Metric]:
        optional = [metric for metric in (self.joint, self.metric_loss, self.neighbours) if metric is not None]
        return [*self.heads, *self.scores, *optional, self.penalty]


def metric_names(
    labels: Mapping[str, LabelDescription], with_metric_loss: bool = False, with_auc: bool = False
) -> list[str]:
    """The names of all figures that every epoch has for these labels (see LitClassifier).

    with_auc: also the areas under the ROC curve, which a split with a single class lacks.
    """
    one = torch.ones(2, dtype=torch.float64)
    of_classes = ["loss", *metrics_from_counts(one, one, one), *(f"top{k}" for k in TOP), *metrics_at50(one, one, one)]
    of_classes += AREAS if with_auc else ()
    names = ["loss", "loss_total"]
    if any("ids" in described for described in labels.values()):
        names += ["joint/top1"]
    if any(described.get("parent") in labels for described in labels.values()):
        names += ["joint/consistent"]
    for label, described in labels.items():
        names += [f"{label}/{figure}" for figure in (of_classes if "ids" in described else ("loss", "mae", "rmse"))]
    if with_metric_loss:
        names += [f"embedding/{figure}" for figure in ("loss", "recall_at_1", "map_at_r")]
    return names
