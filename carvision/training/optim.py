"""The phases of a run, and what each trains with: optimizers, sharpness-aware minimisation, learning-rate schedules."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, Literal, TypedDict, cast

import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType
from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from carvision.errors import InputError, one_line, suggest
from carvision.models.classifier import Classifier


class Phase(TypedDict):
    """One part of a run. name: "" if the whole run is one phase. optimizer, schedule: the keys of conf/."""

    name: str
    epochs: int
    train_layers: str | int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


def build_phases(cfg: dict) -> list[Phase]:
    """Build the phases in order; each inherits what it does not set. A configuration without phases is one phase."""
    max_epochs = cfg["trainer"]["max_epochs"]
    own = {"train_layers": cfg["model"]["train_layers"], "optimizer": cfg["optimizer"], "schedule": cfg["schedule"]}
    if not cfg["phases"]:
        if max_epochs is None:
            raise InputError("trainer.max_epochs: must be given where there are no phases; add trainer.max_epochs=<n>")
        return [Phase(name="", epochs=max_epochs, **own)]
    phases: list[Phase] = []
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
            phases.append(Phase(name=name, epochs=epochs, train_layers=layers, **parts))
    return phases


def phase_key(phase: Phase) -> str:
    """Return the prefix of a phase's configuration keys: "phases.head.", or "" if the whole run is one phase."""
    return f"phases.{phase['name']}." if phase["name"] else ""


def validate_phases(phases: list[Phase], classifier: Classifier) -> None:
    """Raise InputError if any phase can't be built, before training spends hours on the first.

    Leaves the classifier set up for the first phase.
    """
    for phase in reversed(phases):
        try:
            classifier.set_trained(phase["train_layers"])
            optimizer = create_optimizer(classifier, **phase["optimizer"])
            create_schedule(optimizer, **phase["schedule"], num_steps=2, steps_per_epoch=1.0, batches_per_epoch=1)
        except InputError as error:
            text = str(error).removeprefix("model.") if phase["name"] else error
            raise InputError(f"{phase_key(phase)}{text}") from None


def check_trainer(phases: list[Phase], trainer: dict) -> None:
    """Raise InputError for SAM with gradient accumulation or scaled gradients: its two passes need one batch and true
    gradients.

    trainer: the keys of conf/trainer.
    """
    refused = {
        "trainer.accumulate_grad_batches above 1; drop one of the two": trainer["accumulate_grad_batches"] > 1,
        "trainer.precision=16-mixed; use bf16-mixed or 32-true": trainer["precision"] == "16-mixed",
    }
    for what, wrong in refused.items():
        if wrong and any(phase["optimizer"].get("sam_rho") for phase in phases):
            raise InputError(f"optimizer.sam_rho: can't be combined with {what}")


# Names of conf/optimizer. Every other name is timm's.
OPTIMIZERS = {
    "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta, "adam": torch.optim.Adam, "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam, "adamw": torch.optim.AdamW,
}  # fmt: skip

# With a fused kernel on CUDA and the CPU. (Adagrad's needs a later torch than the oldest supported.) For the 158
# parameters of a MobileNetV2 on a core of an EPYC, AdamW takes 0.8 ms instead of 5, and SGD 0.3 instead of 1.3: 2 to
# 7 % of a step of 32 photos of 64 px.
FUSED = {"sgd", "adam", "adamw"}


def create_optimizer(
    model: nn.Module,
    name: str,
    lr: float | None = None,
    weight_decay: float = 0.0,
    lr_factors: dict[str, float] | None = None,
    layer_decay: float = 1.0,
    sam_rho: float | None = None,
    arguments: dict | None = None,
    fused: bool = True,
    **values,
) -> torch.optim.Optimizer:
    """Create the optimizer that conf/optimizer names, over the model's parameters that require gradients.

    values: arguments of the optimizer from its file. arguments: the user's additional ones. lr_factors, layer_decay:
    see lr_factors_of. sam_rho: see SAM. fused: use a fused kernel if one exists, unless the arguments choose an
    implementation. Raises InputError for a name or an argument that does not exist.
    """
    if lr is None:
        raise InputError(f"optimizer.lr: must be given with name: {name}")
    groups = parameter_groups(model, lr, weight_decay, lr_factors_of(model, lr_factors or {}, layer_decay))
    values |= arguments or {}
    chosen_by_the_user = {"fused", "foreach", "differentiable"} & values.keys()
    if fused and name in FUSED and has_fused_kernel(name, groups) and not chosen_by_the_user:
        values["fused"] = True
    try:
        if name in OPTIMIZERS:
            optimizer = OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay, **values)
            optimizer.register_load_state_dict_pre_hook(keep_implementation)
        else:
            import timm.optim  # a part of timm that few trainings need

            optimizer = timm.optim.create_optimizer_v2(groups, name, lr=lr, weight_decay=weight_decay, **values)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        from timm.optim import list_optimizers

        names = sorted({*OPTIMIZERS, *map(str, list_optimizers())})
        if name not in names:
            raise InputError(f"optimizer.name: {name!r} is not an optimizer{suggest(name, names)}") from None
        text = one_line(error)
        raise InputError(f"optimizer: {name} can't be built with {values or 'these values'} ({text})") from None
    return SAM(optimizer, sam_rho) if sam_rho else optimizer


