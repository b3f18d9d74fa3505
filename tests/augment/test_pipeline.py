"""Steps in sequence, each image independently; the presets; normalisation."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from omegaconf import OmegaConf

from carvision.augment.colour import brightness_contrast
from carvision.augment.draws import per_image
from carvision.augment.geometry import rotate
from carvision.augment.pipeline import STEPS, Augment, Normalise, to_float
from carvision.config.compose import compose_alone, conf_dir
from carvision.config.schema import ALLOWED, AUGMENT_STEPS
from carvision.data.images import Preprocessing
from tests.augment.photos import made_up_draws, made_up_photos

PRESETS = sorted(file.stem for file in (conf_dir() / "augment").glob("*.yaml"))
DEFAULTS = OmegaConf.to_container(OmegaConf.load(conf_dir() / "augment" / "shared" / "steps.yaml"))
PHOTOS = made_up_photos()


def always(name: str) -> dict[str, dict]:
    return {name: DEFAULTS[name] | {"p": 1.0}}


def test_the_configuration_has_every_step_and_another_one_is_an_error():
    assert list(STEPS) == list(AUGMENT_STEPS)
    assert {name: {"p", *keys} for name, keys in AUGMENT_STEPS.items()} == {n: set(v) for n, v in DEFAULTS.items()}
    allowed = ALLOWED["augment.order"](["flip", "flipp"])
    assert allowed and "each one of flip, " in allowed and allowed.endswith("nearest: flip")


@pytest.mark.parametrize("name", STEPS)
def test_an_image_is_augmented_alone_as_in_a_batch(name):
    photos, augment = made_up_photos(21), Augment([name], always(name))  # more than a chunk
    draws = made_up_draws(21, augment.num_draws)
    together = augment(photos, draws)
    assert (together[:-1] != photos[:-1]).flatten(1).any(1).sum() > 10
    alone = torch.cat([augment(*photo) for photo in zip(photos.split(1), draws.split(1), strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", STEPS)
def test_draws_at_the_ends_give_values_in_range(name):
    extremes = torch.cat([torch.zeros(1, 3, 24, 30), torch.ones(1, 3, 24, 30), PHOTOS])
    extremes[0, 0], extremes[1, 1] = 1.0, 0.0
    augment = Augment([name], always(name))
    for draw in (0.0, 0.5, 0.999, 1 - 2**-24, 1.0):  # 1.0 as half precision rounds it
        done = augment(extremes, torch.full((len(extremes), augment.num_draws), draw))
        assert done.isfinite().all() and done.min() >= -1e-6 and done.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_dtype_and_memory_format_and_never_synchronises(name):
    """The meta device has shapes and strides but no values, so that reading one fails."""
    augment = Augment([name], always(name))
    for dtype in (torch.float64, torch.float32):
        images = torch.empty(4, 24, 30, 3, dtype=dtype, device="meta").permute(0, 3, 1, 2)
        done = augment(images, torch.empty(4, augment.num_draws, device="meta"))
        assert done.dtype == dtype and done.shape == images.shape
        assert done.is_contiguous(memory_format=torch.channels_last)


def test_steps_are_applied_in_order_with_their_own_draws():
    draws = made_up_draws(len(PHOTOS), 5, seed=3)
    steps = always("rotate") | {"brightness_contrast": DEFAULTS["brightness_contrast"] | {"p": 0.4}}
    keys = {name: {key: value for key, value in steps[name].items() if key != "p"} for name in steps}
    rotated = rotate(PHOTOS, draws[:, 1:2], **keys["rotate"])
    changed = brightness_contrast(rotated, draws[:, 3:], **keys["brightness_contrast"])
    expected = torch.where(per_image(draws[:, 2] < 0.4), changed, rotated)
    order = Augment(["rotate", "brightness_contrast"], steps)
    assert order.num_draws == 5
    assert torch.equal(order(PHOTOS, draws), expected)


def test_a_step_may_occur_twice_and_one_with_p_0_takes_no_draws():
    half = Augment(["flip", "flip"], {"flip": {"p": 0.5}})
    flipped = half(PHOTOS[:3], torch.tensor([[0.1, 0.9], [0.1, 0.1], [0.5, 0.6]]))  # p is decided image by image
    assert torch.equal(flipped[0], PHOTOS[0].flip(2)) and torch.equal(flipped[1:], PHOTOS[1:3])
    for never in (Augment([], DEFAULTS), Augment(["rotate"], {"rotate": DEFAULTS["rotate"] | {"p": 0}})):
        assert never.num_draws == 0 and torch.equal(never(PHOTOS, torch.empty(len(PHOTOS), 0)), PHOTOS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run(name):
    values = compose_alone("train", [f"augment={name}"])["augment"]
    augment = Augment(values["order"], values["steps"])
    draws = made_up_draws(len(PHOTOS), augment.num_draws)
    done = augment(PHOTOS, draws)
    assert torch.equal(done, PHOTOS) == (name == "none") and torch.equal(done, augment(PHOTOS, draws))
    assert set(values["steps"]) == set(STEPS)


def test_normalise_and_to_float_are_torchvisions():
    photos = (PHOTOS * 255).to(torch.uint8)
    images, how = to_float(photos), Preprocessing(4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(images, tv.to_dtype(photos, torch.float32, scale=True))
    torch.testing.assert_close(Normalise(how)(images), tv.normalize(images, how.mean, how.std))
