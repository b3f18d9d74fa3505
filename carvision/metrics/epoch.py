"""All heads of a split together."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from carvision.data.table import UNKNOWN
from carvision.metrics.auc import ScoreHistograms
from carvision.metrics.heads import TOP, HeadMetrics, NumberMetrics, figures_at50, figures_of
from carvision.models.decoding import RULES, decode


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
            for name, right, count in zip([*self.heads, "joint"], self.right.cpu(), self.count.cpu(), strict=True)
            if count > 0
        }
        seen = self.seen.cpu()
        if self.has_parents and seen > 0:
            figures["joint/consistent"] = float(self.agreeing.cpu() / seen)
        return figures


class EpochMetrics(nn.Module):
    """All figures of one split over an epoch.

    outputs: {head: number of classes, or None for a number}. rule: how make and model are decoded.
    compare_rules: also count what every other rule would have given. with_auc: also the areas under the ROC curve.
    """

    def __init__(
        self,
        outputs: dict[str, int | None],
        head_weights: dict[str, float],
        parents: dict[str, tuple[str, Tensor]],
        rule: str,
        compare_rules: bool = False,
        with_auc: bool = False,
    ):
        super().__init__()
        self.outputs, self.head_weights, self.rule = outputs, head_weights, rule
        self.heads = nn.ModuleList(HeadMetrics(n) if n else NumberMetrics() for n in outputs.values())
        classes = [name for name, n in outputs.items() if n]
        rules = RULES if compare_rules and parents else (rule,)
        self.rules = rules if classes else ()
        self.scores = nn.ModuleList(ScoreHistograms(outputs[name]) for name in classes if with_auc)
        self.joint = nn.ModuleList(JointMetrics(classes, bool(parents)) for _ in self.rules)
        self.links = [(child, parent) for child, (parent, _) in parents.items()]
        for i, (_, codes) in enumerate(parents.values()):
            self.register_buffer(f"codes_{i}", codes, persistent=False)  # so that they move with the module
        # Penalties on activities are means over a batch's photos, of which the last batch may have fewer. "disable"
        # looks for no NaN, for which every step would wait for the device.
        self.penalty, self.photos = (SumMetric(nan_strategy="disable") for _ in range(2))

    def update(
        self,
        logits: dict[str, Tensor],
        targets: dict[str, Tensor],
        losses: dict[str, Tensor],
        weights: dict[str, Tensor],
        valid: Tensor,
        penalty: Tensor,
        num_photos: Tensor | None = None,
    ) -> None:
        """losses, weights {head: (B,)}: of each photo, weight 0 where the label isn't known or the photo is bad.

        num_photos: scalar, for how many photos the penalty counts; None: those that are valid.
        """
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
        for name, scores in zip(class_logits, self.scores, strict=False):  # none without AUC
            scores.update(logits[name], targets[name], weights[name])
        num_photos = valid.sum() if num_photos is None else num_photos
        self.penalty.update(penalty * num_photos)
        self.photos.update(num_photos)

    def compute(self) -> dict[str, float]:
        """{"loss", "loss_total", "make/top1", ..., "joint/top1", "joint/consistent"}, as far as they are defined."""
        figures, loss = {}, 0.0
        for name, head in zip(self.outputs, self.heads, strict=True):
            values = head.compute()
            loss += self.head_weights[name] * values.get("loss", 0.0)
            figures |= {f"{name}/{figure}": value for figure, value in values.items()}
        classes = [name for name, n in self.outputs.items() if n]
        for name, scores in zip(classes, self.scores, strict=False):
            figures |= {f"{name}/{figure}": value for figure, value in scores.compute().items()}
        for rule, values in self.compute_rules().items():
            if rule == self.rule:
                figures |= {name: value for name, value in values.items() if name.startswith("joint/")}
        total = loss + float(self.penalty.compute().cpu() / self.photos.compute().cpu().clamp(min=1))
        return {"loss": loss, "loss_total": total, **figures}

    def compute_rules(self) -> dict[str, dict[str, float]]:
        """{decoding rule: {"make/top1", "model/top1", "joint/top1", "joint/consistent"}}."""
        return {rule: joint.compute() for rule, joint in zip(self.rules, self.joint, strict=True)}

    def reset(self) -> None:
        for metric in self._all():
            metric.reset()

    def counters(self) -> list[dict[str, Tensor]]:
        """All that was counted so far, in all processes together; for set_counters() of another start of a run."""
        counted = []
        for metric in self._all():
            with metric.sync_context():
                counted.append({name: value.clone() for name, value in metric.metric_state.items()})
        return counted

    def set_counters(self, counted: list[dict[str, Tensor]]) -> None:
        """In one of several processes: each counts on from what it has."""
        for metric, values in zip(self._all(), counted, strict=True):
            for name, value in values.items():
                setattr(metric, name, value.to(metric.device))
            metric._update_count = 1  # else torchmetrics takes it for new, and warns

    def _all(self) -> list[Metric]:
        return [*self.heads, *self.scores, *self.joint, self.penalty, self.photos]


def figure_names(labels: dict[str, dict]) -> list[str]:
    """The names of all figures that every epoch has for these labels (see LitClassifier).

    auc, auc_micro and auc_keras are not among them: they are counted once, at the end, when nothing can listen to them.
    """
    one = torch.ones(2, dtype=torch.float64)
    of_classes = ["loss", *figures_of(one, one, one), *(f"top{k}" for k in TOP), *figures_at50(one, one, one)]
    names = ["loss", "loss_total"]
    if any("ids" in described for described in labels.values()):
        names += ["joint/top1"]
    if any(described.get("parent") in labels for described in labels.values()):
        names += ["joint/consistent"]
    for label, described in labels.items():
        names += [f"{label}/{figure}" for figure in (of_classes if "ids" in described else ("loss", "mae", "rmse"))]
    return names
