"""Build the phases of a training run, and check them before training starts."""

import logging

from carvision.errors import InputError
from carvision.models.classifier import Classifier
from carvision.training.optimizers import create_optimizer
from carvision.training.schedules import create_schedule

log = logging.getLogger(__name__)


def build_phases(cfg: dict) -> list[dict]:
    """Return the phases, each with "name", "epochs", "train_layers", "optimizer" and "schedule". A phase inherits what
    it does not set. A configuration without phases is one phase with an empty name."""
    max_epochs = cfg["trainer"]["max_epochs"]
    own = {"train_layers": cfg["model"]["train_layers"], "optimizer": cfg["optimizer"], "schedule": cfg["schedule"]}
    if not cfg["phases"]:
        if max_epochs is None:
            raise InputError("trainer.max_epochs: must be given where there are no phases; add trainer.max_epochs=<n>")
        return [{"name": "", "epochs": max_epochs, **own}]
    phases = []
    left = max_epochs or sum(phase["epochs"] for phase in cfg["phases"].values())
    for name, values in cfg["phases"].items():
        epochs = min(left, values["epochs"])
        left -= epochs
        if epochs:
            # Overrides of the run's optimizer, or another optimizer with all its own keys
            parts = {
                part: values[part] if "name" in values.get(part, {}) else {**own[part], **values.get(part, {})}
                for part in ("optimizer", "schedule")
            }
            layers = values.get("train_layers", own["train_layers"])
            phases.append({"name": name, "epochs": epochs, "train_layers": layers, **parts})
    return phases


def phase_key(phase: dict) -> str:
    """Return the prefix of a phase's configuration keys: "phases.head.", or "" if the whole run is one phase."""
    return f"phases.{phase['name']}." if phase["name"] else ""


def validate_phases(phases: list[dict], classifier: Classifier) -> None:
    """Raise InputError if any phase can't be built, before training spends hours on the first.

    Leaves the classifier set up for the first phase.
    """
    for phase in reversed(phases):
        optimizer, schedule = phase["optimizer"], phase["schedule"]
        try:
            classifier.set_trained(phase["train_layers"])
            create_schedule(
                create_optimizer(classifier, **optimizer),
                **schedule,
                lr=optimizer["lr"],
                num_steps=2,
                steps_per_epoch=1.0,
                batches_per_epoch=1,
            )
        except InputError as error:
            raise InputError(
                f"{phase_key(phase)}{str(error).removeprefix('model.') if phase['name'] else error}"
            ) from None


def check_trainer(phases: list[dict], trainer: dict) -> None:
    """Raise InputError for SAM with gradient accumulation or scaled gradients: its two passes need one batch and true
    gradients.

    trainer: the keys of conf/trainer.
    """
    if any(phase["optimizer"].get("sam_rho") for phase in phases):
        if trainer["accumulate_grad_batches"] > 1:
            raise InputError("optimizer.sam_rho: not with trainer.accumulate_grad_batches above 1; leave one out")
        if trainer["precision"] == "16-mixed":
            raise InputError("optimizer.sam_rho: not with trainer.precision=16-mixed; use bf16-mixed or 32-true")
