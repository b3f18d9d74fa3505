"""Create optimizers by name: PyTorch's, timm's, and SAM around any of them; set the learning rate of each layer."""

from fnmatch import fnmatch

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from carvision.errors import InputError, nearest
from carvision.training.sam import SAM

# With a fused kernel on CUDA and the CPU. (Adagrad's needs a later torch than the oldest supported.) For the 158
# parameters of a MobileNetV2 on a core of an EPYC, AdamW takes 0.8 ms instead of 5, and SGD 0.3 instead of 1.3: 2 to
# 7 % of a step of 32 photos of 64 px.
FUSED = {"sgd", "adam", "adamw"}

# Names of conf/optimizer. Every other name is timm's.
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "adamw": torch.optim.AdamW,
}


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
            import timm.optim  # late import: one of its optimizers imports torch's compiler

            optimizer = timm.optim.create_optimizer_v2(groups, name, lr=lr, weight_decay=weight_decay, **values)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        from timm.optim import list_optimizers

        names = sorted({*OPTIMIZERS, *list_optimizers()})
        if name not in names:
            raise InputError(f"optimizer.name: {name!r} is not an optimizer{nearest(name, names)}") from None
        text = " ".join(str(error).split())
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
        if callable(getattr(module, "no_weight_decay", None)):
            patterns = module.no_weight_decay()
            names = [name for name, _ in module.named_parameters() if any(fnmatch(name, each) for each in patterns)]
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names}
    return exempt


def lr_factors_of(model: nn.Module, lr_factors: dict[str, float], layer_decay: float) -> dict[str, float]:
    """Return {parameter name: factor of its learning rate} for factors other than 1.

    lr_factors: {module: factor} of all parameters within; the innermost module wins. layer_decay d: the backbone's
    layers, as timm groups them, learn at d, d^2, ... from the last to the first (Clark et al. 2020, ELECTRA), what timm
    counts to the classifier (ConvNeXt's last norm) at 1. Both multiply. Raises InputError for a module that does not
    exist.
    """
    modules = dict(model.named_modules())
    for name in lr_factors:
        if name not in modules or not name:
            raise InputError(f"optimizer.lr_factors: there is no module {name!r}{nearest(name, modules)}")
    factors = _layer_factors(model.backbone, layer_decay) if layer_decay != 1 else {}
    for name, _ in model.named_parameters():
        around = [module for module in lr_factors if name.startswith(f"{module}.")]
        if around:
            factors[name] = factors.get(name, 1.0) * lr_factors[max(around, key=len)]
    return factors


def _layer_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Return the backbone's factors as timm's param_groups_layer_decay computes them for the network with its
    classifier, which learns at 1; here the heads replace it, so the classifier's name is added to the parameters before
    grouping."""
    if not hasattr(backbone, "group_matcher"):
        raise InputError("optimizer.layer_decay: timm does not say what the layers of this backbone are; use 1.0")
    classifiers = getattr(backbone, "pretrained_cfg", {}).get("classifier") or "classifier"
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    names = [*(name for name, _ in backbone.named_parameters()), *(f"{name}.weight" for name in classifiers)]
    layers = group_with_matcher(((name, None) for name in names), backbone.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {f"backbone.{name}": decay ** (last - layer) for name, layer in layers.items() if layer < last}
