"""Steps that move pixels, change light and colour, or blur, against torchvision, SciPy and the standard library."""

import colorsys
import math
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import ndimage

from carvision.augment import colour, geometry
from tests.augment.photos import between, check_step, made_up_draws, made_up_photos

PHOTOS = made_up_photos()
HEIGHT, WIDTH = PHOTOS.shape[2:]


def resampled(image: torch.Tensor, matrix: np.ndarray, border: str) -> np.ndarray:
    """Resample by a matrix (3, 3) from a pixel's (row, column, 1), about the centre, to its source."""
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = matrix[:2, 2] + centre - matrix[:2, :2] @ centre
    mode = {"reflect": "mirror", "edge": "nearest"}[border]
    return np.stack([ndimage.affine_transform(c, matrix[:2, :2], offset, order=1, mode=mode) for c in image.numpy()])


def rotation(degrees: float) -> np.ndarray:
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def test_flips_are_torchvisions():
    assert torch.equal(geometry.flip(PHOTOS, PHOTOS[:, 0, 0, :0]), tv.horizontal_flip(PHOTOS))
    assert torch.equal(geometry.vertical_flip(PHOTOS, PHOTOS[:, 0, 0, :0]), tv.vertical_flip(PHOTOS))


@pytest.mark.parametrize("degrees", [12, 180])
def test_rotate_is_torchvisions_and_fills_the_corners_like_scipy(degrees):
    def expected(image, draw, border):
        angle = between(draw, -degrees, degrees)
        if border == "black":
            return tv.rotate(image, angle, interpolation=tv.InterpolationMode.BILINEAR)
        return resampled(image, rotation(-angle), border)  # the source is where the rotation started

    for border in geometry.BORDERS:
        step = partial(geometry.rotate, degrees=degrees, border=border)
        check_step(step, partial(expected, border=border), atol=1e-3)


@pytest.mark.parametrize(("shift", "scale", "degrees"), [(0.05, 0.05, 4), (0.3, 0.5, 90)])
def test_shift_scale_rotate_inverts_opencvs_matrix(shift, scale, degrees):
    """OpenCV's getRotationMatrix2D maps a pixel to its target; the source is the inverse."""

    def expected(image, angle, factor, right, down):
        angle, factor = math.radians(between(angle, -degrees, degrees)), between(factor, 1 - scale, 1 + scale)
        alpha, beta = factor * math.cos(angle), factor * math.sin(angle)
        dx, dy = between(right, -shift, shift) * WIDTH, between(down, -shift, shift) * HEIGHT
        forward = np.array([[alpha, beta, dx], [-beta, alpha, dy], [0, 0, 1]])  # of (x, y)
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
        return resampled(image, swap @ np.linalg.inv(forward) @ swap, "reflect")

    step = partial(geometry.shift_scale_rotate, shift=shift, scale=scale, degrees=degrees, border="reflect")
    check_step(step, expected, num_draws=4, atol=1e-3)


@pytest.mark.parametrize("ranges", [(40, 0.2, 0.2, 0.2), (0, 0, 60, 0), (0, 0, 0, 0.9), (30, 0.3, 40, 0.5)])
def test_affine_is_kerass_product_of_matrices(ranges):
    degrees, shift, shear_degrees, zoom = ranges

    def expected(image, angle, down, right, shear, zoom_y, zoom_x):
        moved, sheared, zoomed = np.eye(3), np.eye(3), np.eye(3)
        moved[:2, 2] = between(down, -shift, shift) * HEIGHT, between(right, -shift, shift) * WIDTH
        shear = math.radians(between(shear, -shear_degrees, shear_degrees))
        sheared[:2, 1] = -math.sin(shear), math.cos(shear)
        zoomed[0, 0], zoomed[1, 1] = between(zoom_y, 1 - zoom, 1 + zoom), between(zoom_x, 1 - zoom, 1 + zoom)
        return resampled(image, rotation(between(angle, -degrees, degrees)) @ moved @ sheared @ zoomed, "edge")

    names = ("degrees", "shift", "shear_degrees", "zoom")
    step = partial(geometry.affine, **dict(zip(names, ranges, strict=True)), border="edge")
    check_step(step, expected, num_draws=6, atol=2e-3)


