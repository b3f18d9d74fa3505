"""LitClassifier: a Classifier with its losses, metrics, optimizer and schedule, for Lightning's Trainer."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from carvision.data.images import Preprocessing
from carvision.data.table import UNKNOWN
from carvision.data.transforms import Augment, Normalise, to_float
from carvision.losses import create_loss, smooth_l1, weighted_mean
from carvision.metrics import EpochMetrics
from carvision.models.classifier import Classifier, classifier_from
from carvision.portable import parents_of
from carvision.training.optimization import create_optimizer, lr_factor


class LitClassifier(pl.LightningModule):
    """Batches are those of PhotoDataModule. All arguments but `model` are plain values, so that a checkpoint opens
    with torch.load's safe default.

    description: of the Classifier, see there. labels: {head: {"ids", "names", "parent", "parent_codes"}} or
    {head: {"unit", "mean", "std"}}. preprocessing, loss, optimizer, schedule, augment: the keys of conf/.
    class_weights: {head: a weight for each class}, of training photos in the loss.
    model: the Classifier to train; None: one with random weights, as load_from_checkpoint needs it.
    """

    def __init__(
        self,
        description: dict,
        labels: dict[str, dict],
        preprocessing: dict,
        loss: dict,
        optimizer: dict,
        schedule: dict,
        augment: dict,
        class_weights: dict[str, list[float]],
        decoding: str = "independent",
        model: Classifier | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.labels = labels
        self.class_heads = [name for name, label in labels.items() if "ids" in label]
        # Batches come with their channels last in memory; weights laid out like them save turning them each step.
        self.model = (model or classifier_from(description)).to(memory_format=torch.channels_last)
        self.augment = Augment(**augment)
        self.normalise = Normalise(Preprocessing(**preprocessing))
        loss = dict(loss)
        given = loss.pop("head_weights", None) or {}
        self.head_weights = {name: given.get(name, 1.0) for name in labels}
        self.class_loss = create_loss(**loss)
        for name, weights in class_weights.items():
            place = self.class_heads.index(name)  # a buffer's name may not hold all that a label's may
            self.register_buffer(f"class_weights_{place}", torch.tensor(weights), persistent=False)

        outputs = {name: len(label["ids"]) if "ids" in label else None for name, label in labels.items()}
        metrics = (outputs, self.head_weights, parents_of(labels), decoding)
        self.train_metrics = EpochMetrics(*metrics)
        self.val_metrics = EpochMetrics(*metrics, compare_rules=True)
        self.test_metrics = EpochMetrics(*metrics, compare_rules=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images uint8 (B, 3, H, W) -> {head: logits}."""
        return self.model(self.normalise(to_float(images)))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = self.augment(to_float(batch["images"]), batch["draws"])
        return self._step(images, batch, self.train_metrics)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._step(to_float(batch["images"]), batch, self.val_metrics)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._step(to_float(batch["images"]), batch, self.test_metrics)

    def _step(self, images: Tensor, batch: dict, metrics: EpochMetrics) -> Tensor:
        """The loss of the batch: the heads' losses by their weights, and the penalties."""
        logits, penalty = self.model.forward_with_penalty(self.normalise(images))
        losses, weights = {}, {}
        for name in self.labels:
            losses[name], weights[name] = self._head_loss(name, logits[name], batch)
        metrics.update(
            {name: values.detach() for name, values in logits.items()},
            batch["targets"],
            {name: values.detach() for name, values in losses.items()},
            weights,
            batch["valid"],
            penalty.detach(),
        )
        total = sum(self.head_weights[name] * weighted_mean(losses[name], weights[name]) for name in losses)
        return total + penalty

    def _head_loss(self, name: str, logits: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        """Loss and weight of each photo, both (B,). Weight 0: the label isn't known, or the photo can't be read."""
        targets, valid = batch["targets"][name], batch["valid"].float()
        if "ids" not in self.labels[name]:
            return smooth_l1(logits, targets, self.labels[name]["std"]), valid * ~targets.isnan()
        weights = valid * (targets != UNKNOWN)
        if self.training and name in self.hparams.class_weights:
            of_class = self.get_buffer(f"class_weights_{self.class_heads.index(name)}")
            weights = weights * of_class[targets.clamp(min=0)]
        return self.class_loss(logits, targets), weights

    def on_validation_epoch_end(self) -> None:
        # The training figures too: the epoch's steps are over, and what listens at the epoch's end then sees all.
        self._log_figures("train", self.train_metrics)
        self._log_figures("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_figures("test", self.test_metrics)

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def _log_figures(self, split: str, metrics: EpochMetrics) -> None:
        if metrics.penalty.update_called:
            figures = {f"{split}/{name}": torch.tensor(value) for name, value in metrics.compute().items()}
            self.log_dict(figures, batch_size=1)  # the counters are summed over processes already

    def configure_optimizers(self) -> dict:
        optimizer = create_optimizer(self.named_parameters(), **self.hparams.optimizer)
        num_steps = int(self.trainer.estimated_stepping_batches)
        factor = lr_factor(
            **self.hparams.schedule,
            lr=self.hparams.optimizer["lr"],
            num_steps=num_steps,
            steps_per_epoch=num_steps / self.trainer.max_epochs,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
