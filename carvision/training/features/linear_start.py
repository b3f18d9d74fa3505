"""Linear-probe initialisation (LP-FT): fit trunk and heads on cached features before fine-tuning.

Fine-tuning from random heads distorts the backbone's features (Kumar et al. 2022, "Fine-tuning can distort pretrained
features", arXiv:2202.10054). A linear head of classes is fitted by logistic regression with the run's own loss, on
features whitened within the classes; a head of a number by ridge regression. The L2 penalty is the one of STRENGTHS
with the lowest validation loss. Deeper heads, a neck and a learned pool are trained for a few epochs on the features.
Photos are not augmented. Test photos are not used.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from carvision.config.schema import reason_not_cacheable
from carvision.data.loading.dataset import Batch, CachedFeatures
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.table import UNKNOWN
from carvision.errors import InputError
from carvision.models.classifier import Classifier, head_module
from carvision.reports.tables import percent
from carvision.training.callbacks import Clock
from carvision.training.distributed.collectives import broadcast_object
from carvision.training.features.cache import FeatureCache
from carvision.training.module import LitClassifier, seed_rng

log = logging.getLogger(__name__)

# Tried from the strongest, until validation gets worse
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
DEFAULT_STRENGTH = 0.01
# The shrinkage of the within-class covariance, see class_frame. On cars and flowers the validation loss is 3 to 14 %
# lower than with 1 and flat around 0.7; on ten easy classes it is 1 % lower (docs/benchmarks/accuracy.md)
SHRINKAGE = 0.7
MAX_SELECTION_PHOTOS = 20_000  # training photos used to choose the strength; the layer is then fitted on all
DEEP_EPOCHS, DEEP_STEPS = 20, 400  # for deeper heads, whichever is more
DEEP_LR, DEEP_DECAY = 1e-3, 0.01  # AdamW with cosine decay to 0
MAX_STEPS = 100  # of L-BFGS
GRADIENT_TOLERANCE = 1e-4  # largest gradient component at an accepted minimum

# (scores (N, C), targets (N,)) -> (N,)
Loss = Callable[[Tensor, Tensor], Tensor]


def wants_linear_start(cfg: dict, model: Classifier) -> bool:
    """Return whether model.start asks for a linear start, with `auto` resolved. Raise InputError if "linear" is
    impossible."""
    wanted, forbidden = cfg["model"]["start"], reason_not_cacheable(cfg)
    if wanted == "linear" and forbidden:
        raise InputError(f"model.start: linear is not possible with {forbidden}; use model.start=random")
    if wanted == "auto":
        return cfg["model"]["weights"] != "random" and not model.heads_are_trained and not forbidden
    return wanted == "linear"


class LinearStart(pl.Callback):
    """Fit trunk and heads before the first step of a new run."""

    def __init__(self, cache: FeatureCache, clock: Clock, seed: int):
        self.cache, self.clock, self.seed = cache, clock, seed

    def on_train_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        if trainer.ckpt_path or trainer.current_epoch or module.phase_position["phase"]:
            return
        features = self.cache.obtain()
        if features is None:
            log.warning("model.start: the heads start from random weights, as there are no features")
            return
        began = time.perf_counter()
        photos = {split: self.cache.photos_of(features, split) for split in ("train", "val")}
        with torch.random.fork_rng():
            method = fit_above(module, photos, self.seed)
        above = {k: value.cpu() for k, value in module.model.state_dict().items() if not k.startswith("backbone.")}
        # Other processes may differ in the last bits
        module.model.load_state_dict(broadcast_object(above), strict=False)
        metrics = head_scores(module, photos["val"])
        seconds = time.perf_counter() - began
        self.clock.add("linear_start", seconds)
        message = ", ".join(
            f"{name} {f'{percent(value)} %' if 'ids' in module.labels[name] else f'mae {value:.4g}'}"
            for name, value in metrics.items()
        )
        log.info("linear start: %s; val: %s (%.1f s)", method, message, seconds)


def fit_above(lit: LitClassifier, photos: dict[str, CachedFeatures], seed: int) -> str:
    """Fit all layers above the backbone; return a short description of the method, for the log."""
    model = lit.model
    heads: dict[str, Any] = {name: model.get_submodule(head_module(name)) for name in model.labels}  # nn.ModuleDicts
    deep = model.learns_from_map or model.trunk.layers.hidden or any(h["layers"].layers.hidden for h in heads.values())
    if deep:
        num_epochs = train_above(lit, photos["train"], seed)
        return f"all layers above the backbone, {num_epochs} epochs on its features"
    features = {split: part.features[part.rows].to(lit.device) for split, part in photos.items()}
    strengths = {}
    for name, head in heads.items():
        loss, of_split = head_problem(lit, name, photos)
        num_outputs = head["output"].out_features
        targets, weights = of_split["train"]
        counts = weights > 0
        if "ids" in lit.labels[name] and counts.any():
            frame = class_frame(features["train"][counts], targets[counts], num_outputs, SHRINKAGE)
        else:
            frame = plain_frame(features["train"])
        framed = {split: frame.apply(values) for split, values in features.items()}
        layer, strengths[name] = choose_layer(framed, of_split, num_outputs, loss, seed)
        layer = frame.undo(layer)
        with torch.no_grad():
            head["output"].weight.copy_(layer.weight)
            head["output"].bias.copy_(layer.bias)
    return "L2 " + ", ".join(f"{name} {strength:g}" for name, strength in strengths.items())


def head_problem(
    lit: LitClassifier, name: str, photos: dict[str, CachedFeatures]
) -> tuple[Loss, dict[str, tuple[Tensor, Tensor]]]:
    """Return the head's loss, and {split: (targets, weights)}, both (N,), with weight 0 for photos that don't count.

    Numeric targets are standardised, as the head's output is before its unit is applied.
    """
    label, found = lit.labels[name], {}
    for split, part in photos.items():
        targets = part.targets[name].to(lit.device)
        valid = torch.ones(len(targets), device=lit.device)
        valid[list(part.bad)] = 0.0
        if "ids" not in label:
            weights = valid * ~targets.isnan()
            targets = (targets.nan_to_num(label["mean"]) - label["mean"]) / label["std"]
        else:
            weights = valid * (targets != UNKNOWN)
            of_class = lit.class_weights.get(name)
            if of_class and split == "train":
                weights = weights * torch.tensor(of_class, device=lit.device)[targets.clamp(min=0)]
        found[split] = targets, weights
    return (lit.class_loss if "ids" in label else half_squared_error), found


def choose_layer(
    features: dict[str, Tensor], known: dict[str, tuple[Tensor, Tensor]], num_outputs: int, loss: Loss, seed: int
) -> "tuple[Layer, float]":
    """Return the layer fitted on all training photos, and its L2 strength, chosen on validation photos.

    features: {"train", "val"} -> (N, F). known: {"train", "val"} -> (targets, weights), both (N,).
    """
    (targets, weights), (val_targets, val_weights) = known["train"], known["val"]
    x, num = features["train"], len(targets)
    chosen = slice(None)
    if num > MAX_SELECTION_PHOTOS:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(num, generator=generator)[:MAX_SELECTION_PHOTOS].to(x.device)
    layer, best, least = None, (None, DEFAULT_STRENGTH), float("inf")
    for l2 in STRENGTHS:
        layer = fit_layer(x[chosen], targets[chosen], weights[chosen], num_outputs, loss, l2, layer)
        losses = loss(torch.nn.functional.linear(features["val"], *layer), val_targets)
        value = float((losses * val_weights).sum() / val_weights.sum())  # NaN if no photo counts
        if not value < least:
            break
        least, best = value, (layer, l2)
    layer, l2 = best
    if layer is None or num > MAX_SELECTION_PHOTOS:
        layer = fit_layer(x, targets, weights, num_outputs, loss, l2, layer)
    return layer, l2


def train_above(lit: LitClassifier, photos: CachedFeatures, seed: int) -> int:
    """Train trunk, heads, neck and pool on features, with the heads' losses, penalties and dropout. Return the number
    of epochs.

    A metric loss is left out: it needs batches of its own kind.
    """
    learning, lit.metric_learning = lit.metric_learning, None
    backbone = {id(parameter) for parameter in lit.model.backbone.parameters()}
    parameters = [p for p in lit.model.parameters() if id(p) not in backbone]
    optimizer = torch.optim.AdamW(parameters, lr=DEEP_LR, weight_decay=DEEP_DECAY)
    size = min(64, len(photos.rows))
    sampler = TrainSampler(photos.rows.numpy(), size, seed=seed)
    num_epochs = max(DEEP_EPOCHS, -(-DEEP_STEPS // len(sampler)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs * len(sampler))
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        for number, keys in enumerate(sampler):
            seed_rng((seed, epoch, number, 0), lit.device)  # the same in all processes
            optimizer.zero_grad()
            lit._step(None, on_device(photos[keys], lit.device), None).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    lit.metric_learning = learning
    return num_epochs


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch of cached features with what a step reads on the device."""
    targets = {name: values.to(device) for name, values in batch["targets"].items()}
    return {**batch, "features": batch["features"].to(device), "targets": targets, "valid": batch["valid"].to(device)}


