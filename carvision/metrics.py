"""Metrics of an epoch: counters that are summed step by step and over processes, and the figures made of them."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from carvision.data.table import UNKNOWN
from carvision.models.decoding import RULES, decode

TOP = (3, 5)


class HeadMetrics(Metric):
    """Of a head with classes: mean loss, the confusion matrix, and how often the true class is among the top k.

    The matrix has a row a true class and a column a predicted one: 24 MB at 1,716 classes.
    """

    full_state_update = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes * num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(len(TOP), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, logits: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> None:
        """predicted, targets int64 (B,); logits (B, C); losses, weights (B,): a photo with weight 0 does not count.

        Photos whose target is UNKNOWN must have weight 0.
        """
        counts = (weights > 0).long()
        true_class = targets.clamp(min=0)
        self.confusion.index_add_(0, true_class * self.num_classes + predicted, counts)
        largest = logits.topk(min(max(TOP), self.num_classes), dim=1).indices
        found = (largest == true_class[:, None]) * counts[:, None]
        self.hits += torch.stack([found[:, :k].sum() for k in TOP])
        self.loss_sum += (losses * weights).sum()
        self.weight_sum += weights.sum()

    def matrix(self) -> Tensor:
        """int64 (C, C): photos by true (row) and predicted class (column)."""
        return self.confusion.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, float]:
        """The figures by name; empty if no photo counted."""
        total = self.confusion.sum()
        if total == 0:
            return {}
        figures = {"loss": self.loss_sum / self.weight_sum, **figures_of(self.matrix())}
        figures |= {f"top{k}": self.hits[i] / total for i, k in enumerate(TOP)}
        return {name: float(value) for name, value in figures.items()}


def figures_of(matrix: Tensor) -> dict[str, Tensor]:
    """Accuracy figures of a confusion matrix, int64 (C, C), row = true class. As scikit-learn defines them:

    top1; balanced_accuracy: mean recall of the classes that occur; precision, recall, f1: macro over the classes
    that occur or are predicted; _weighted: by the number of photos of the class; _micro: of all photos together.
    """
    matrix = matrix.double()
    right, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision, recall = right / predicted.clamp(min=1), right / true.clamp(min=1)
    f1 = 2 * right / (true + predicted).clamp(min=1)
    seen = (true + predicted) > 0
    share = true / true.sum()
    top1 = right.sum() / true.sum()
    figures = {"top1": top1, "balanced_accuracy": recall[true > 0].mean()}
    for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
        figures[name] = values[seen].mean()
        figures[f"{name}_micro"] = top1  # of one label a photo, all three are the accuracy
        figures[f"{name}_weighted"] = (values * share).sum()
    return figures


class NumberMetrics(Metric):
    """Of a head that estimates a number: mean loss, mean absolute and root mean squared error in the label's unit."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        for name in ("count", "loss_sum", "absolute_sum", "square_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, estimates: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> None:
        """estimates (B, 1); targets, losses, weights (B,); NaN targets must have weight 0."""
        error = (estimates[:, 0] - targets.nan_to_num()) * (weights > 0)
        self.count += (weights > 0).sum()
        self.loss_sum += (losses * weights).sum()
        self.absolute_sum += error.abs().sum()
        self.square_sum += error.square().sum()

    def compute(self) -> dict[str, float]:
        if self.count == 0:
            return {}
        figures = {
            "loss": self.loss_sum / self.count,
            "mae": self.absolute_sum / self.count,
            "rmse": (self.square_sum / self.count).sqrt(),
        }
        return {name: float(value) for name, value in figures.items()}


