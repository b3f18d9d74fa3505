"""Steps that move pixels, against torchvision and SciPy, photo by photo."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import ndimage

from carvision.augment import geometry
from tests.augment.photos import made_up_draws, made_up_photos

SCIPY_BORDERS = {"reflect": "mirror", "edge": "nearest"}
PHOTOS = made_up_photos()


def resampled(image: torch.Tensor, matrix: np.ndarray, border: str) -> torch.Tensor:
    """matrix (3, 3): from the (row, column, 1) of a pixel, about the middle, to where its colour comes from."""
    middle = (np.array(image.shape[1:]) - 1) / 2
    offset = matrix[:2, 2] + middle - matrix[:2, :2] @ middle
    mode = SCIPY_BORDERS[border]
    channels = [ndimage.affine_transform(c, matrix[:2, :2], offset, order=1, mode=mode) for c in image.numpy()]
    return torch.from_numpy(np.stack(channels))


def in_range(draw: float, low: float, high: float) -> float:
    return low + (high - low) * draw


def turned(degrees: float) -> np.ndarray:
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def test_flips_change_sides():
    assert torch.equal(geometry.flip(PHOTOS, PHOTOS[:, 0, 0, :0]), tv.horizontal_flip(PHOTOS))
    assert torch.equal(geometry.vertical_flip(PHOTOS, PHOTOS[:, 0, 0, :0]), tv.vertical_flip(PHOTOS))


@pytest.mark.parametrize("degrees", [12, 180])
def test_rotate_is_torchvisions(degrees):
    draws = made_up_draws(len(PHOTOS), 1)
    turned_photos = geometry.rotate(PHOTOS, draws, degrees, "black")
    for image, done, draw in zip(PHOTOS, turned_photos, draws[:, 0].tolist(), strict=True):
        angle = in_range(draw, -degrees, degrees)
        expected = tv.rotate(image, angle, interpolation=tv.InterpolationMode.BILINEAR)
        torch.testing.assert_close(done, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "edge"])
@pytest.mark.parametrize("degrees", [12, 180])
def test_rotate_fills_the_corners_as_scipy_does(degrees, border):
    draws = made_up_draws(len(PHOTOS), 1)
    done = geometry.rotate(PHOTOS, draws, degrees, border)
    for place, draw in enumerate(draws[:, 0].tolist()):
        matrix = turned(-in_range(draw, -degrees, degrees))  # the colour comes from where the turn began
        expected = resampled(PHOTOS[place], matrix, border)
        torch.testing.assert_close(done[place], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("shift", "scale", "degrees"), [(0.05, 0.05, 4), (0.3, 0.5, 90), (0.2, 0, 0)])
def test_shift_scale_rotate_undoes_opencvs_matrix(shift, scale, degrees):
    """OpenCV's getRotationMatrix2D says where a pixel goes; the colour comes from the inverse."""
    draws = made_up_draws(len(PHOTOS), 4)
    done = geometry.shift_scale_rotate(PHOTOS, draws, shift, scale, degrees, "reflect")
    height, width = PHOTOS.shape[2:]
    for place, (angle, factor, right, down) in enumerate(draws.tolist()):
        angle, factor = math.radians(in_range(angle, -degrees, degrees)), in_range(factor, 1 - scale, 1 + scale)
        alpha, beta = factor * math.cos(angle), factor * math.sin(angle)
        dx, dy = in_range(right, -shift, shift) * width, in_range(down, -shift, shift) * height
        forward = np.array([[alpha, beta, dx], [-beta, alpha, dy], [0, 0, 1]])  # of (x, y)
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
        expected = resampled(PHOTOS[place], swap @ np.linalg.inv(forward) @ swap, "reflect")
        torch.testing.assert_close(done[place], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "ranges", [(40, 0.2, 0.2, 0.2), (0, 0.5, 0, 0), (90, 0, 0, 0), (0, 0, 60, 0), (0, 0, 0, 0.9), (30, 0.3, 40, 0.5)]
)
def test_affine_is_kerass_product_of_matrices(ranges):
    degrees, shift, shear_degrees, zoom = ranges
    draws = made_up_draws(len(PHOTOS), 6)
    done = geometry.affine(PHOTOS, draws, degrees, shift, shear_degrees, zoom, "edge")
    height, width = PHOTOS.shape[2:]
    for place, (angle, down, right, shear, zoom_y, zoom_x) in enumerate(draws.tolist()):
        moved, sheared, zoomed = np.eye(3), np.eye(3), np.eye(3)
        moved[:2, 2] = in_range(down, -shift, shift) * height, in_range(right, -shift, shift) * width
        shear = math.radians(in_range(shear, -shear_degrees, shear_degrees))
        sheared[:2, 1] = -math.sin(shear), math.cos(shear)
        zoomed[0, 0], zoomed[1, 1] = in_range(zoom_y, 1 - zoom, 1 + zoom), in_range(zoom_x, 1 - zoom, 1 + zoom)
        matrix = turned(in_range(angle, -degrees, degrees)) @ moved @ sheared @ zoomed
        expected = resampled(PHOTOS[place], matrix, "edge")
        torch.testing.assert_close(done[place], expected, atol=2e-3, rtol=0)


