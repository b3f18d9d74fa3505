"""Metrics of a split over an epoch, of all heads together."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from carvision.data.table import UNKNOWN, LabelDescription
from carvision.metrics.auc import AREAS, ScoreHistograms
from carvision.metrics.heads import TOP, HeadMetrics, NumberMetrics, metrics_from_sums
from carvision.metrics.neighbours import Embedded, NeighbourMetrics
from carvision.models.decoding import RULES, decode

Parents = Mapping[str, tuple[str, Tensor]]  # {child: (parent, codes)}, as in models.decoding


class JointMetrics(Metric):
    """Counts of all heads with classes under each decoding rule: right predictions of each head, of all heads at once,
    and photos where children and their parents agree."""

    full_state_update = False
    count: Tensor
    right: Tensor
    seen: Tensor
    agreeing: Tensor

    def __init__(self, rules: tuple[str, ...], heads: list[str], has_parents: bool):
        super().__init__()
        self.rules, self.heads, self.has_parents = rules, heads, has_parents
        size = len(heads) + 1  # the last counts all heads at once
        shapes = {"count": (size,), "right": (len(rules), size), "seen": (), "agreeing": (len(rules),)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, decoded: list[dict[str, Tensor]], targets: dict[str, Tensor], parents: Parents, valid: Tensor
    ) -> None:
        """Count a batch; the arguments are those of count_joint."""
        known, right, agreeing = count_joint(decoded, targets, parents, valid)
        self.count.add_(known.sum(dim=-1))
        self.right.add_(right.sum(dim=-1))
        self.seen.add_(valid.sum())
        self.agreeing.add_(agreeing.sum(dim=1))

    def compute(self) -> dict[str, dict[str, float]]:
        """Return {rule: metrics as joint_metrics names them}, omitting those without photos."""
        # Rates of int64 counts would be float32
        count, seen, metrics = self.count.cpu().double(), self.seen.cpu().double(), {}
        for rule, right, agreeing in zip(
            self.rules, self.right.cpu().double(), self.agreeing.cpu().double(), strict=True
        ):
            found = joint_metrics(self.heads, right, count, agreeing if self.has_parents else None, seen)
            metrics[rule] = {name: float(value) for name, value in found.items() if not value.isnan()}
        return metrics


def count_joint(
    decoded: list[dict[str, Tensor]], targets: dict[str, Tensor], parents: Parents, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each photo adds to the counts of H heads with classes under each of R decoding rules.

    That is: known bool (H + 1, B), right bool (R, H + 1, B), agreeing bool (R, B). The last of H + 1 rows is for all
    heads at once: a photo counts there if all its classes are known. agreeing: children fit their parents.

    decoded: for each rule {head: predicted class, int64 (B,)}. targets: {head: int64 (B,)}, perhaps of more heads.
    parents: {child: (parent, codes)} as in models.decoding. valid: bool (B,), false for unreadable photos.
    """
    heads = list(decoded[0])
    true = torch.stack([targets[name] for name in heads])
    known = (true != UNKNOWN) & valid
    guesses = torch.stack([guess[name] for guess in decoded for name in heads])
    right = (guesses.view(len(decoded), *true.shape) == true) & known
    agree = [valid] * len(decoded)
    for child, (parent, codes) in parents.items():
        agree = [so_far & (codes[of[child]] == of[parent]) for so_far, of in zip(agree, decoded, strict=True)]
    return with_all(known), with_all(right), torch.stack(agree)


def with_all(heads: Tensor) -> Tensor:
    """Append whether all heads are true: bool (..., H, B) -> (..., H + 1, B)."""
    return torch.cat([heads, heads.all(dim=-2, keepdim=True)], dim=-2)


def joint_metrics(
    heads: list[str], right: Tensor, count: Tensor, agreeing: Tensor | None, seen: Tensor
) -> dict[str, Tensor]:
    """Return {"<head>/top1", "joint/top1", "joint/consistent"} of one decoding rule, NaN where no photo counts.

    From sums of what count_joint returns: right, count (H + 1, ...); agreeing, seen (...). agreeing: None without
    parents, for which there is no "joint/consistent".
    """
    metrics = {f"{name}/top1": right[i] / count[i] for i, name in enumerate([*heads, "joint"])}
    return metrics if agreeing is None else metrics | {"joint/consistent": agreeing / seen}


class MeanOverPhotos(Metric):
    """Mean over photos of a value that is a mean over a batch, such as a metric loss or a penalty on activities.

    The last batch may have fewer photos.
    """

    full_state_update = False
    total: Tensor
    photos: Tensor

    def __init__(self):
        super().__init__()
        for name in ("total", "photos"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, num_photos: Tensor) -> None:
        """Count a batch's mean and its number of photos, two scalars."""
        self.total.add_(value * num_photos)
        self.photos.add_(num_photos)

    def compute(self) -> float | None:
        """Return the mean; None if no photo counted."""
        return float(self.total.cpu() / self.photos.cpu()) if self.photos else None


