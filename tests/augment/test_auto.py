"""RandAugment and TrivialAugment against torchvision's operations and tables of magnitudes, image by image."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from carvision.augment.auto import OPERATIONS, TABLES, rand_augment, trivial_augment
from tests.augment.photos import NEARLY_1, made_up_photos

PHOTOS = made_up_photos(height=40, width=36)
BILINEAR = v2.InterpolationMode.BILINEAR
POLICIES = {"rand": v2.RandAugment(interpolation=BILINEAR), "trivial": v2.TrivialAugmentWide(interpolation=BILINEAR)}
NAMES = {"colour": "Color", **{name: name.title().replace("_", "") for name in OPERATIONS if name != "colour"}}


def torchvisions(image: Tensor, policy: str, name: str, magnitude: int, direction: int) -> Tensor:
    """Apply torchvision's operation to one image, in 8 bits if it is defined for those."""
    policy = POLICIES[policy]
    assert list(policy._AUGMENTATION_SPACE) == [NAMES[name] for name in OPERATIONS]
    magnitudes, signed = policy._AUGMENTATION_SPACE[NAMES[name]]
    values = magnitudes(31, *image.shape[1:])
    value = 0.0 if values is None else float(values[magnitude]) * (direction if signed else 1)
    if name in TABLES:
        image = (image * 255).round().to(torch.uint8)
    done = policy._apply_image_or_video_transform(image, NAMES[name], value, BILINEAR, policy._fill)
    return done.float() / 255 if name in TABLES else done


def draws_for(*operations: str, second: float) -> Tensor:
    """Return draws (images, 2) that choose the operations in turn."""
    first = [(OPERATIONS.index(operations[i % len(operations)]) + 0.5) / len(OPERATIONS) for i in range(len(PHOTOS))]
    return torch.tensor([first, [second] * len(PHOTOS)]).t()


def assert_same(done: Tensor, expected: Tensor, name: str) -> None:
    # torchvision truncates the values of its table operations; its luma weights are rounded
    atol = {"auto_contrast": 1 / 255 + 1e-6}.get(name, 1e-6 if name in TABLES else 5e-4)
    torch.testing.assert_close(done, expected, atol=atol, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_both_are_torchvisions(name, magnitude):
    for second, direction in ((0.25, -1), (0.75, 1)):
        draws = draws_for(name, second=second)
        tried = torch.stack([draws[:, 0], torch.full((len(PHOTOS),), (magnitude + 0.5) / 31), draws[:, 1]], 1)
        done = rand_augment(PHOTOS, draws, 1, magnitude), trivial_augment(PHOTOS, tried)
        for image, rand, trivial in zip(PHOTOS, *done, strict=True):
            assert_same(rand, torchvisions(image, "rand", name, magnitude, direction), name)
            assert_same(trivial, torchvisions(image, "trivial", name, magnitude, direction), name)


def test_each_image_has_its_own_operations_in_sequence():
    names = ("rotate", "contrast", "equalize", "identity")
    draws = torch.cat([draws_for(*names, second=0.75), draws_for("posterize", "shear_x", second=0.25)], 1)
    done = rand_augment(PHOTOS, draws, num_ops=2, magnitude=12)
    for i, (image, result) in enumerate(zip(PHOTOS, done, strict=True)):
        second = "posterize" if i % 2 == 0 else "shear_x"
        first = torchvisions(image, "rand", names[i % 4], 12, 1)
        expected = torchvisions(first, "rand", second, 12, -1)
        if second == "posterize":  # a rounding error before it becomes a step after it
            assert ((result - expected).abs() < 1e-3).float().mean() > 0.98
        else:
            assert_same(result, expected, second)


def test_all_operations_are_equally_likely_and_all_magnitudes_occur():
    num = 14 * 31 * 2
    images = PHOTOS[:1].expand(num, -1, -1, -1)
    draws = torch.tensor([[o / 14, m / 31, s] for o in range(14) for m in range(31) for s in (0.0, NEARLY_1)])
    done = trivial_augment(images, draws)
    assert ((done >= 0) & (done <= 1)).all()
    results = done.flatten(1).unflatten(0, (14, 62))
    numbers = {name: len(of_name.unique(dim=0)) for name, of_name in zip(OPERATIONS, results, strict=True)}
    # 30 magnitudes in two directions and none; 8 bits to 2; 31 thresholds
    expected = {"identity": 1, "posterize": 7, "solarize": 31, "auto_contrast": 1, "equalize": 1}
    assert numbers == dict.fromkeys(OPERATIONS, 61) | expected
