"""Draw a photo of a vehicle: camera, light, background, shadow, and a cheap camera's blur and noise.

The background is a street, trees, a wall, a car park or a plain studio.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from carvision.demo.vehicle import Vehicle

FRONT, REAR, SIDE, FRONT_SIDE, REAR_SIDE = VIEWPOINTS = (1, 2, 3, 4, 5)  # CompCars' numbers
AZIMUTHS = {FRONT: (0, 8), REAR: (180, 8), SIDE: (90, 9), FRONT_SIDE: (42, 14), REAR_SIDE: (138, 14)}  # degrees, ±
OVERSAMPLE = 2  # drawn larger by this factor, then averaged, as PIL's polygons have hard edges
SKIES = ((120, 165, 215), (195, 205, 215), (235, 190, 150), (160, 170, 180), (90, 110, 150))
GROUNDS = ((95, 95, 98), (130, 128, 125), (80, 82, 88), (150, 140, 120), (105, 125, 80))
LEAVES = ((60, 95, 45), (85, 110, 55), (45, 75, 50), (120, 110, 50))
WALLS = ((165, 90, 70), (200, 190, 170), (140, 145, 150), (110, 105, 115), (185, 200, 205), (90, 100, 85))


class View(NamedTuple):
    """A vehicle projected into a photo of `size` pixels (width, height)."""

    size: tuple[int, int]
    eye: np.ndarray  # (xyz) of the camera, metres
    pixels: np.ndarray  # (faces, corners, xy), in the order of the vehicle's faces
    horizon: float  # pixels from the top


def draw_photo(
    vehicle: Vehicle, viewpoint: int, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draw an RGB photo; return it and the vehicle's box: left, top, right, bottom, the last two excluded.

    viewpoint: one of VIEWPOINTS.
    """
    view = aim_camera(vehicle, viewpoint, rng)
    seen, colours = _light_up(vehicle, view.eye, rng)
    on_ground = view.pixels[vehicle.points[..., 2] < 0.03]
    photo = draw_background(*view.size, view.horizon, on_ground[:, 1].min(), rng)
    photo = _with_shadow(photo, on_ground, rng)
    photo = photo.resize([OVERSAMPLE * n for n in view.size], Image.Resampling.BILINEAR)
    box = paint_faces(photo, vehicle, view, np.flatnonzero(seen), colours)
    return _develop(photo.reduce(OVERSAMPLE), rng), box


def aim_camera(vehicle: Vehicle, viewpoint: int, rng: np.random.Generator) -> View:
    """Place a pinhole camera at random around the vehicle, which lies entirely within the photo."""
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
    """Return which faces are visible, bool (faces,), and their colours under a random light, uint8 (faces, rgb)."""
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
    """Draw a shadow below the vehicle. on_ground: (n, xy) pixels where the tyres touch the ground."""
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
    """Paint the faces of `order` on a photo OVERSAMPLE times the view's size, and return their box in the view."""
    draw = ImageDraw.Draw(photo)
    corners = (view.pixels * OVERSAMPLE).reshape(len(view.pixels), -1).tolist()  # x, y, x, y, ...
    lengths, fills = (2 * vehicle.num_corners).tolist(), colours.tolist()
    for i in order.tolist():
        draw.polygon(corners[i][: lengths[i]], fill=tuple(fills[i]))
    left, top = np.floor(view.pixels[order].min((0, 1))).astype(int).tolist()
    right, bottom = np.ceil(view.pixels[order].max((0, 1))).astype(int).tolist()
    return max(left, 0), max(top, 0), min(right, view.size[0]), min(bottom, view.size[1])


