"""Polygons in space, of which a vehicle is made.

Metres; x runs from the nose (0) to the tail, y to the sides (0 is the middle), z up from the ground.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue, 0..1

BLACK, DARK, GREY = (0.03, 0.03, 0.04), (0.10, 0.10, 0.11), (0.32, 0.33, 0.35)
SILVER, WHITE, CHROME = (0.72, 0.74, 0.76), (0.95, 0.95, 0.93), (0.88, 0.89, 0.91)
LAMP, RED, DARK_RED, AMBER = (1.0, 0.98, 0.88), (0.80, 0.04, 0.06), (0.25, 0.02, 0.03), (0.95, 0.55, 0.10)
SIDES = (-1, 1)


@dataclass(frozen=True)
class Finish:
    """What differs between two cars of one model. It says nothing about make and model."""

    paint: Colour
    glass: Colour
    plate: Colour
    pillar: Colour
    wheel_scale: float


class Face(NamedTuple):
    """A polygon. `inside` is a point behind it: seen from that side it isn't drawn.

    None: the middle line of the vehicle; for faces of nose and tail, a point of it further in.
    """

    points: np.ndarray  # (n, 3)
    colour: Colour
    gloss: float  # 0..1: how much of the sky it mirrors
    inside: np.ndarray | None  # (3,)


def create_face(
    points: Iterable[Iterable[float]], colour: Colour, gloss: float = 0.0, inside: Iterable[float] | None = None
) -> Face:
    return Face(np.array(points, float), colour, gloss, None if inside is None else np.array(inside, float))


def create_circle(radius: float, centre: Iterable[float], plane: str = "xz", num: int = 16) -> np.ndarray:
    """Corners (num, 3) of a circle in the plane of two axes."""
    angles = np.linspace(0, 2 * np.pi, num, endpoint=False)
    points = np.tile(np.array(centre, float), (num, 1))
    points[:, "xyz".index(plane[0])] += radius * np.cos(angles)
    points[:, "xyz".index(plane[1])] += radius * np.sin(angles)
    return points
