"""Limit the size of a network while it is built from a description that anyone may have written."""

import threading

from torch import nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

INITIALISERS = {
    "normal_", "uniform_", "random_", "bernoulli_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_",
    "xavier_normal_", "xavier_uniform_",
}  # fmt: skip


class TooLarge(ValueError):
    """Raised where more would be built than the Limits allow."""


class Limits:
    """Context in which this thread can create only so many parameters, values in parameters, and modules.

    One more raises TooLarge, from within whatever builds them. exceeded: whether that happened.

    A description of a few bytes can ask for a million layers, which no check of its arguments foresees, as each of
    timm's architectures has its own.
    """

    def __init__(self, parameters: int, values: int, modules: int):
        self.left = {"parameters": parameters, "values in parameters": values, "modules": modules}
        self.exceeded = False

    def __enter__(self) -> "Limits":
        self.thread = threading.get_ident()
        self.handles = [
            registration.register_module_parameter_registration_hook(self._count_parameter),
            registration.register_module_module_registration_hook(lambda *_: self._count("modules", 1)),
        ]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def _count_parameter(self, _: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            self._count("parameters", 1)
            self._count("values in parameters", parameter.numel())

    def _count(self, what: str, number: int) -> None:
        if threading.get_ident() != self.thread:
            return
        self.left[what] -= number
        if self.left[what] < 0:
            self.exceeded = True
            raise TooLarge(f"it has more {what} than the weights leave room for")


class WithoutValues(TorchFunctionMode):
    """Context in which no parameter is initialised: on the meta device there are no values, and torch would import its
    compiler for them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
