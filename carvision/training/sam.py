"""Sharpness-aware minimisation around any optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SAM(torch.optim.Optimizer):
    """Use the gradient at the locally highest loss: sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412,
    algorithm 1).

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
    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        closure = torch.enable_grad()(closure)
        loss = closure()
        with_grad = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not with_grad:  # NonFiniteLoss skips this update
            return loss
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
    try:
        for module in momenta:
            module.momentum = 0.0
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
