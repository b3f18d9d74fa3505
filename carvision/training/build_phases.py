"""The parts of a training run, one after the other, and whether all of them can be built."""

import logging

from carvision.errors import InputError
from carvision.models.classifier import Classifier
from carvision.training.optimizers import create_optimizer
from carvision.training.schedules import create_schedule

log = logging.getLogger(__name__)


def build_phases(cfg: dict) -> list[dict]:
    """The phases, each with "name", "epochs", "train_layers", "optimizer" and "schedule". What a phase does not say is
    as in the rest of the configuration, which alone is one phase without a name.
    """
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
            # Some keys of the run's optimizer changed, or another one with keys of its own
            parts = {
                part: values[part] if "name" in values.get(part, {}) else {**own[part], **values.get(part, {})}
                for part in ("optimizer", "schedule")
            }
            layers = values.get("train_layers", own["train_layers"])
            phases.append({"name": name, "epochs": epochs, "train_layers": layers, **parts})
    return phases


def phase_key(phase: dict) -> str:
    """What its keys begin with: "phases.head.", or nothing where the whole run is one phase."""
    return f"phases.{phase['name']}." if phase["name"] else ""


def validate_phases(phases: list[dict], classifier: Classifier) -> None:
    """Raises InputError for what can't be built in any of the phases, before the first of them takes its hours.

    Leaves the classifier as the first phase trains it.
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
    """trainer: the keys of conf/trainer. SAM takes two passes over one batch, which neither works over several batches
    nor with scaled gradients."""
    if any(phase["optimizer"].get("sam_rho") for phase in phases):
        if trainer["accumulate_grad_batches"] > 1:
            raise InputError("optimizer.sam_rho: not with trainer.accumulate_grad_batches above 1; leave one out")
        if trainer["precision"] == "16-mixed":
            raise InputError("optimizer.sam_rho: not with trainer.precision=16-mixed; use bf16-mixed or 32-true")