class EpochMetrics(nn.Module):
    """All metrics of one split over an epoch.

    outputs: {head: number of classes, or None for a number}. head_weights: {head: weight in the sum of the losses}.
    parents: {child: (parent, codes)} as in models.decoding. rule: how make and model are decoded.
    compare_rules: also count every other rule's predictions. with_auc: also the areas under the ROC curve.
    metric_weight: of a metric loss in the sum of the losses; None: there is none. with_neighbours: also Recall@1 and
    MAP@R of the embeddings.
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
        self.heads = cast(Sequence[Metric], heads)  # a ModuleList does not know the type of its items
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
        """Count a batch: logits {head: (B, C)}; targets, losses, weights {head: (B,)}; valid bool (B,); penalty scalar.

        A photo's weight is 0 where the label is unknown or the photo unreadable. num_photos: scalar, the number of
        photos that the penalty is over; None: of the valid ones. embedded: required with a metric loss.
        """
        class_logits = {name: logits[name] for name, n in self.outputs.items() if n}
        parents = {child: (parent, self.get_buffer(f"codes_{i}")) for i, (child, parent) in enumerate(self.links)}
        likeliest = {name: values.argmax(dim=1) for name, values in class_logits.items()}
        decoded = [decode(class_logits, parents, rule, likeliest) for rule in self.rules]
        if self.joint is not None:
            self.joint.update(decoded, targets, parents, valid)
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
        """Return {"loss", "loss_total", "make/top1", ..., "joint/top1", "joint/consistent", "embedding/map_at_r"}.

        Metrics that no photo counts for are undefined and omitted: those of a head whose label no photo has, and the
        losses if no photo counted at all. The loss is the sum over the heads that have one.
        """
        metrics, losses = {}, []
        for name, head in zip(self.outputs, self.heads, strict=True):
            values = head.compute()
            losses += [self.head_weights[name] * values["loss"]] if values else []
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        classes = [name for name, n in self.outputs.items() if n]
        for name, scores in zip(classes, self.scores, strict=False):
            metrics |= {f"{name}/{metric}": value for metric, value in scores.compute().items()}
        of_rule = self.compute_rules().get(self.rule, {})
        metrics |= {name: value for name, value in of_rule.items() if name.startswith("joint/")}
        metric_loss = self.metric_loss.compute() if self.metric_loss is not None else None
        if metric_loss is not None and self.metric_weight is not None:
            metrics["embedding/loss"] = metric_loss
            losses.append(self.metric_weight * metric_loss)
        if self.neighbours is not None:
            metrics |= {f"embedding/{metric}": value for metric, value in self.neighbours.compute().items()}
        if not losses:
            return metrics
        return {"loss": sum(losses), "loss_total": sum(losses) + (self.penalty.compute() or 0.0), **metrics}

    def compute_rules(self) -> dict[str, dict[str, float]]:
        """Return {decoding rule: {"make/top1", "model/top1", "joint/top1", "joint/consistent"}}."""
        return self.joint.compute() if self.joint is not None else {}

    def running(self) -> dict[str, Tensor]:
        """Return the "loss" and each "<head>/top1" of this process so far, as scalars on the device, which need not be
        waited for; NaN where no photo counts."""
        losses, accuracies = [], {}
        for (name, n), head in zip(self.outputs.items(), self.heads, strict=True):
            state = cast(dict[str, Tensor], head.metric_state)
            mean = state["loss_sum"] / state["weight_sum" if n else "count"]
            losses.append(self.head_weights[name] * mean.nan_to_num())
            if n:
                right, true = state["counts"].view(5, -1)[:2].sum(dim=1)
                accuracies[f"{name}/top1"] = right / true
        if self.metric_loss is not None and self.metric_weight is not None:
            losses.append(self.metric_weight * (self.metric_loss.total / self.metric_loss.photos).nan_to_num())
        return {"loss": torch.stack(losses).sum(), **accuracies}

    def reset(self) -> None:
        for metric in self._all():
            metric.reset()

    def counters(self) -> list[dict[str, Tensor]]:
        """Return all that was counted so far, over all processes; for set_counters() when a run is resumed."""
        counted = []
        for metric in self._all():
            with metric.sync_context():
                # Lists of tensors belong to neighbours, which no training step counts
                state = cast(dict[str, Tensor], metric.metric_state)
                counted.append({name: value.clone() for name, value in state.items()})
        return counted

    def set_counters(self, counted: list[dict[str, Tensor]]) -> None:
        """Continue from these counters. With several processes, call it in one of them."""
        for metric, values in zip(self._all(), counted, strict=True):
            for name, value in values.items():
                setattr(metric, name, value.to(getattr(metric, name)))  # a sum over processes has a wider type
            metric._update_count = 1  # else torchmetrics warns that it was never updated

    def _all(self) -> list[Metric]:
        optional = [metric for metric in (self.joint, self.metric_loss, self.neighbours) if metric is not None]
        return [*self.heads, *self.scores, *optional, self.penalty]


def metric_names(
    labels: Mapping[str, LabelDescription], with_metric_loss: bool = False, with_auc: bool = False
) -> list[str]:
    """Return the names of all metrics that every epoch has for these labels, without the split's prefix.

    with_auc: also the areas under the ROC curve, which a split with a single class lacks.
    """
    class_metrics = [*metrics_from_sums(torch.ones(5, 2).double(), torch.ones(len(TOP)), torch.zeros(()))]
    class_metrics += AREAS if with_auc else ()
    names = ["loss", "loss_total"]
    if any("ids" in described for described in labels.values()):
        names += ["joint/top1"]
    if any(described.get("parent") in labels for described in labels.values()):
        names += ["joint/consistent"]
    for label, described in labels.items():
        metrics = class_metrics if "ids" in described else ("loss", "mae", "rmse")
        names += [f"{label}/{metric}" for metric in metrics]
    if with_metric_loss:
        names += [f"embedding/{metric}" for metric in ("loss", "recall_at_1", "map_at_r")]
    return names