def stretched(lengths: list[float], size: int) -> list[float]:
    """Where each pixel of an axis looks, part by part."""
    places, part_px = [], size / len(lengths)
    for pixel in range(size):
        part = int(pixel / part_px + 1e-9)
        places.append(part_px * sum(lengths[:part]) + (pixel - part * part_px) * lengths[part])
    return places


@pytest.mark.parametrize(("num_steps", "limit"), [(5, 0.2), (3, 0.9), (1, 0.5)])
def test_grid_distortion_shows_each_part_at_its_length(num_steps, limit):
    draws = made_up_draws(len(PHOTOS), 2 * num_steps)
    done = geometry.grid_distortion(PHOTOS, draws, num_steps, limit, "reflect")
    height, width = PHOTOS.shape[2:]
    for image, result, own in zip(PHOTOS, done, draws, strict=True):
        lengths = [in_range(draw, 1 - limit, 1 + limit) for draw in own.tolist()]
        x, y = stretched(lengths[:num_steps], width), stretched(lengths[num_steps:], height)
        where = np.meshgrid(y, x, indexing="ij")
        expected = np.stack([ndimage.map_coordinates(c, where, order=1, mode="mirror") for c in image.numpy()])
        torch.testing.assert_close(result, torch.from_numpy(expected), atol=2e-3, rtol=0)


def test_grid_distortion_looks_where_albumentations_does():
    """Its map of an axis, where the parts are whole pixels; there each part ends where the next one begins."""
    lengths, size = [1.2, 0.8, 1.1, 0.9, 1.15], 200
    step, albumentations, begin = size // 5, np.zeros(size), 0.0
    for part, length in enumerate(lengths):
        end = begin + step * length
        albumentations[part * step : (part + 1) * step] = np.linspace(begin, end, step)
        begin = end
    ours = geometry._stretched(torch.tensor([lengths]), size)[0].numpy() + (size - 1) / 2
    assert np.abs(ours - albumentations).max() < 1.3  # a pixel's step, as its linspace takes both ends


def test_no_change_gives_the_photo_back():
    middle = torch.full((len(PHOTOS), 10), 0.5)
    for done in (
        geometry.rotate(PHOTOS, middle, 40, "black"),
        geometry.shift_scale_rotate(PHOTOS, middle, 0.2, 0.2, 40, "reflect"),
        geometry.affine(PHOTOS, middle, 40, 0.2, 0.2, 0.2, "edge"),
        geometry.grid_distortion(PHOTOS, middle, 5, 0.2, "reflect"),
    ):
        torch.testing.assert_close(done, PHOTOS, atol=1e-4, rtol=0)


def test_grids_stay_exact_under_autocast():
    draws = made_up_draws(len(PHOTOS), 10)
    with torch.autocast("cpu", torch.bfloat16):
        half = geometry.affine(PHOTOS, draws, 40, 0.2, 0.2, 0.2, "edge")
        distorted = geometry.grid_distortion(PHOTOS, draws, 5, 0.2, "reflect")
    assert half.dtype == distorted.dtype == torch.float32
    torch.testing.assert_close(half, geometry.affine(PHOTOS, draws, 40, 0.2, 0.2, 0.2, "edge"))
    torch.testing.assert_close(distorted, geometry.grid_distortion(PHOTOS, draws, 5, 0.2, "reflect"))


@pytest.mark.parametrize("border", list(geometry.BORDERS))
def test_gathering_samples_as_grid_sample_does(border):
    images = torch.rand(3, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    x, y = (
        4 * size * torch.rand(3, 7, 10, generator=torch.Generator().manual_seed(size)) - 2 * size for size in (10, 7)
    )
    x[0], y[0] = x[0].round(), y[0].round()  # on the pixels, the last ones too
    expected = geometry.sample(images, x - 9 / 2, y - 6 / 2, border)
    torch.testing.assert_close(geometry.sample_by_gathering(images, x, y, border), expected, atol=1e-5, rtol=0)
    row = geometry.sample_by_gathering(images, torch.arange(10.0)[None, None], y[:, :, :1], border)  # as grids come
    wide = geometry.sample_by_gathering(
        images, torch.arange(10.0).expand(3, 7, 10), y[:, :, :1].expand(3, 7, 10), border
    )
    assert torch.equal(row, wide)
