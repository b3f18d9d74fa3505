"""A photo of a vehicle: camera, light, background, shadow, and what a cheap camera does to it."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from carvision.data.demo_drawing.background import draw_background
from carvision.data.demo_drawing.vehicle import Vehicle

FRONT, REAR, SIDE, FRONT_SIDE, REAR_SIDE = VIEWPOINTS = (1, 2, 3, 4, 5)  # CompCars' numbers
AZIMUTHS = {FRONT: (0, 8), REAR: (180, 8), SIDE: (90, 9), FRONT_SIDE: (42, 14), REAR_SIDE: (138, 14)}  # degrees, ±
OVERSAMPLE = 2  # drawn so many times larger, then averaged, as PIL's polygons have hard edges


class View(NamedTuple):
    """What the camera sees: pixels of a photo of `size`, of faces in the order of the vehicle's."""

    size: tuple[int, int]
    eye: np.ndarray  # (xyz) of the camera, metres
    pixels: np.ndarray  # (faces, corners, xy)
    horizon: float  # pixels from the top


def draw_photo(
    vehicle: Vehicle, viewpoint: int, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The RGB photo, and the vehicle's box in it: left, top, right, bottom; right and bottom excluded."""
    view = aim_camera(vehicle, viewpoint, rng)
    seen, colours = _light_up(vehicle, view.eye, rng)
    on_ground = view.pixels[vehicle.points[..., 2] < 0.03]
    photo = draw_background(*view.size, view.horizon, on_ground[:, 1].min(), rng)
    photo = _with_shadow(photo, on_ground, rng)
    photo = photo.resize([OVERSAMPLE * n for n in view.size], Image.Resampling.BILINEAR)
    box = paint_faces(photo, vehicle, view, np.flatnonzero(seen), colours)
    return _develop(photo.reduce(OVERSAMPLE), rng), box


def aim_camera(vehicle: Vehicle, viewpoint: int, rng: np.random.Generator) -> View:
    """A pinhole camera somewhere round the vehicle, which lies within the photo whole."""
    size = np.array((rng.integers(150, 171), rng.integers(112, 129)))
    middle, spread = AZIMUTHS[viewpoint]
    azimuth = np.deg2rad(middle + rng.uniform(-spread, spread)) * rng.choice((-1, 1))
    elevation, distance, roll = np.deg2rad(rng.uniform(3, 12)), rng.uniform(9, 15), np.deg2rad(rng.normal(0, 1))
    target = np.array((vehicle.points[..., 0].max() / 2, 0, 0.7))
    flat = np.array((-np.cos(azimuth), np.sin(azimuth), 0))
    toward_eye = flat * np.cos(elevation) + (0, 0, np.sin(elevation))
    up = -flat * np.sin(elevation) + (0, 0, np.cos(elevation))
    across = np.cross(up, toward_eye)
    across, up = across * np.cos(roll) + up * np.sin(roll), up * np.cos(roll) - across * np.sin(roll)
    eye = target + distance * toward_eye
    offset = vehicle.points - eye
    plane = np.stack([offset @ across, -(offset @ up)], -1) / -(offset @ toward_eye)[..., None]
    low, high = plane.min((0, 1)), plane.max((0, 1))
    scale = rng.uniform(0.84, 0.98) * (size / (high - low)).min()
    shift = (size - scale * (high - low)) * np.clip(rng.normal(0.5, 0.13, 2), 0.03, 0.97) - scale * low
    return View(tuple(size.tolist()), eye, plane * scale + shift, shift[1] - scale * np.tan(elevation))


def _light_up(vehicle: Vehicle, eye: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which faces are seen (faces,) bool, and their colours under a random light, (faces, rgb) uint8."""
    toward_eye = eye - vehicle.middles
    toward_eye /= np.linalg.norm(toward_eye, axis=1, keepdims=True)
    facing = (vehicle.normals * toward_eye).sum(1)
    light = np.array((*rng.uniform(-1, 1, 2), rng.uniform(0.7, 1.6)))
    lit = np.clip(vehicle.normals @ (light / np.linalg.norm(light)), 0, None)
    bright = rng.uniform(0.45, 0.62) + rng.uniform(0.45, 0.65) * lit
    mirrored_up = 2 * facing * vehicle.normals[:, 2] - toward_eye[:, 2]
    sky = np.clip(0.5 + 1.6 * mirrored_up, 0, 1) * vehicle.gloss
    colours = vehicle.colours * bright[:, None] * rng.uniform(0.93, 1.07, 3) + sky[:, None] * (0.26, 0.29, 0.33)
    return facing > 0, (np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _with_shadow(photo: Image.Image, on_ground: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """on_ground: (n, xy) pixels where the tyres touch the ground."""
    (left, top), (right, bottom) = on_ground.min(0), on_ground.max(0)
    grow = 0.04 * (right - left) + 2
    mask = Image.new("L", photo.size, 0)
    ellipse = (left - 2 * grow, top - grow, right + 2 * grow, bottom + grow)
    ImageDraw.Draw(mask).ellipse(ellipse, fill=int(rng.integers(110, 220)))
    shade = Image.new("RGB", photo.size, (12, 12, 16))
    return Image.composite(shade, photo, mask.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 4))))


def paint_faces(
    photo: Image.Image, vehicle: Vehicle, view: View, order: np.ndarray, colours: np.ndarray
) -> tuple[int, int, int, int]:
    """Paint the faces of `order` on a photo OVERSAMPLE times as large as the view, and return their box in it."""
    draw = ImageDraw.Draw(photo)
    corners = (view.pixels * OVERSAMPLE).reshape(len(view.pixels), -1).tolist()  # x, y, x, y, ...
    lengths, fills = (2 * vehicle.num_corners).tolist(), colours.tolist()
    for i in order.tolist():
        draw.polygon(corners[i][: lengths[i]], fill=tuple(fills[i]))
    left, top = np.floor(view.pixels[order].min((0, 1))).astype(int).tolist()
    right, bottom = np.ceil(view.pixels[order].max((0, 1))).astype(int).tolist()
    return max(left, 0), max(top, 0), min(right, view.size[0]), min(bottom, view.size[1])


def _develop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exposure, contrast, blur and noise."""
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(photo, np.float32)
    pixels = (pixels - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-18, 18)
    pixels += rng.standard_normal(pixels.shape, np.float32) * rng.uniform(0, 7)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
