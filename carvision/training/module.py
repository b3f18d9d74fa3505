"""LitClassifier: a Classifier with its losses, metrics, optimizer and schedule, as Lightning's Trainer runs it."""

import logging
import math
import warnings
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from carvision.augment.mixing import Mix
from carvision.augment.pipeline import Augment, Normalise, to_float
from carvision.data.images import Preprocessing, PreprocessingDescription
from carvision.data.loading.datamodule import PhotoDataModule
from carvision.data.loading.dataset import Batch
from carvision.data.table import UNKNOWN, LabelDescription
from carvision.errors import InputError
from carvision.inference.model_file import parents_of
from carvision.losses.classification import create_loss, smooth_l1, weighted_mean
from carvision.losses.metric import WITH_PROXIES, create_metric_loss
from carvision.metrics import EpochMetrics, metric_names
from carvision.metrics.neighbours import Embedded
from carvision.models.classifier import Classifier, NetworkDescription, Outputs, classifier_from
from carvision.models.parts import HeadWeights
from carvision.system.runtime import full_precision
from carvision.training.distributed.collectives import num_processes, sum_over_processes
from carvision.training.optim import SAM, Phase, create_optimizer, create_schedule, frozen_statistics

log = logging.getLogger(__name__)

C = TypeVar("C", bound=pl.Callback)