@torch.no_grad()
def head_scores(lit: LitClassifier, photos: CachedFeatures) -> dict[str, float]:
    """Return {head: top-1 accuracy of the photos whose class is known; of a number the mean absolute error}."""
    was_training = lit.model.training
    lit.model.eval()
    sums, counts = dict.fromkeys(lit.model.labels, 0.0), dict.fromkeys(lit.model.labels, 0.0)
    for keys in TableSampler(len(photos.rows), 256):
        batch = on_device(photos[keys], lit.device)
        for name, logits in lit.model.above(batch["features"])[0].items():
            targets = batch["targets"][name]
            if "ids" in lit.labels[name]:
                known, right = batch["valid"] & (targets != UNKNOWN), logits.argmax(dim=1) == targets
            else:
                known, right = batch["valid"] & ~targets.isnan(), (logits[:, 0] - targets).abs().nan_to_num()
            sums[name] += float((right * known).sum())
            counts[name] += float(known.sum())
    lit.model.train(was_training)
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


class Layer(NamedTuple):
    """Hold a linear layer: scores = features @ weight.T + bias; weight (C, F), bias (C,)."""

    weight: Tensor
    bias: Tensor


def fit_layer(
    features: Tensor,
    targets: Tensor,
    weights: Tensor,
    num_outputs: int,
    loss: Loss,
    l2: float,
    start: Layer | None = None,
    max_steps: int = MAX_STEPS,
) -> Layer:
    """Return the layer that minimises  sum(weights * loss) / sum(weights) + l2 / 2 * sum(weight ** 2)  by L-BFGS.

    features: float (N, F). targets, weights: (N,), weight 0 for an unknown target. start: initial layer; None: zeros.
    With cross-entropy this is multinomial logistic regression (scikit-learn's C is 1 / (l2 * sum(weights))), with half
    the squared error ridge regression.
    """
    first = start or Layer(features.new_zeros(num_outputs, features.shape[1]), features.new_zeros(num_outputs))
    layer = Layer(*(values.detach().clone().requires_grad_() for values in first))
    shares = weights / weights.sum().clamp(min=1e-12)
    solver = torch.optim.LBFGS(
        list(layer),
        max_iter=max_steps,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        scores = torch.nn.functional.linear(features, layer.weight, layer.bias)
        value = (shares * loss(scores, targets)).sum() + l2 / 2 * layer.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
    return Layer(layer.weight.detach(), layer.bias.detach())


def half_squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) losses of scores (N, 1) and targets (N,)."""
    return 0.5 * (scores[:, 0] - targets) ** 2


class Frame(NamedTuple):
    """Hold affine coordinates in which a layer is fitted: features x (N, F) become (x - mean) @ matrix.T; matrix (F,
    F)."""

    mean: Tensor
    matrix: Tensor

    def apply(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix.T

    def undo(self, layer: Layer) -> Layer:
        """Return the layer for the original features."""
        weight = layer.weight @ self.matrix
        return Layer(weight, layer.bias - weight @ self.mean)


def plain_frame(features: Tensor) -> Frame:
    """Return the frame with mean 0 and variance 1 on average over all features.

    One scale for all features: one for each would amplify those that hardly vary.
    """
    mean = features.mean(dim=0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, torch.eye(features.shape[1], dtype=features.dtype, device=features.device) / scale)


def class_frame(features: Tensor, classes: Tensor, num_classes: int, shrinkage: float) -> Frame:
    """Return the frame with mean 0 and variance 1 on average, whitened within classes.

    shrinkage: of the within-class covariance, towards a multiple of the unit matrix; with 0 features are fully whitened
    within classes, with 1 only rescaled.

    features: (N, F) of the photos whose class is known. classes: int64 (N,). An L2 penalty in this frame costs most
    where photos of one class differ most, as in discriminant analysis with a pooled covariance shrunk towards a
    multiple of the unit matrix (Friedman 1989, "Regularized discriminant analysis", J. Am. Stat. Assoc. 84).
    """
    counts = torch.bincount(classes, minlength=num_classes).clamp(min=1)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, features)
    within = features - (sums / counts[:, None])[classes]
    covariance = within.T @ within / len(within)
    variance = covariance.diagonal().mean().clamp(min=1e-24)
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * variance)
    # Any root of the inverse will do: the penalty is invariant under rotation
    unit = torch.eye(len(covariance), dtype=features.dtype, device=features.device)
    matrix = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False)
    mean = features.mean(dim=0)
    scale = ((features - mean) @ matrix.T).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, matrix / scale)
