"""Gaussian blur against SciPy; the rectangles of random erasing, found again in the result."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from carvision.augment.colour import blur, gaussian_kernel
from carvision.augment.mixing import erase
from tests.augment.photos import made_up_draws, made_up_photos

PHOTOS = made_up_photos()
PASCAL = {1: [1], 3: [1, 2, 1], 5: [1, 4, 6, 4, 1]}


@pytest.mark.parametrize("kernel_px", [(3, 5), (1, 5), (5, 5)])
def test_blur_takes_each_size_as_often_with_opencvs_weights(kernel_px):
    sizes = list(range(kernel_px[0], kernel_px[1] + 1, 2))
    draws = made_up_draws(len(PHOTOS), 1)
    draws[2] = 1.0  # as rounding to half precision makes it
    done = blur(PHOTOS, draws, kernel_px).numpy()
    for image, result, draw in zip(PHOTOS.numpy(), done, draws[:, 0].tolist(), strict=True):
        weights = np.array(PASCAL[sizes[min(int(draw * len(sizes)), len(sizes) - 1)]], np.float64)
        expected = image.astype(np.float64)
        for axis in (1, 2):
            expected = ndimage.correlate1d(expected, weights / weights.sum(), axis, mode="mirror")
        assert abs(expected - result).max() < 1e-6


def test_larger_kernels_are_gaussians_with_opencvs_sigma():
    for size, sigma in ((9, 1.7), (15, 2.6)):  # 0.3 ((size - 1) / 2 - 1) + 0.8
        weights = np.exp(-(np.arange(size // 2 + 1) ** 2) / (2 * sigma**2))
        expected = weights / (weights.sum() * 2 - 1)
        assert gaussian_kernel(size) == pytest.approx(expected.tolist())
    assert sum(gaussian_kernel(7)) * 2 - gaussian_kernel(7)[0] == 1


def rectangle(changed: np.ndarray) -> tuple[int, int, int, int]:
    """top, left, bottom, right of the True part of (H, W), which must be a full rectangle."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert changed[top:bottom, left:right].all() and changed.sum() == (bottom - top) * (right - left)
    return top, left, bottom, right


@pytest.mark.parametrize(("area", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.2, 0.9), (0.1, 10)), ((0.1, 0.1), (1, 1))])
def test_rectangles_have_their_area_shape_and_position(area, ratio):
    height, width, num = 60, 100, 400
    draws = made_up_draws(num, 5)
    # The mean of black and white halves is grey, which no pixel is
    images = torch.zeros(num, 3, height, width)
    images[:, :, ::2] = 1.0
    changed = ((erase(images, draws, area, ratio, "mean") - 0.5).abs() < 1e-4).all(1).numpy()
    found = np.array([rectangle(photo) for photo in changed])
    high, wide = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    share = high * wide / (height * width)
    expected = area[0] + (area[1] - area[0]) * draws[:, 0].numpy()
    assert np.abs(share - expected).max() < 0.5 * (1 / high + 1 / wide).max() + 0.01
    assert np.abs(share - expected).mean() < 0.01
    shape = (high / height) / (wide / width)
    assert ((shape > ratio[0] * 0.8) & (shape < ratio[1] * 1.25)).all()
    if ratio[0] < 1 and area[1] < 0.5:
        assert abs(np.log(shape).mean()) < 0.1 and shape.min() < 0.4 and shape.max() > 2.5
    assert (found >= 0).all() and (found[:, 2] <= height).all() and (found[:, 3] <= width).all()
    free_y, free_x = height - high, width - wide
    assert np.abs(found[:, 0] - np.floor(draws[:, 2].numpy() * (free_y + 1))).max() == 0
    assert np.abs(found[:, 1] - np.floor(draws[:, 3].numpy() * (free_x + 1))).max() == 0


def test_the_rest_of_the_photo_stays_and_the_fill_is_its_mean():
    draws = made_up_draws(len(PHOTOS), 5)
    done = erase(PHOTOS, draws, (0.1, 0.3), (0.5, 2), "mean")
    for image, result in zip(PHOTOS[:-1], done, strict=False):  # the last photo is flat
        lost = (image != result).all(0)
        assert 0.05 < lost.float().mean() < 0.35
        assert torch.equal(image[:, ~lost], result[:, ~lost])
        expected = image.mean(dim=(1, 2))[:, None].expand(3, int(lost.sum()))
        torch.testing.assert_close(result[:, lost], expected)


def test_noise_is_uniform_and_another_for_each_pixel_channel_photo_and_draw():
    images = torch.zeros(6, 3, 64, 64)
    draws = made_up_draws(6, 5)
    draws[:, :4] = torch.tensor([0.999, 0.5, 0.0, 0.0])
    noise = erase(images, draws, (0.9, 0.999), (1, 1), "noise")[:, :, :58, :58]
    values = noise.flatten()
    assert ((values >= 0) & (values < 1)).all() and values.unique().numel() > 0.98 * values.numel()
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    series = noise.permute(1, 0, 2, 3).reshape(18, -1).numpy()
    assert np.abs(np.corrcoef(series)[np.triu_indices(18, 1)]).max() < 0.08
    for shifted in (noise[..., 1:] * noise[..., :-1], noise[..., 1:, :] * noise[..., :-1, :]):
        assert shifted.mean().item() == pytest.approx(0.25, abs=0.01)  # neighbours have nothing to do with each other
    assert torch.equal(noise, erase(images, draws, (0.9, 0.999), (1, 1), "noise")[:, :, :58, :58])
