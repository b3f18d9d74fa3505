"""The parts of a step under XLA: compiled once, run on the device, equal to the CPU's."""

import re

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning_fabric.utilities.apply_func import move_data_to_device
from omegaconf import OmegaConf
from torch import nn

from carvision.augment.pipeline import Augment
from carvision.config.compose import conf_dir
from carvision.config.schema import AUGMENT_STEPS
from carvision.losses.metric import create_metric_loss
from carvision.training.optim import OPTIMIZERS, create_optimizer
from tests.training.test_module import batch_of, lit_classifier

NAMES = [*OPTIMIZERS, "lamb", "lion"]


@pytest.fixture(scope="module")
def device():
    import torch_xla

    return torch_xla.device()


def test_every_step_of_the_augmentation_equals_the_cpus(device):
    from tests.tpu.counting import counted_steps

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = OmegaConf.to_container(compose("train").augment, resolve=True)["steps"]
    assert set(keys) == set(AUGMENT_STEPS)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 4, 3, 32, 24, generator=random)
    for name in keys:
        augment = Augment([name], {name: {**keys[name], "p": 0.5}})
        draws = torch.rand(3, 4, augment.num_draws, generator=random)
        done = []

        def step(number, augment=augment, draws=draws, done=done):
            done.append(augment(images[number].to(device), draws[number].to(device)))

        first, *others = counted_steps(step, num=3)
        assert set(first) <= {"compiled"} and others == [{}, {}], name
        print(name)  # which a failure shows
        for number, result in enumerate(done):
            expected = augment(images[number], draws[number])
            torch.testing.assert_close(result.cpu(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_compile_at_most_twice_and_read_nothing(device, name):
    from tests.tpu.counting import counted_steps

    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(device)
    optimizer = create_optimizer(model, name, lr=0.01, weight_decay=0.01)
    inputs = torch.rand(6, 8, 4)

    def step(number):
        optimizer.zero_grad()
        model(inputs[number].to(device)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (number + 1)
        optimizer.step()

    first, second, *others = counted_steps(step)  # the second has the optimizer's state
    assert {*first, *second} <= {"compiled"} and others == [{}] * 3


@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "coupled_clusters", "supcon", "arcface", "proxy_anchor"])
def test_metric_losses_compile_once_and_equal_the_cpus(device, name):
    """Though each batch has other classes, and another number of pairs."""
    from tests.tpu.counting import counted_steps

    loss = create_metric_loss("triplet", mining=name) if name.endswith("hard") else create_metric_loss(name)
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 12, 8, generator=random) * 0.9
    targets = torch.randint(-1, 8, (4, 12), generator=random)
    values, done = [], []

    def step(number):
        x = inputs[number].to(device).requires_grad_()
        classes = targets[number].to(device)
        found = loss(x, classes, classes >= 0)
        values.append(found.detach())
        done.append(torch.autograd.grad(found, x)[0])

    first, *others = counted_steps(step, num=4)
    assert set(first) <= {"compiled"} and others == [{}] * 3
    for number, (value, slope) in enumerate(zip(values, done, strict=True)):
        x = inputs[number].requires_grad_()
        expected = loss(x, targets[number], targets[number] >= 0)
        torch.testing.assert_close(value.cpu(), expected.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(slope.cpu(), torch.autograd.grad(expected, x)[0], atol=1e-3, rtol=1e-3)


def test_bf16_mixed_puts_bfloat16_into_the_graph_and_not_into_the_weights(device):
    import torch_xla

    from carvision.training.distributed.tpu import BFloat16

    lit, batch = lit_classifier().to(device), move_data_to_device(batch_of(), device)

    def products() -> set[str]:
        """The types of the results of products and convolutions in the graph of a step."""
        torch_xla.sync()  # what was begun before is no part of it
        loss = lit._step(batch["images"].float() / 255, batch, None)
        loss.backward()
        graph = torch_xla._XLAC._get_xla_tensors_hlo([loss, *(p.grad for p in lit.parameters() if p.grad is not None)])
        assert {p.grad.dtype for p in lit.parameters() if p.grad is not None} == {torch.float32}
        lit.zero_grad()
        return set(re.findall(r"= (\w+)\[[^\n]* (?:dot|convolution)\(", graph))

    assert products() == {"f32"}
    with BFloat16().forward_context():
        assert products() == {"bf16"}


def test_dropout_follows_its_seed_without_compiling(device):
    from carvision.training.distributed import tpu
    from tests.tpu.counting import counted_steps

    seeds, results = [1, 2, 1, 2**62], []

    def step(number):
        tpu.seed(seeds[number])
        results.append(F.dropout(torch.ones(4, 64, device=device), 0.5))

    first, *others = counted_steps(step, num=4)
    assert set(first) <= {"compiled"} and others == [{}] * 3
    one, two, again, large = (result.cpu() for result in results)
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(two, large)
