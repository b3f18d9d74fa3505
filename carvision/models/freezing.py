"""Choose the layers of a backbone that are trained, by model.train_layers."""

from torch import nn

from carvision.errors import InputError, suggest

NUM_PARTIAL = 4  # report R1's "partial": the last four layers


def frozen_parameters(backbone: nn.Module, train_layers: str | int) -> list[nn.Parameter]:
    """Return the parameters that are not trained.

    train_layers: "all"; "none"; "partial" (the last four layers); n (the last n layers); "from:<module>" (that module
    and all after it). Layers are in the order in which the backbone lists its modules. Parameters that a module owns
    beside the layers within it (a position embedding) come before those. Raises InputError for a module that does not
    exist, and for more layers than there are.
    """
    if train_layers == "all":
        return []
    if train_layers == "none":
        return list(backbone.parameters())
    modules = dict(backbone.named_modules())
    if str(train_layers).startswith("from:"):
        start = str(train_layers).removeprefix("from:")
        if start not in modules or not start:
            first = ", ".join(name for name, _ in backbone.named_children())
            raise InputError(
                f"model.train_layers: the backbone has no module {start!r}{suggest(start, modules)}; "
                f"its first ones are {first}"
            )
    else:
        layers = [name for name, module in modules.items() if is_layer(module)]
        count = NUM_PARTIAL if train_layers == "partial" else int(train_layers)
        if count > len(layers):
            raise InputError(f"model.train_layers: {count} is more than the {len(layers)} layers of the backbone")
        start = layers[-count]
    names = list(modules)
    before = [modules[name] for name in names[: names.index(start)]]
    return [parameter for module in before for parameter in module.parameters(recurse=False)]


def is_layer(module: nn.Module) -> bool:
    """Return whether it is a leaf that owns parameters. Children without parameters do not count, such as the
    activation inside timm's norms."""
    own, all_within = (sum(1 for _ in module.parameters(recurse)) for recurse in (False, True))
    return 0 < own == all_within


def wholly_frozen(backbone: nn.Module, frozen: list[nn.Parameter]) -> list[nn.Module]:
    """Return the largest modules with parameters, all of which are in `frozen`."""
    return _largest(backbone, {id(parameter) for parameter in frozen})


def _largest(module: nn.Module, frozen: set[int]) -> list[nn.Module]:
    parameters = list(module.parameters())
    if not parameters:
        return []
    if all(id(parameter) in frozen for parameter in parameters):
        return [module]
    return [found for child in module.children() for found in _largest(child, frozen)]