class LitClassifier(pl.LightningModule):
    """Train a Classifier on the batches of PhotoDataModule. All arguments but `model` are plain values, so that
    torch.load's safe default opens a checkpoint.

    description: see Classifier. labels: {head: description}. loss, augment: the keys of conf/. phases: in order; the
    first phase is started, start_phase starts another. class_weights: {head: a weight for each class} of the training
    loss. decoding: how classes follow from the logits. seed: for dropout and mixing. metric_loss: arguments of
    MetricLearning; None: no metric loss. model: the Classifier to train; None: one with random weights, as
    load_from_checkpoint needs.
    """

    def __init__(
        self,
        description: NetworkDescription,
        labels: dict[str, LabelDescription],
        preprocessing: PreprocessingDescription,
        loss: dict,
        phases: list[Phase],
        augment: dict,
        class_weights: dict[str, list[float]],
        decoding: str = "independent",
        seed: int = 0,
        metric_loss: dict | None = None,
        model: Classifier | None = None,
    ):
        super().__init__()
        # Only in checkpoints: TensorBoard takes a second to write 1,700 class names, and can't show them
        self.save_hyperparameters(ignore=["model"], logger=False)
        self.labels, self.decoding = labels, decoding
        self.preprocessing = Preprocessing(**cast(Any, preprocessing))  # which makes tuples of the lists
        self.phases, self.seed, self.class_weights = phases, seed, class_weights
        self.class_heads = [name for name, label in labels.items() if "ids" in label]
        # Batches are channels-last; weights in the same layout save a conversion each step.
        self.model = (model or classifier_from(description)).to(memory_format=torch.channels_last)
        self.augment = Augment(augment["order"], augment["steps"])
        self.mix = Mix(augment["mixup"], augment["cutmix"], augment["mix_p"])
        self.normalise = Normalise(self.preprocessing)
        weights = loss.get("head_weights") or {}
        # Learned weights apply in training only: the reported loss is the same sum in every epoch.
        self.learned_weights = HeadWeights(list(labels)) if weights == "learned" else None
        self.head_weights = dict.fromkeys(labels, 1.0) | ({} if weights == "learned" else weights)
        self.class_loss = create_loss(**{key: value for key, value in loss.items() if key != "head_weights"})
        self.metric_learning = MetricLearning(**metric_loss) if metric_loss else None
        for name, of_classes in class_weights.items():
            index = self.class_heads.index(name)  # a label's name may not be valid for a buffer
            self.register_buffer(f"class_weights_{index}", torch.tensor(of_classes), persistent=False)

        outputs = {name: len(label["ids"]) if "ids" in label else None for name, label in labels.items()}
        weight = metric_loss["weight"] if metric_loss else None
        create_metrics = partial(
            EpochMetrics, outputs, self.head_weights, parents_of(labels), decoding, metric_weight=weight, with_auc=True
        )
        self.train_metrics = create_metrics()
        self.val_metrics = create_metrics(compare_rules=True, with_neighbours=True)
        self.test_metrics = create_metrics(compare_rules=True, with_neighbours=True)
        self.monitors: list[str] = []  # metrics that choose epochs or rates: an undefined one is an error
        self.metrics: dict[str, dict[str, float]] = {}  # of each split in its last epoch
        self.decodings: dict[str, dict[str, float]] = {}  # metrics of each decoding rule in the last validation
        # Which settings changed since the checkpoint: "", "epochs" or "values", see changed_step_settings
        self.step_settings_changed = ""
        self.restoring = False  # a checkpoint is being loaded
        self.start_phase(0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return {head: logits (B, outputs)} of images uint8 (B, 3, H, W)."""
        return self.model(self.normalise(to_float(images)))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout's randomness depends only on the step, so that a resumed run draws the same
        seed_rng((self.seed, self.current_epoch, batch_idx, self.global_rank), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = self.augmented(batch["images"], batch["draws"]) if "images" in batch else None
        mixed = None
        if self.mix.active and images is not None:  # photos that are mixed have no cached features
            key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
            images, *mixed = self.mix(images, batch["valid"], key)
        if self.sam is not None and self.sam.perturbed:  # SAM's second pass
            with frozen_statistics(self.model):
                return self._step(images, batch, None, mixed)
        return self._step(images, batch, self.train_metrics, mixed)

    # compile=true compiles the next two, see carvision.training.compile

    def augmented(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return augmented images, float in 0..1, of images uint8 (B, 3, H, W). draws: uniform (B, num_draws)."""
        return self.augment(to_float(images), draws)

    def outputs(self, images: Tensor, shares: Tensor) -> Outputs:
        """Return the network's outputs for images float (B, 3, H, W) in 0..1; shares: (B,), see Classifier.outputs."""
        return self.model.outputs(self.normalise(images), shares)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(float_images(batch), batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(float_images(batch), batch, self.test_metrics)

    def _step(
        self, images: Tensor | None, batch: Batch, metrics: EpochMetrics | None, mixed: list[Tensor] | None = None
    ) -> Tensor:
        """Return the batch's loss: the weighted sum of the heads' losses and the metric loss, plus penalties.

        images: None if the batch holds cached features, see CachedFeatures. metrics: updated with the batch.
        mixed: each photo's partner and the share of its own targets, see Mix.
        """
        num_photos = self._mean_of_all(batch["valid"].sum())
        shares = batch["valid"] / num_photos.clamp(min=1e-12)  # invalid photos have no penalty
        outputs = self.model.above(batch["features"], shares) if images is None else self.outputs(images, shares)
        learning, embedded = self.metric_learning, None
        if learning:
            embedded = learning.embedded(outputs, batch["targets"], batch["valid"])
        losses, weights = self._head_losses(outputs.logits, batch, mixed)
        if metrics is not None:
            logits, of_heads = ({name: v.detach() for name, v in each.items()} for each in (outputs.logits, losses))
            penalty = outputs.penalty.detach()
            metrics.update(
                logits, batch["targets"], of_heads, weights, batch["valid"], penalty, num_photos, embedded
            )  # fmt: skip
        totals = self._mean_of_all(torch.stack([values.sum() for values in weights.values()]))
        means = {name: weighted_mean(losses[name], weights[name], totals[i]) for i, name in enumerate(losses)}
        added = outputs.penalty
        if learning and embedded:
            added = added + learning.weight * embedded.loss
        if self.training and self.learned_weights is not None:
            return self.learned_weights(means, totals > 0) + added
        return sum(self.head_weights[name] * mean for name, mean in means.items()) + added

    def _head_losses(
        self, logits: dict[str, Tensor], batch: Batch, mixed: list[Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return {head: losses} and {head: weights} of the photos, both (B,)."""
        losses, weights = {}, {}
        for name in self.labels:
            targets, valid = batch["targets"][name], batch["valid"]
            losses[name], weights[name] = self._head_loss(name, logits[name], targets, valid)
            if mixed:
                partner, share = mixed
                others, weight = self._head_loss(name, logits[name], targets[partner], valid[partner])
                parts = weights[name] * share, (weights[name] > 0) * weight * (1 - share)
                weights[name] = parts[0] + parts[1]
                losses[name] = (losses[name] * parts[0] + others * parts[1]) / weights[name].clamp(min=1e-12)
        return losses, weights

    def _head_loss(self, name: str, logits: Tensor, targets: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and weight of each photo, both (B,). Weight 0: unknown label, or unreadable photo."""
        if "ids" not in self.labels[name]:
            return smooth_l1(logits, targets, self.labels[name]["std"]), valid * (~targets.isnan()).float()
        weights = valid * (targets != UNKNOWN).float()
        if self.training and name in self.class_weights:
            of_class = self.get_buffer(f"class_weights_{self.class_heads.index(name)}")
            weights = weights * of_class[targets.clamp(min=0)]
        return self.class_loss(logits, targets), weights

    def _mean_of_all(self, totals: Tensor) -> Tensor:
        """Return the mean of totals over all processes. Gradients are averaged over processes: if each divides its sum
        by this mean, that is the gradient of the whole batch's weighted mean."""
        return sum_over_processes(totals) / num_processes() if self.training else totals

    def on_validation_epoch_end(self) -> None:
        # Train metrics, too: the epoch's steps are done, and callbacks at the epoch's end see all metrics.
        self._log_metrics(train=self.train_metrics, val=self.val_metrics)
        self.decodings = self.val_metrics.compute_rules()
        for name in self.monitors if self.trainer.state.fn == TrainerFn.FITTING else ():
            if name not in self.trainer.callback_metrics:
                raise InputError(
                    f"{name} is undefined in epoch {self.current_epoch + 1}: the split {name.partition('/')[0]!r} has "
                    "no readable photo that counts for it; correct the files or their labels, or choose another monitor"
                )

    def on_test_epoch_end(self) -> None:
        self._log_metrics(test=self.test_metrics)

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def _log_metrics(self, **splits: EpochMetrics) -> None:
        """Publish the epoch's metrics to callbacks and loggers. Not by log_dict, which spends half a millisecond a
        metric on reductions that the counters have already done; so Trainer.test() returns nothing."""
        counted = {split: metrics.compute() for split, metrics in splits.items() if metrics.penalty.update_called}
        values = {f"{split}/{name}": value for split, metrics in counted.items() for name, value in metrics.items()}
        found = self.trainer.callback_metrics
        for name in [name for name in found if name.partition("/")[0] in counted]:
            del found[name]  # else a metric undefined in this epoch would keep the previous value
        found |= {name: torch.tensor(value) for name, value in values.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, self.global_step)
            logger.save()
        self.metrics |= counted

    def epoch_metrics(self) -> dict[str, dict[str, float | None]]:
        """Return the last epoch's metrics {"train": {name: value}, "val": ...}; None where no photo counts for one."""
        names = metric_names(self.labels, self.metric_learning is not None)
        of_train = [name for name in names if name not in ("embedding/recall_at_1", "embedding/map_at_r")]
        found = {"train": dict.fromkeys(of_train), "val": dict.fromkeys(names)}
        return {split: dict(sorted((none | self.metrics.get(split, {})).items())) for split, none in found.items()}

    @property
    def num_epochs(self) -> int:
        """Return the number of epochs of all phases."""
        return sum(phase["epochs"] for phase in self.phases)

    def start_phase(self, number: int, begun: int = 0) -> Phase:
        """Start a phase: set what is trained. Call before the Trainer fits a later phase. Return the phase.

        begun: the phase's first epoch, counted over the whole run.
        """
        self.phase_position = {"phase": number, "phase_begun": begun}
        self.phase = self.phases[number]
        self.sam: SAM | None = None
        self.model.set_trained(self.phase["train_layers"])
        return self.phase

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # Lightning annotates it with its parent class, which has no such field
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # pyrefly: ignore[missing-attribute]
        inside = 0 if done == self.trainer.num_training_batches else done
        checkpoint |= {**self.phase_position, "metrics": self.epoch_metrics(), "decodings": self.decodings}
        checkpoint["batches_done"] = inside  # 0 at the end of an epoch
        if inside:
            checkpoint["train_metrics"] = self.train_metrics.counters()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.restoring = True
        if "train_metrics" in checkpoint and self.global_rank == 0:
            self.train_metrics.set_counters(checkpoint["train_metrics"])

    def create_phase_optimizer(self, fused: bool = True) -> torch.optim.Optimizer:
        """Create the current phase's optimizer. fused: see create_optimizer."""
        optimizer = create_optimizer(self.model, **self.phase["optimizer"], fused=fused)
        self.sam = optimizer if isinstance(optimizer, SAM) else None
        if self.learned_weights is not None:
            optimizer.add_param_group({"params": list(self.learned_weights.parameters()), "weight_decay": 0.0})
        return optimizer

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # Lightning's mixed precision refuses gradient clipping with a fused optimizer, which may unscale gradients
        # itself.
        clipped = self.trainer.gradient_clip_val is not None and str(self.trainer.precision).endswith("-mixed")
        optimizer = self.create_phase_optimizer(fused=not clipped)
        if getattr(self.trainer, "datamodule", None) is not None:
            # Not the trainer's own numbers: asking for them starts the loader before the checkpoint sets its position
            num_batches = datamodule_of(self.trainer).num_train_batches
            steps_per_epoch = math.ceil(num_batches / self.trainer.accumulate_grad_batches)
        else:  # a caller's own loaders
            assert self.trainer.max_epochs is not None
            steps_per_epoch = self.trainer.estimated_stepping_batches / self.trainer.max_epochs
            num_batches = int(self.trainer.num_training_batches)
        schedule = create_schedule(
            optimizer,
            **self.phase["schedule"],
            num_steps=max(1, round(steps_per_epoch * self.phase["epochs"])),
            steps_per_epoch=steps_per_epoch,
            batches_per_epoch=num_batches,
        )
        self.new_groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self.new_schedule = schedule["scheduler"].state_dict()
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:  # any checkpoint is loaded now
        self.restoring = False
        optimizer, schedule = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        keeps_rate = isinstance(schedule, ReduceLROnPlateau)  # its state does not depend on the number of epochs
        if not self.step_settings_changed or (keeps_rate and self.step_settings_changed == "epochs"):
            return
        before = max(group["lr"] for group in optimizer.param_groups)
        for group, new in zip(optimizer.param_groups, self.new_groups, strict=True):
            group.update(new)
        stored = schedule.state_dict()
        position = {key: stored[key] for key in ("last_epoch", "_step_count") if key in stored}
        schedule.load_state_dict({**self.new_schedule, **position})
        if not isinstance(schedule, ReduceLROnPlateau):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # get_lr() outside of step()
                rates = schedule.get_lr()  # OneCycleLR's sets the momentum, too
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        now = max(group["lr"] for group in optimizer.param_groups)
        name, epochs = self.phase["schedule"]["name"], self.phase["epochs"]
        log.info("schedule %s over %d epochs: the next step has lr %.6g, not %.6g", name, epochs, now, before)


class MetricLearning:
    """Compute the metric loss of a batch. Each process compares the photos of its own batch only.

    label: whose classes the loss separates. weight: of the loss beside the heads' losses. name, values: see
    create_metric_loss.
    """

    def __init__(self, label: str, weight: float, name: str, **values):
        self.label, self.weight, self.takes_cosines = label, weight, name in WITH_PROXIES
        self.loss = create_metric_loss(name, **values)

    def embedded(self, outputs: Outputs, targets: dict[str, Tensor], valid: Tensor) -> Embedded:
        """Return the batch's loss with its embeddings. targets: {label: int64 (B,)}. valid: bool (B,)."""
        own = targets[self.label]
        counts = valid & (own != UNKNOWN)
        with full_precision(outputs.embeddings.device.type):  # distances of near photos lose most digits otherwise
            values = outputs.cosines if self.takes_cosines else outputs.embeddings.float()
            assert values is not None  # with proxies there are cosines
            loss = self.loss(values, own, counts)
        return Embedded(loss, outputs.embeddings, own, counts)


def datamodule_of(trainer: pl.Trainer) -> PhotoDataModule:
    """Return the Trainer's datamodule, an attribute that Lightning does not declare."""
    return trainer.datamodule  # pyrefly: ignore[missing-attribute]


def callbacks_of(trainer: pl.Trainer, kind: type[C]) -> list[C]:
    """Return the Trainer's callbacks of a class, in call order."""
    hooks: list[Any] = trainer.callbacks  # pyrefly: ignore[missing-attribute] - Lightning does not declare it
    return [hook for hook in hooks if isinstance(hook, kind)]


def seed_rng(key: tuple[int, ...], device: torch.device) -> None:
    """Seed the device's random generator for one step. key: (seed, epoch, batch index, rank)."""
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)  # torch.manual_seed seeds all kinds of devices, which takes 0.5 ms
    else:
        torch.manual_seed(number)
    if device.type == "xla":
        from carvision.training.distributed import tpu  # late import: torch-xla has its own environment

        tpu.seed(number)


def float_images(batch: Batch) -> Tensor | None:
    """Return images as float (B, 3, H, W) in 0..1; None for a batch of cached features."""
    images = batch.get("images")
    return None if images is None else to_float(images)
