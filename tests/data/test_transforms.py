"""Augmentation and normalisation against torchvision's, photo by photo."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from carvision.data.images import Preprocessing
from carvision.data.transforms import Augment, Normalise, to_float

COLOURS = ("brightness", "contrast", "saturation")
ADJUST = {"brightness": tv.adjust_brightness, "contrast": tv.adjust_contrast, "saturation": tv.adjust_saturation}


def batch(num: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(num, 3, 5, 7, generator=random) * torch.rand(num, 1, 1, 1, generator=random)
    draws = torch.rand(num, Augment.num_draws, generator=random)
    draws[0], draws[1] = 0.0, torch.tensor(1.0).nextafter(torch.tensor(0.0))
    return images, draws


def naive(images: torch.Tensor, draws: torch.Tensor, flip: float = 0.0, **spreads: float) -> torch.Tensor:
    done = []
    for image, (first, *colours) in zip(images, draws.tolist(), strict=True):
        image = tv.horizontal_flip(image) if first < flip else image
        for name, draw in zip(COLOURS, colours, strict=True):
            spread = spreads.get(name, 0.0)
            image = ADJUST[name](image, 1 - spread + 2 * spread * draw)
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_colours_are_torchvisions_with_a_factor_for_each_photo(name, spread):
    images, draws = batch()
    augmented = Augment(**{name: spread})(images, draws)
    # torchvision rounds the weight of red in grey to 0.2989
    torch.testing.assert_close(augmented, naive(images, draws, **{name: spread}), atol=3e-4, rtol=0)
    assert (augmented != images).flatten(1).any(1).all()
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_all_together_are_flip_brightness_contrast_saturation_in_this_order():
    images, draws = batch()
    values = {"flip": 0.5, "brightness": 0.6, "contrast": 0.5, "saturation": 0.9}
    expected = naive(images, draws, **values)
    torch.testing.assert_close(Augment(**values)(images, draws), expected, atol=1e-3, rtol=0)
    others = draws.clone()
    others[3:] = torch.rand(len(draws) - 3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Augment(**values)(images, others)[:3], Augment(**values)(images, draws)[:3])


@pytest.mark.parametrize("chance", [0.25, 0.5, 1.0])
def test_flip_is_decided_photo_by_photo(chance):
    images, draws = batch(200)
    augmented = Augment(flip=chance)(images, draws)
    flipped = (augmented == images.flip(3)).flatten(1).all(1)
    kept = (augmented == images).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert flipped.tolist() == (draws[:, 0] < chance).tolist()
    assert flipped.float().mean() == pytest.approx(chance, abs=0.1)


def test_nothing_changes_at_zero():
    images, draws = batch()
    assert torch.equal(Augment()(images, draws), images)
    assert torch.equal(Augment(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)(images, draws), images)


def test_normalise_and_to_float_are_torchvisions():
    photos = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = to_float(photos)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, tv.to_dtype(photos, torch.float32, scale=True))
    preprocessing = Preprocessing(4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    normalise = Normalise(preprocessing)
    expected = tv.normalize(images, preprocessing.mean, preprocessing.std)
    torch.testing.assert_close(normalise(images), expected)
    assert normalise.state_dict() == {}  # stored once, with the preprocessing
