"""What is behind a vehicle: sky and ground with a street, trees, a wall, a car park, or a plain studio."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SKIES = ((120, 165, 215), (195, 205, 215), (235, 190, 150), (160, 170, 180), (90, 110, 150))
GROUNDS = ((95, 95, 98), (130, 128, 125), (80, 82, 88), (150, 140, 120), (105, 125, 80))
LEAVES = ((60, 95, 45), (85, 110, 55), (45, 75, 50), (120, 110, 50))
WALLS = ((165, 90, 70), (200, 190, 170), (140, 145, 150), (110, 105, 115), (185, 200, 205), (90, 100, 85))


def draw_background(width: int, height: int, horizon: float, contact: float, rng: np.random.Generator) -> Image.Image:
    """horizon, contact: heights (pixels from the top) of the horizon and of the farthest wheel on the ground."""
    draw_scene = SCENES[rng.integers(len(SCENES))]
    near = rng.uniform(0.5, 0.9) if draw_scene is _wall else rng.uniform(0.05, 0.5)
    ground = float(np.clip(horizon + near * (contact - horizon), 4, height - 4))
    photo = _sky_and_ground(width, height, ground, draw_scene is _studio, rng)
    draw_scene(ImageDraw.Draw(photo), width, ground, rng)
    if draw_scene is not _studio and rng.random() < 0.5:
        _markings(ImageDraw.Draw(photo), width, height, ground, rng)
    return photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.4)))


def _colour(palette: tuple, rng: np.random.Generator, spread: float = 18) -> tuple[int, int, int]:
    """One of the palette, somewhat lighter or darker, and a little off in hue."""
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


def _studio(draw: ImageDraw.ImageDraw, width: int, ground: float, rng: np.random.Generator) -> None:
    """Nothing stands there."""


def _markings(draw: ImageDraw.ImageDraw, width: int, height: int, ground: float, rng: np.random.Generator) -> None:
    """A kerb along the ground line, and lines on the road that meet at the horizon."""
    draw.rectangle((0, ground, width, ground + rng.uniform(2, 6)), fill=_colour(GROUNDS, rng, 25))
    vanishing = rng.uniform(-0.5, 1.5) * width
    for foot in rng.uniform(-1, 2, rng.integers(1, 4)) * width:
        far = ground + 0.25 * (height - ground)
        at = vanishing + 0.25 * (foot - vanishing)
        draw.polygon([(at, far), (at + 2, far), (foot + 8, height), (foot, height)], fill=(205, 205, 195))


SCENES = (_street, _trees, _wall, _car_park, _studio)