def _develop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add random exposure, contrast, blur and noise."""
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(photo, np.float32)
    pixels = (pixels - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-18, 18)
    pixels += rng.standard_normal(pixels.shape, np.float32) * rng.uniform(0, 7)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_background(width: int, height: int, horizon: float, contact: float, rng: np.random.Generator) -> Image.Image:
    """Draw a random background. horizon, contact: of the horizon and the farthest wheel on the ground, pixels from the
    top."""
    draw_scene = SCENES[rng.integers(len(SCENES))]
    near = rng.uniform(0.5, 0.9) if draw_scene is _wall else rng.uniform(0.05, 0.5)
    ground = float(np.clip(horizon + near * (contact - horizon), 4, height - 4))
    photo = _sky_and_ground(width, height, ground, draw_scene is None, rng)
    if draw_scene:
        draw_scene(ImageDraw.Draw(photo), width, ground, rng)
        if rng.random() < 0.5:
            _markings(ImageDraw.Draw(photo), width, height, ground, rng)
    return photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.4)))


def _colour(palette: tuple, rng: np.random.Generator, spread: float = 18) -> tuple[int, int, int]:
    """Choose a colour of the palette, and vary its brightness and a little its hue."""
    colour = np.array(palette[rng.integers(len(palette))]) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return tuple(np.clip(colour, 5, 250).astype(int).tolist())


def _sky_and_ground(width: int, height: int, ground: float, plain: bool, rng: np.random.Generator) -> Image.Image:
    sky = np.array(_colour(SKIES, rng), np.float32)
    floor = sky * rng.uniform(0.6, 0.9) if plain else np.array(_colour(GROUNDS, rng), np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    fade = np.clip(y / ground, 0, 1)
    above = sky * (1 - 0.5 * fade) + np.minimum(sky + 70, 245) * 0.5 * fade
    below = floor * (1.15 - 0.35 * (y - ground) / (height - ground))
    column = np.where(y < ground, above, below)[:, None, :]
    coarse = rng.normal(0, 1 if plain else rng.uniform(2, 10), (height // 8 + 2, width // 8 + 2)).astype(np.float32)
    texture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = column + np.asarray(texture)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _street(draw: ImageDraw.ImageDraw, width: int, ground: float, rng: np.random.Generator) -> None:
    x = -rng.uniform(0, 30)
    while x < width:
        broad, top = rng.uniform(18, 50), ground * (1 - rng.uniform(0.3, 1.0))
        wall, pane = _colour(WALLS, rng), _colour(SKIES, rng, 30)
        draw.rectangle((x, top, x + broad, ground), fill=wall)
        step = rng.uniform(7, 12)
        for left in np.arange(x + 3, x + broad - 5, step):
            for up in np.arange(top + 4, ground - 8, step * 1.2):
                draw.rectangle((left, up, left + step * 0.5, up + step * 0.6), fill=pane)
        x += broad + rng.uniform(0, 12)


def _trees(draw: ImageDraw.ImageDraw, width: int, ground: float, rng: np.random.Generator) -> None:
    peaks = ground * (1 - rng.uniform(0.05, 0.5, 6))
    ridge = list(zip(np.linspace(0, width, 6).tolist(), peaks.tolist(), strict=True))
    draw.polygon([(0, ground), *ridge, (width, ground)], fill=_colour(LEAVES, rng, 25))
    for _ in range(rng.integers(2, 8)):
        x, radius = rng.uniform(0, width), rng.uniform(6, 24)
        y = ground - radius * rng.uniform(0.8, 1.6)
        draw.rectangle((x - 1.5, y, x + 1.5, ground), fill=(70, 55, 40))
        draw.ellipse((x - radius * 0.8, y - radius, x + radius * 0.8, y + radius * 0.8), fill=_colour(LEAVES, rng))


def _wall(draw: ImageDraw.ImageDraw, width: int, ground: float, rng: np.random.Generator) -> None:
    wall = _colour(WALLS, rng)
    draw.rectangle((0, 0, width, ground), fill=wall)
    joint = tuple(int(c * rng.uniform(0.75, 0.92)) for c in wall)
    row = rng.uniform(5, 20)
    for i, y in enumerate(np.arange(ground, 0, -row)):
        draw.line((0, y, width, y), fill=joint)
        for x in np.arange((i % 2) * row, width, 2 * row):
            draw.line((x, y, x, y - row), fill=joint)
    if rng.random() < 0.5:
        x, broad = rng.uniform(0, width), rng.uniform(15, 40)
        draw.rectangle((x, ground * 0.35, x + broad, ground), fill=_colour(WALLS, rng, 35))


def _car_park(draw: ImageDraw.ImageDraw, width: int, ground: float, rng: np.random.Generator) -> None:
    (_trees if rng.random() < 0.5 else _street)(draw, width, ground, rng)
    for x in np.arange(-rng.uniform(0, 40), width, rng.uniform(35, 60)):
        broad, high, paint = rng.uniform(26, 40), rng.uniform(9, 15), _colour(WALLS, rng, 50)
        low, shoulder = ground + 2, ground + 2 - 0.55 * high
        cabin = [(x + 0.2 * broad, low - high), (x + 0.7 * broad, low - high), (x + 0.9 * broad, shoulder)]
        draw.polygon([(x + 0.05 * broad, shoulder), *cabin], fill=(45, 50, 58))
        draw.rectangle((x, shoulder, x + broad, low), fill=paint)
        for wheel in (0.22, 0.78):
            spot = x + wheel * broad
            draw.ellipse((spot - 3, low - 3, spot + 3, low + 3), fill=(25, 25, 28))


def _markings(draw: ImageDraw.ImageDraw, width: int, height: int, ground: float, rng: np.random.Generator) -> None:
    """Draw a kerb along the ground line, and road markings that meet at the horizon."""
    draw.rectangle((0, ground, width, ground + rng.uniform(2, 6)), fill=_colour(GROUNDS, rng, 25))
    vanishing = rng.uniform(-0.5, 1.5) * width
    for foot in rng.uniform(-1, 2, rng.integers(1, 4)) * width:
        far = ground + 0.25 * (height - ground)
        at = vanishing + 0.25 * (foot - vanishing)
        draw.polygon([(at, far), (at + 2, far), (foot + 8, height), (foot, height)], fill=(205, 205, 195))


SCENES = (_street, _trees, _wall, _car_park, None)  # None: a plain studio
