"""A training step on a GPU asks for nothing that the host would have to wait for.

The GPU is pretended by torch's fake tensors, which have a device but no values: reading one raises, and every
operation, with the devices it goes from and to, passes a dispatch mode.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from carvision.augment.pipeline import STEPS
from carvision.config.compose import conf_dir
from carvision.training.callbacks import MovingAverage
from carvision.training.module import seed_rng
from carvision.training.nonfinite import NonFiniteLoss
from tests.training.test_module import AUGMENT, batch_of, lit_classifier

CUDA = torch.device("cuda", 0)
KEYS = OmegaConf.to_container(OmegaConf.load(conf_dir() / "augment" / "shared" / "steps.yaml"))
SAMPLED = {"rand_augment", "trivial_augment"}  # fake tensors lack an operation of these two; they are those of others


class Waits(TorchDispatchMode):
    """Record copies between host and device that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        before, after = (
            {value.device.type for value in tree_leaves(values) if isinstance(value, torch.Tensor)}
            for values in ((args, kwargs), result)
        )
        to_device = before == {"cpu"} and "cuda" in after and not (kwargs or {}).get("non_blocking")
        if to_device or ("cuda" in before and "cpu" in after):
            self.found.append(str(function))
        return result


def on_fake_cuda(lit: nn.Module) -> None:
    def fake(value: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)

    for module in lit.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = nn.Parameter(fake(value)) if value is not None else None
        for name, value in module._buffers.items():
            module._buffers[name] = fake(value) if value is not None else None
        if isinstance(module, Metric):
            module._device = CUDA
            for name in module._defaults:
                setattr(module, name, fake(getattr(module, name)))


def waits_of(lit) -> list[str]:
    trainer = SimpleNamespace(global_step=0)
    nonfinite, average = NonFiniteLoss(Path("nowhere")), MovingAverage(0.99)
    average._average_model = AveragedModel(lit, use_buffers=True)
    hooks = [nonfinite, average]  # those that work on tensors at each step
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cuda(lit)
        batch = batch_of() | {"draws": torch.rand(16, lit.augment.num_draws)}
        targets = {name: values.to(CUDA) for name, values in batch.pop("targets").items()}
        batch = {name: values.to(CUDA) for name, values in batch.items()} | {"targets": targets}
        on_fake_cuda(average._average_model)
        lit._device = CUDA  # Lightning's
        nonfinite.on_train_start(trainer, lit)
        with Waits() as waits:
            for number in range(2):
                for hook in hooks:
                    hook.on_train_batch_start(trainer, lit, batch, number)
                seed_rng((0, 0, number, 0), CUDA)
                loss = lit.train().training_step(batch, number)
                for hook in hooks:
                    hook.on_before_backward(trainer, lit, loss)
                trainer.global_step += 1
                for hook in hooks:
                    hook.on_train_batch_end(trainer, lit, {"loss": loss}, batch, number)
    assert loss.device == CUDA and loss.requires_grad
    return waits.found


@pytest.mark.parametrize("name", [name for name in STEPS if name not in SAMPLED])
def test_no_step_of_the_augmentation_waits(name):
    assert waits_of(lit_classifier(augment=AUGMENT | {"order": [name], "steps": KEYS})) == []


def test_neither_mixing_losses_penalties_nor_figures_wait():
    loss = {"name": "focal", "form": "softmax", "gamma": 2.0, "alpha": None, "label_smoothing": 0.0}
    values = {"loss": loss | {"head_weights": "learned"}, "class_weights": {"make": [1.0, 2.0, 3.0]}}
    augment = AUGMENT | {"mixup": 0.2, "cutmix": 1.0}
    assert waits_of(lit_classifier(heads=("make", "model", "speed"), augment=augment, **values)) == []


def test_a_wait_would_be_found():
    lit = lit_classifier()
    lit.augment.forward = lambda images, draws: images * torch.tensor(2.0).to(images.device)
    assert waits_of(lit) == ["aten._to_copy.default"] * 2