class JointMetrics(Metric):
    """Of all heads with classes together, under one decoding rule: each head's top-1, joint top-1 (all right), and how
    often children and their parents agree."""

    full_state_update = False

    def __init__(self, heads: list[str], has_parents: bool):
        super().__init__()
        self.heads, self.has_parents = heads, has_parents
        size = len(heads) + 1  # the last place is for all heads together
        self.add_state("count", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("agreeing", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: dict[str, Tensor], targets: dict[str, Tensor], agree: Tensor, valid: Tensor) -> None:
        """predicted, targets {head: int64 (B,)}; agree, valid bool (B,).

        Joint top-1 counts the photos of which all classes are known.
        """
        known = torch.stack([valid & (targets[name] != UNKNOWN) for name in self.heads])
        right = torch.stack([predicted[name] == targets[name] for name in self.heads]) & known
        self.count += torch.cat([known, known.all(0)[None]]).sum(1)
        self.right += torch.cat([right, right.all(0)[None]]).sum(1)
        self.seen += valid.sum()
        self.agreeing += (agree & valid).sum()

    def compute(self) -> dict[str, float]:
        figures = {
            f"{name}/top1": float(right / count)
            for name, right, count in zip([*self.heads, "joint"], self.right, self.count, strict=True)
            if count > 0
        }
        if self.has_parents and self.seen > 0:
            figures["joint/consistent"] = float(self.agreeing / self.seen)
        return figures


class EpochMetrics(nn.Module):
    """All figures of one split over an epoch.

    outputs: {head: number of classes, or None for a number}. rule: how make and model are decoded.
    compare_rules: also count what every other rule would have given.
    """

    def __init__(
        self,
        outputs: dict[str, int | None],
        head_weights: dict[str, float],
        parents: dict[str, tuple[str, Tensor]],
        rule: str,
        compare_rules: bool = False,
    ):
        super().__init__()
        self.outputs, self.head_weights, self.rule = outputs, head_weights, rule
        self.heads = nn.ModuleList(HeadMetrics(n) if n else NumberMetrics() for n in outputs.values())
        classes = [name for name, n in outputs.items() if n]
        rules = RULES if compare_rules and parents else (rule,)
        self.rules = rules if classes else ()
        self.joint = nn.ModuleList(JointMetrics(classes, bool(parents)) for _ in self.rules)
        self.links = [(child, parent) for child, (parent, _) in parents.items()]
        for i, (_, codes) in enumerate(parents.values()):
            self.register_buffer(f"codes_{i}", codes, persistent=False)  # so that they move with the module
        # Penalties on activities are means over a batch, and the last batch may be smaller. "disable" looks for no
        # NaN, for which every step would wait for the device.
        self.penalty, self.photos = (SumMetric(nan_strategy="disable") for _ in range(2))

    def update(
        self,
        logits: dict[str, Tensor],
        targets: dict[str, Tensor],
        losses: dict[str, Tensor],
        weights: dict[str, Tensor],
        valid: Tensor,
        penalty: Tensor,
    ) -> None:
        """losses, weights {head: (B,)}: of each photo, weight 0 where the label isn't known or the photo is bad."""
        class_logits = {name: logits[name] for name, n in self.outputs.items() if n}
        parents = {child: (parent, self.get_buffer(f"codes_{i}")) for i, (child, parent) in enumerate(self.links)}
        predicted = {}
        for rule, joint in zip(self.rules, self.joint, strict=True):
            decoded = decode(class_logits, parents, rule)
            agree = valid
            for child, (parent, codes) in parents.items():
                agree = agree & (codes[decoded[child]] == decoded[parent])
            joint.update(decoded, targets, agree, valid)
            if rule == self.rule:
                predicted = decoded
        for (name, n), head in zip(self.outputs.items(), self.heads, strict=True):
            first = (predicted[name], logits[name]) if n else (logits[name],)
            head.update(*first, targets[name], losses[name], weights[name])
        self.penalty.update(penalty * len(valid))
        self.photos.update(len(valid))

    def compute(self) -> dict[str, float]:
        """{"loss", "loss_total", "make/top1", ..., "joint/top1", "joint/consistent"}, as far as they are defined."""
        figures, loss = {}, 0.0
        for name, head in zip(self.outputs, self.heads, strict=True):
            values = head.compute()
            loss += self.head_weights[name] * values.get("loss", 0.0)
            figures |= {f"{name}/{figure}": value for figure, value in values.items()}
        for rule, values in self.compute_rules().items():
            if rule == self.rule:
                figures |= {name: value for name, value in values.items() if name.startswith("joint/")}
        total = loss + float(self.penalty.compute() / self.photos.compute())
        return {"loss": loss, "loss_total": total, **figures}

    def compute_rules(self) -> dict[str, dict[str, float]]:
        """{decoding rule: {"make/top1", "model/top1", "joint/top1", "joint/consistent"}}."""
        return {rule: joint.compute() for rule, joint in zip(self.rules, self.joint, strict=True)}

    def reset(self) -> None:
        for metric in (*self.heads, *self.joint, self.penalty, self.photos):
            metric.reset()


def figure_names(labels: dict[str, dict]) -> list[str]:
    """The names of all figures that EpochMetrics can give for these labels (see LitClassifier)."""
    of_classes = ["loss", *figures_of(torch.eye(2, dtype=torch.int64)), *(f"top{k}" for k in TOP)]
    names = ["loss", "loss_total"]
    if any("ids" in described for described in labels.values()):
        names += ["joint/top1"]
    if any(described.get("parent") in labels for described in labels.values()):
        names += ["joint/consistent"]
    for label, described in labels.items():
        names += [f"{label}/{figure}" for figure in (of_classes if "ids" in described else ("loss", "mae", "rmse"))]
    return names
