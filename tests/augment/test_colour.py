"""Steps that change light and colour, and blur, against torchvision, SciPy and the standard library."""

import colorsys
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import ndimage

from carvision.augment import colour
from tests.augment.photos import between, check_step, made_up_draws, made_up_photos

PHOTOS = made_up_photos()
PURE = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.5, 0.5, 0.5], [0, 0.3, 0.3]])


def pixel_by_pixel(image: torch.Tensor, change) -> torch.Tensor:
    """Apply change, (hue in turns, saturation, value) -> the same, not yet within 0..1, to each pixel."""
    done = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            hue, saturation, value = change(*colorsys.rgb_to_hsv(*image[:, y, x].tolist()))
            rgb = colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value)))
            done[:, y, x] = torch.tensor(rgb)
    return done


@pytest.mark.parametrize("factor", [(0, 2), (0.2, 0.6)])
def test_factors_hue_and_grayscale_are_torchvisions(factor):
    steps = {
        partial(colour.brightness, factor=factor): tv.adjust_brightness,
        partial(colour.contrast, factor=factor, per_channel=False): tv.adjust_contrast,
        partial(colour.saturation, factor=factor, in_hsv=False): tv.adjust_saturation,
    }
    for step, expected in steps.items():  # torchvision rounds the weight of red in grey to 0.2989
        check_step(step, lambda i, draw, expected=expected: expected(i, between(draw, *factor)), atol=3e-4)
    for turns in (0.05, 0.5):
        check_step(
            partial(colour.hue, turns=turns),
            lambda i, draw, turns=turns: tv.adjust_hue(i, max(-0.5, min(0.5, between(draw, -turns, turns)))), atol=1e-4,
        )  # fmt: skip
    done = colour.grayscale(PHOTOS, PHOTOS[:, 0, 0, :0])
    torch.testing.assert_close(done, tv.rgb_to_grayscale(PHOTOS, 3), atol=3e-4, rtol=0)


def test_brightness_and_contrast_have_the_formulas_of_tensorflow_and_albumentations():
    def contrast_per_channel(image, draw):
        mean = image.mean(dim=(1, 2), keepdim=True)
        return ((image - mean) * between(draw, 0.2, 1.6) + mean).clamp(0, 1)

    check_step(partial(colour.contrast, factor=(0.2, 1.6), per_channel=True), contrast_per_channel, atol=1e-5)
    check_step(partial(colour.brightness_shift, limit=0.6), lambda i, draw: (i + between(draw, -0.6, 0.6)).clamp(0, 1))
    check_step(
        partial(colour.brightness_contrast, brightness=0.2, contrast=0.4),
        lambda image, first, second: (image * between(first, 0.6, 1.4) + between(second, -0.2, 0.2)).clamp(0, 1),
        num_draws=2,
    )


def test_steps_in_hsv_multiply_s_and_shift_by_opencvs_units():
    images = torch.cat([PHOTOS[:3, :, :6, :7], PURE.t()[None, :, :, None].expand(3, 3, 8, 7)[:, :, :6]])

    def multiplied(image, draw):
        return pixel_by_pixel(image, lambda h, s, v: (h, s * between(draw, 0.7, 35), v))

    check_step(partial(colour.saturation, factor=(0.7, 35), in_hsv=True), multiplied, atol=1e-5, images=images)

    def shifted(image, hue, saturation, value):
        shifts = between(hue, -30, 30) / 180, between(saturation, -60, 60) / 255, between(value, -90, 90) / 255
        return pixel_by_pixel(image, lambda h, s, v: (h + shifts[0], s + shifts[1], v + shifts[2]))

    step = partial(colour.hue_saturation_value, hue=30, saturation=60, value=90)
    check_step(step, shifted, num_draws=3, atol=1e-5, images=PHOTOS[:, :, :6, :7])


@pytest.mark.parametrize("kernel_px", [(3, 5), (1, 5)])
def test_blur_uses_each_size_equally_often_with_opencvs_weights(kernel_px):
    sizes = list(range(kernel_px[0], kernel_px[1] + 1, 2))
    draws = made_up_draws(len(PHOTOS), 1)
    draws[2] = 1.0  # as rounding to half precision makes it
    done = colour.blur(PHOTOS, draws, kernel_px).numpy()
    for image, result, draw in zip(PHOTOS.numpy(), done, draws[:, 0].tolist(), strict=True):
        size = sizes[min(int(draw * len(sizes)), len(sizes) - 1)]
        weights = np.array({1: [1], 3: [1, 2, 1], 5: [1, 4, 6, 4, 1]}[size])
        expected = image.astype(np.float64)
        for axis in (1, 2):
            expected = ndimage.correlate1d(expected, weights / weights.sum(), axis, mode="mirror")
        assert abs(expected - result).max() < 1e-6


def test_larger_kernels_are_gaussians_with_opencvs_sigma():
    for size, sigma in ((9, 1.7), (15, 2.6)):  # 0.3 ((size - 1) / 2 - 1) + 0.8
        weights = np.exp(-(np.arange(size // 2 + 1) ** 2) / (2 * sigma**2))
        assert colour.gaussian_kernel(size) == pytest.approx((weights / (weights.sum() * 2 - 1)).tolist())
    assert sum(colour.gaussian_kernel(7)) * 2 - colour.gaussian_kernel(7)[0] == 1