def stretched(lengths: list[float], size: int) -> list[float]:
    """Return the source coordinate of each pixel of an axis, part by part."""
    sources, part_px = [], size / len(lengths)
    for pixel in range(size):
        part = int(pixel / part_px + 1e-9)
        sources.append(part_px * sum(lengths[:part]) + (pixel - part * part_px) * lengths[part])
    return sources


@pytest.mark.parametrize(("num_steps", "limit"), [(5, 0.2), (3, 0.9), (1, 0.5)])
def test_grid_distortion_shows_each_part_at_its_length(num_steps, limit):
    def expected(image, *draws):
        lengths = [between(draw, 1 - limit, 1 + limit) for draw in draws]
        x, y = stretched(lengths[:num_steps], WIDTH), stretched(lengths[num_steps:], HEIGHT)
        source = np.meshgrid(y, x, indexing="ij")
        return np.stack([ndimage.map_coordinates(c, source, order=1, mode="mirror") for c in image.numpy()])

    step = partial(geometry.grid_distortion, num_steps=num_steps, limit=limit, border="reflect")
    check_step(step, expected, num_draws=2 * num_steps, atol=2e-3)


def test_grids_are_exact_under_autocast():
    draws = made_up_draws(len(PHOTOS), 10)
    for step in (
        partial(geometry.rotate, degrees=40, border="black"),
        partial(geometry.shift_scale_rotate, shift=0.2, scale=0.2, degrees=40, border="reflect"),
        partial(geometry.affine, degrees=40, shift=0.2, shear_degrees=0.2, zoom=0.2, border="edge"),
        partial(geometry.grid_distortion, num_steps=5, limit=0.2, border="reflect"),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            half = step(PHOTOS, draws)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, step(PHOTOS, draws))


@pytest.mark.parametrize("border", list(geometry.BORDERS))
def test_sampling_by_gathering_equals_grid_sample(border):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 7, 10, generator=random)
    x, y = (4 * size * torch.rand(3, 7, 10, generator=random) - 2 * size for size in (10, 7))
    x[0], y[0] = x[0].round(), y[0].round()  # on the pixels, the last ones too
    expected = geometry.sample(images, x - 9 / 2, y - 6 / 2, border)
    torch.testing.assert_close(geometry.sample_by_gathering(images, x, y, border), expected, atol=1e-5, rtol=0)
    row, column = torch.arange(10.0)[None, None], y[:, :, :1]  # as the steps' grids come
    whole = geometry.sample_by_gathering(images, row.expand(3, 7, 10), column.expand(3, 7, 10), border)
    assert torch.equal(geometry.sample_by_gathering(images, row, column, border), whole)


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
        step = partial(colour.hue, turns=turns)
        check_step(step, lambda i, d, t=turns: tv.adjust_hue(i, max(-0.5, min(0.5, between(d, -t, t)))), atol=1e-4)
    done = colour.grayscale(PHOTOS, PHOTOS[:, 0, 0, :0])
    torch.testing.assert_close(done, tv.rgb_to_grayscale(PHOTOS, 3), atol=3e-4, rtol=0)


def test_brightness_and_contrast_have_the_formulas_of_tensorflow_and_albumentations():
    def contrast_per_channel(image, draw):
        mean = image.mean(dim=(1, 2), keepdim=True)
        return ((image - mean) * between(draw, 0.2, 1.6) + mean).clamp(0, 1)

    check_step(partial(colour.contrast, factor=(0.2, 1.6), per_channel=True), contrast_per_channel, atol=1e-5)
    check_step(partial(colour.brightness_shift, limit=0.6), lambda i, draw: (i + between(draw, -0.6, 0.6)).clamp(0, 1))
    step = partial(colour.brightness_contrast, brightness=0.2, contrast=0.4)
    check_step(step, lambda i, a, b: (i * between(a, 0.6, 1.4) + between(b, -0.2, 0.2)).clamp(0, 1), num_draws=2)


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
