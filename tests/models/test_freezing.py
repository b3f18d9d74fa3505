"""The parameters that train, by name, and what does not change in those that do not."""

import pytest
import torch
from torch import nn

from carvision.errors import InputError
from carvision.models.classifier import Classifier, Head
from carvision.models.freezing import frozen_parameters
from carvision.models.parts import Layers


class Small(nn.Module):
    """Layers in the order stem, norm, blocks.0, blocks.1.fc, blocks.1.norm, last; and two loose parameters."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(3))
        self.stem = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.norm.act = nn.ReLU()  # as timm's norms have it: a child without parameters
        inner = nn.Module()
        inner.scale = nn.Parameter(torch.ones(3))
        inner.fc, inner.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.blocks = nn.Sequential(nn.Linear(3, 3, bias=False), inner)
        self.last = nn.Linear(3, 3)


# In the order in which they are frozen
NAMES = [
    "position", "stem.weight", "stem.bias", "norm.weight", "norm.bias", "blocks.0.weight", "blocks.1.scale",
    "blocks.1.fc.weight", "blocks.1.fc.bias", "blocks.1.norm.weight", "blocks.1.norm.bias", "last.weight", "last.bias",
]  # fmt: skip


def frozen_names(backbone: nn.Module, train_layers: str | int) -> list[str]:
    frozen = {id(parameter) for parameter in frozen_parameters(backbone, train_layers)}
    return [name for name, parameter in backbone.named_parameters() if id(parameter) in frozen]


@pytest.mark.parametrize(("train_layers", "num_frozen"), [
    *{"all": 0, "none": 13, "partial": 5, "4": 5, 1: 11, 3: 7, 5: 3, 6: 1}.items(),
    *{"last": 11, "blocks.1": 6, "blocks.1.fc": 7, "blocks": 5, "stem": 1}.items(),
])  # fmt: skip
def test_frozen_parameters(train_layers, num_frozen):
    train_layers = f"from:{train_layers}" if train_layers in dict(Small().named_modules()) else train_layers
    assert frozen_names(Small(), train_layers) == NAMES[:num_frozen]


def test_wrong_values_are_named():
    with pytest.raises(InputError, match=r"model.train_layers: .*7 is more than the 6 layers"):
        frozen_parameters(Small(), 7)
    with pytest.raises(InputError, match=r"model.train_layers: .*no module 'block\.1'; nearest: blocks"):
        frozen_parameters(Small(), "from:block.1")


def classifier(train_layers: str | int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier("test_resnet", {"class": Head(3)}, 32, train_layers=train_layers)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # some of timm's norms start by multiplying by 0, before which nothing would learn
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def step(model: Classifier) -> dict[str, torch.Tensor]:
    """Return {name: change} of all parameters and statistics after train() and a step with weight decay."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model(images)["class"].square().sum().backward()
    optimizer.step()
    return {name: (value - before[name]).abs().sum() for name, value in model.state_dict().items()}


def test_all_trains_everything_and_a_later_choice_replaces_an_earlier_one():
    assert all(value > 0 for value in step(classifier("all")).values())
    model = classifier("none")
    assert all((value > 0) == name.startswith("head_class.") for name, value in step(model).items())
    assert not model.backbone.training
    model.set_trained("all")
    assert all(value > 0 for value in step(model).values())
    model.set_trained(1)
    assert model.backbone.layer4[0].downsample[2].training and not model.backbone.layer4[0].bn1.training
    change = step(classifier("from:layer4.0"))  # statistics of batch norms among it
    still = tuple(f"backbone.{name}." for name in ("conv1", "bn1", "layer1", "layer2", "layer3"))
    assert {name for name, value in change.items() if value == 0} == {name for name in change if name.startswith(still)}
    model = classifier("all")  # parameters that the backbone itself freezes stay frozen
    model.backbone.bn1.weight.requires_grad_(False)
    model.set_trained("none")
    model.set_trained("all")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["backbone.bn1.weight"]


def test_frozen_statistics_stay_while_scales_and_the_trunks_own_norms_train():
    model = Classifier("test_resnet", {"a": Head(3)}, 32, trunk=Layers((4,), batch_norm=True))
    model.freeze_statistics = True
    model.set_trained("all")
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.num_batches_tracked.clone()) for norm in norms]
    (trunk,) = (m for m in model.trunk.modules() if isinstance(m, torch.nn.BatchNorm1d))
    model(torch.randn(4, 3, 32, 32))["a"].sum().backward()
    assert norms and all(norm.weight.grad is not None for norm in norms)
    assert all(torch.equal(norm.running_mean, mean) for norm, (mean, _) in zip(norms, before, strict=True))
    assert trunk.training and trunk.num_batches_tracked == 1