def has_fused_kernel(name: str, groups: list[dict]) -> bool:
    """Return whether all parameters are floats on CUDA or the CPU; for SGD also not sharded (trainer.strategy=fsdp)."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if name == "sgd" and any(hasattr(parameter, "to_local") for parameter in parameters):
        return False
    return all(parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point() for parameter in parameters)


def keep_implementation(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Keep this device's choice of implementation when loading a checkpoint written on another kind of device."""
    chosen = {key: optimizer.param_groups[0][key] for key in ("fused", "foreach") if key in optimizer.param_groups[0]}
    return {**state, "param_groups": [{**group, **chosen} for group in state["param_groups"]]}


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, factors: dict[str, float]) -> list[dict]:
    """Return a parameter group for each pair of learning rate and weight decay, of the parameters that require
    gradients.

    Biases, one-dimensional parameters (scales of norms) and those of exempt_from_decay have no weight decay: shrinking
    a norm's scale does not make the network simpler. factors: {parameter name: factor of its learning rate}.
    """
    exempt = exempt_from_decay(model)
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
            key = (lr * factors.get(name, 1.0), weight_decay if decayed else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def exempt_from_decay(model: nn.Module) -> set[str]:
    """Return the names of parameters that timm's no_weight_decay() lists: position embeddings, class and register
    tokens, relative-position tables."""
    exempt = set()
    for prefix, module in model.named_modules():
        no_weight_decay: Any = getattr(module, "no_weight_decay", None)
        if callable(no_weight_decay):
            patterns = no_weight_decay()
            names = [name for name, _ in module.named_parameters() if any(fnmatch(name, each) for each in patterns)]
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names}
    return exempt


def lr_factors_of(model: nn.Module, lr_factors: dict[str, float], layer_decay: float) -> dict[str, float]:
    """Return {parameter name: factor of its learning rate} for factors other than 1.

    lr_factors: {module: factor} of all parameters within; the innermost module wins. layer_decay d: the backbone's
    layers, as timm groups them, get the factors d, d^2, ... from the last to the first (Clark et al. 2020, ELECTRA);
    what timm groups with the classifier (ConvNeXt's last norm) gets 1. Both factors are multiplied. Raises InputError
    for a module that does not exist.
    """
    modules = dict(model.named_modules())
    for name in lr_factors:
        if name not in modules or not name:
            raise InputError(f"optimizer.lr_factors: there is no module {name!r}{suggest(name, modules)}")
    factors = _layer_factors(model.get_submodule("backbone"), layer_decay) if layer_decay != 1 else {}
    for name, _ in model.named_parameters():
        around = [module for module in lr_factors if name.startswith(f"{module}.")]
        if around:
            factors[name] = factors.get(name, 1.0) * lr_factors[max(around, key=len)]
    return factors


def _layer_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Return the backbone's factors as timm's param_groups_layer_decay computes them for the network with its
    classifier, whose factor is 1: here the heads replace it, so its name is added to the parameters before grouping."""
    group_matcher: Any = getattr(backbone, "group_matcher", None)
    if group_matcher is None:
        raise InputError("optimizer.layer_decay: timm does not define the layers of this backbone; use 1.0")
    pretrained_cfg: Any = getattr(backbone, "pretrained_cfg", {})
    classifiers = pretrained_cfg.get("classifier") or "classifier"  # one name, or several
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    names = [*(name for name, _ in backbone.named_parameters()), *(f"{name}.weight" for name in classifiers)]
    matched = group_with_matcher(((name, None) for name in names), group_matcher(coarse=False), reverse=True)
    layers = cast(dict[str, int], matched)
    last = max(layers.values())
    return {f"backbone.{name}": decay ** (last - layer) for name, layer in layers.items() if layer < last}


class SAM(torch.optim.Optimizer):
    """Descend by the gradient at the worst point within radius rho: sharpness-aware minimisation (Foret et al. 2021,
    arXiv:2010.01412, algorithm 1).

    A step calls the closure twice: at the weights w, for the gradient g, and at w + rho g / |g|, |g| over all
    parameters, for the gradient that `base` then applies to w. `perturbed` is true during the second call.
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float):
        super().__init__(base.param_groups, base.defaults)
        self.base, self.rho, self.perturbed = base, rho, False
        self._share()

    def _share(self) -> None:
        # Schedules change the groups' rates here, where the base reads them; checkpoints hold the base's state.
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # pyrefly: ignore[bad-override] - needs it
        closure = torch.enable_grad()(closure)
        loss = closure()
        with_grad = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in with_grad]).norm()
        before = [p.clone() for p in with_grad]  # subtracting the step would not restore the same bits
        scale = self.rho / (norm + 1e-12)
        for p in with_grad:
            p.add_(p.grad * scale)
        self.perturbed = True
        try:
            closure()
        finally:
            self.perturbed = False
            for p, value in zip(with_grad, before, strict=True):
                p.copy_(value)
        self.base.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        self.base.load_state_dict(state_dict)
        self._share()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep batch norms' running statistics unchanged within the context, so that each batch counts once."""
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for module in momenta:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


