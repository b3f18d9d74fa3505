"""The parts of a step under XLA: compiled once, run on the device, equal to the CPU's."""

import re

import pytest
import torch
import torch.nn.functional as F
import torch_xla
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import nn

from carvision.augment.pipeline import Augment
from carvision.config.schema import AUGMENT_STEPS
from carvision.losses.metric import create_metric_loss
from carvision.training.distributed import tpu
from carvision.training.optim import OPTIMIZERS, create_optimizer
from tests.small_runs import config
from tests.tpu.counting import check_steps
from tests.training.test_module import batch_of, lit_classifier


@pytest.fixture(scope="module")
def device():
    return torch_xla.device()


def test_every_step_of_the_augmentation_equals_the_cpus(device):
    keys = config()["augment"]["steps"]
    assert set(keys) == set(AUGMENT_STEPS)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 4, 3, 32, 24, generator=random)
    for name in keys:
        augment = Augment([name], {name: {**keys[name], "p": 0.5}})
        draws = torch.rand(3, 4, augment.num_draws, generator=random)
        done = []
        print(name)  # which a failure shows
        check_steps(lambda i: done.append(augment(images[i].to(device), draws[i].to(device))), 3)  # noqa: B023
        for number, result in enumerate(done):
            torch.testing.assert_close(result.cpu(), augment(images[number], draws[number]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lamb", "lion"])
def test_optimizers_compile_at_most_twice_and_read_nothing(device, name):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(device)
    optimizer = create_optimizer(model, name, lr=0.01, weight_decay=0.01)
    inputs = torch.rand(6, 8, 4)

    def step(number):
        optimizer.zero_grad()
        model(inputs[number].to(device)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (number + 1)
        optimizer.step()

    check_steps(step, 5, compiling=2)  # the second has the optimizer's state


@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "coupled_clusters", "supcon", "arcface", "proxy_anchor"])
def test_metric_losses_compile_once_and_equal_the_cpus(device, name):
    """Though each batch has other classes, and another number of pairs."""
    loss = create_metric_loss("triplet", mining=name) if name.endswith("hard") else create_metric_loss(name)
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 12, 8, generator=random) * 0.9
    targets = torch.randint(-1, 8, (4, 12), generator=random)

    def value_and_slope(number, device) -> tuple[torch.Tensor, torch.Tensor]:
        x, classes = inputs[number].to(device).requires_grad_(), targets[number].to(device)
        value = loss(x, classes, classes >= 0)
        return value.detach(), torch.autograd.grad(value, x)[0]

    done = []
    check_steps(lambda number: done.append(value_and_slope(number, device)), 4)
    for number, found in enumerate(done):
        for ours, expected in zip(found, value_and_slope(number, "cpu"), strict=True):
            torch.testing.assert_close(ours.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_bf16_mixed_puts_bfloat16_into_the_graph_and_not_into_the_weights(device):
    lit, batch = lit_classifier().to(device), move_data_to_device(batch_of(), device)

    def products() -> set[str]:
        """The types of the results of products and convolutions in the graph of a step."""
        torch_xla.sync()  # what was begun before is no part of it
        loss = lit._step(batch["images"].float() / 255, batch, None)
        loss.backward()
        gradients = [p.grad for p in lit.parameters() if p.grad is not None]
        graph = torch_xla._XLAC._get_xla_tensors_hlo([loss, *gradients])
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        lit.zero_grad()
        return set(re.findall(r"= (\w+)\[[^\n]* (?:dot|convolution)\(", graph))

    assert products() == {"f32"}
    with tpu.BFloat16().forward_context():
        assert products() == {"bf16"}


def test_dropout_follows_its_seed_without_compiling(device):
    seeds, results = [1, 2, 1, 2**62], []

    def step(number):
        tpu.seed(seeds[number])
        results.append(F.dropout(torch.ones(4, 64, device=device), 0.5))

    check_steps(step, 4)
    one, two, again, large = (result.cpu() for result in results)
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(two, large)
