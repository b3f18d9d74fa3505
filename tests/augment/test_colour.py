"""Steps that change light and colour, against torchvision and the standard library, photo by photo."""

import colorsys

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from carvision.augment import colour
from tests.augment.photos import made_up_draws, made_up_photos

PHOTOS = made_up_photos()
PURE = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.5, 0.5, 0.5], [0, 0.3, 0.3]])


def in_range(draw: float, low: float, high: float) -> float:
    return low + (high - low) * draw


def pixel_by_pixel(image: torch.Tensor, change) -> torch.Tensor:
    """change: (hue in turns, saturation, value) -> the same, not yet within 0..1."""
    done = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            hue, saturation, value = change(*colorsys.rgb_to_hsv(*image[:, y, x].tolist()))
            rgb = colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value)))
            done[:, y, x] = torch.tensor(rgb)
    return done


@pytest.mark.parametrize("factor", [(0.7, 1.3), (0, 2), (0.2, 0.6), (1.5, 1.5)])
@pytest.mark.parametrize(
    ("step", "expected", "others"),
    [
        (colour.brightness, tv.adjust_brightness, {}),
        (colour.contrast, tv.adjust_contrast, {"per_channel": False}),
        (colour.saturation, tv.adjust_saturation, {"in_hsv": False}),
    ],
)
def test_factors_are_torchvisions(step, expected, others, factor):
    draws = made_up_draws(len(PHOTOS), 1)
    done = step(PHOTOS, draws, factor, **others)
    for image, result, draw in zip(PHOTOS, done, draws[:, 0].tolist(), strict=True):
        # torchvision rounds the weight of red in grey to 0.2989
        torch.testing.assert_close(result, expected(image, in_range(draw, *factor)), atol=3e-4, rtol=0)


def test_contrast_per_channel_is_about_each_channels_mean():
    draws = made_up_draws(len(PHOTOS), 1)
    done = colour.contrast(PHOTOS, draws, (0.2, 1.6), per_channel=True)
    for image, result, draw in zip(PHOTOS.numpy(), done.numpy(), draws[:, 0].tolist(), strict=True):
        for channel, of_result in zip(image, result, strict=True):
            expected = (channel - channel.mean()) * in_range(draw, 0.2, 1.6) + channel.mean()
            assert abs(expected.clip(0, 1) - of_result).max() < 1e-5


def test_brightness_shift_adds_a_number():
    draws = made_up_draws(len(PHOTOS), 1)
    done = colour.brightness_shift(PHOTOS, draws, 0.6)
    for image, result, draw in zip(PHOTOS.numpy(), done.numpy(), draws[:, 0].tolist(), strict=True):
        assert abs((image + in_range(draw, -0.6, 0.6)).clip(0, 1) - result).max() < 1e-6


@pytest.mark.parametrize("factor", [(5, 35), (0.0, 1.0), (0.7, 1.3)])
def test_saturation_in_hsv_is_the_factor_of_s(factor):
    images = torch.cat([PHOTOS[:3, :, :6, :7], PURE.t()[None, :, :, None].expand(3, 3, 8, 7)[:, :, :6]])
    draws = made_up_draws(6, 1)
    done = colour.saturation(images, draws, factor, in_hsv=True)
    for image, result, draw in zip(images, done, draws[:, 0].tolist(), strict=True):
        times = in_range(draw, *factor)
        expected = pixel_by_pixel(image, lambda h, s, v, times=times: (h, s * times, v))
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [0.05, 0.2, 0.5])
def test_hue_is_torchvisions(turns):
    draws = made_up_draws(len(PHOTOS), 1)
    done = colour.hue(PHOTOS, draws, turns)
    for image, result, draw in zip(PHOTOS, done, draws[:, 0].tolist(), strict=True):
        expected = tv.adjust_hue(image, max(-0.5, min(0.5, in_range(draw, -turns, turns))))
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_brightness_contrast_is_albumentations_formula():
    draws = made_up_draws(len(PHOTOS), 2)
    done = colour.brightness_contrast(PHOTOS, draws, brightness=0.2, contrast=0.4)
    for image, result, (first, second) in zip(PHOTOS.numpy(), done.numpy(), draws.tolist(), strict=True):
        expected = image * in_range(first, 0.6, 1.4) + in_range(second, -0.2, 0.2)
        assert abs(expected.clip(0, 1) - result).max() < 1e-6


def test_hue_saturation_value_shifts_in_opencvs_units():
    images = PHOTOS[:, :, :6, :7]
    draws = made_up_draws(len(images), 3)
    done = colour.hue_saturation_value(images, draws, hue=30, saturation=60, value=90)
    for image, result, (first, second, third) in zip(images, done, draws.tolist(), strict=True):
        shifts = in_range(first, -30, 30) / 180, in_range(second, -60, 60) / 255, in_range(third, -90, 90) / 255
        expected = pixel_by_pixel(image, lambda h, s, v, by=shifts: (h + by[0], s + by[1], v + by[2]))
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_grayscale_is_torchvisions():
    done = colour.grayscale(PHOTOS, PHOTOS[:, 0, 0, :0])
    torch.testing.assert_close(done, tv.rgb_to_grayscale(PHOTOS, 3), atol=3e-4, rtol=0)


def test_hsv_is_the_standard_librarys_and_goes_back():
    pixels = torch.cat([PURE, PHOTOS.permute(0, 2, 3, 1).reshape(-1, 3)[:500]])
    images = pixels.t()[None, :, :, None]
    hsv = torch.cat(colour.rgb_to_hsv(images), 1)[0, :, :, 0].t()
    expected = torch.tensor([colorsys.rgb_to_hsv(*pixel) for pixel in pixels.tolist()])
    torch.testing.assert_close(hsv, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(colour.hsv_to_rgb(*colour.rgb_to_hsv(images)), images, atol=1e-6, rtol=0)