R0_RISING_EPOCHS = 5  # epochs before report R0's curve falls


def create_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    num_steps: int,
    steps_per_epoch: float,
    batches_per_epoch: int,
    **values,
) -> LRSchedulerConfigType:
    """Create the schedule that conf/schedule names, as configure_optimizers returns it to Lightning.

    num_steps: weight updates in this phase; with gradient accumulation an epoch has more batches than updates. Raises
    InputError for keys that the schedule does not have.
    """
    try:
        if name == "plateau":
            return _create_plateau(optimizer, batches_per_epoch, **values)
        if name == "one_cycle":
            # Momentum falls as the rate rises, if the optimizer has one
            cycle_momentum = any(optimizer.defaults.get(key) for key in ("momentum", "betas"))
            rates = [group["lr"] for group in optimizer.param_groups]
            # One more: the schedule is also stepped after the last update
            schedule = OneCycleLR(optimizer, rates, num_steps + 1, cycle_momentum=cycle_momentum, **values)
        else:
            lr = optimizer.defaults["lr"]
            schedule = LambdaLR(optimizer, lr_factor(name, lr, num_steps, steps_per_epoch, **values))
    except (TypeError, ValueError) as error:
        text = one_line(error)
        raise InputError(f"schedule: {name} can't be built with {values or 'no values'} ({text})") from None
    return {"scheduler": schedule, "interval": "step"}


def _create_plateau(
    optimizer: torch.optim.Optimizer,
    batches_per_epoch: int,
    monitor: str,
    mode: Literal["min", "max"],
    patience: int,
    **values,
) -> LRSchedulerConfigType:
    """Create ReduceLROnPlateau with Keras' sense of patience."""
    # PyTorch waits one epoch longer than its patience, Keras (and callbacks.patience) does not. Both require a change
    # of 1e-4, Keras in absolute terms.
    schedule = ReduceLROnPlateau(optimizer, mode, patience=patience - 1, threshold_mode="abs", **values)
    # "step" means a batch here: step at the epoch's last batch, after validation. Lightning would step a schedule by
    # epochs only after writing the checkpoint.
    return {"scheduler": schedule, "interval": "step", "frequency": batches_per_epoch, "monitor": monitor}


def lr_factor(
    name: str,
    lr: float,
    num_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    final_fraction: float = 0.0,
    decay: float | None = None,
    peak: float | None = None,
) -> Callable[[int], float]:
    """Return the function from step to factor of the learning rate `lr`, for the name and keys of conf/schedule."""
    if name == "constant":
        return lambda step: 1.0
    if name == "r0":
        return lambda step: r0_lr(int(step / steps_per_epoch), peak or lr) / lr
    if name == "inverse_time":
        if decay is None:
            raise ValueError("decay is missing")
        return lambda step: 1 / (1 + decay * step)
    num_warmup = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
    return lambda step: cosine_factor(step, num_steps, num_warmup, final_fraction)


def r0_lr(epoch: int, peak: float) -> float:
    """Return report R0's learning rate: 1e-6 + e (peak - 1e-6) / 6 for epochs e < 5, then peak exp(-0.1 e); e counts
    from 0."""
    if epoch < R0_RISING_EPOCHS:
        return 1e-6 + epoch * (peak - 1e-6) / 6
    return peak * math.exp(-0.1 * epoch)


def cosine_factor(step: int, num_steps: int, num_warmup: int, final_fraction: float) -> float:
    """Return the factor: linear from 1/num_warmup to 1 over the first num_warmup steps, then half a cosine down to
    final_fraction."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
