"""The body of a vehicle below its windows, with lamps, grille, number plates and door seams.

It is a shell: a grid (station, level, xyz) of points of its left half. Stations run from nose to tail; levels
from 0 (sill) over 1 (bumper) and 2 (shoulder) to 3 (bonnet, window sill, boot lid).
"""

import numpy as np

from carvision.data.demo_drawing.cars import Make, Model, Outline
from carvision.data.demo_drawing.faces import (
    AMBER,
    BLACK,
    DARK,
    DARK_RED,
    GREY,
    LAMP,
    RED,
    SIDES,
    Face,
    Finish,
    create_circle,
    create_face,
)

LEVELS = ((0, 0.95), (0.42, 1), (0.86, 0.97), (1, 0.88))  # shares of the height and of the half width


def create_shell(m: Model) -> np.ndarray:
    """(stations, 4 levels, xyz)."""
    end = m.length
    boot = min(m.deck[0], end - 0.06)
    stations = (0, 0.12, 0.4, 0.5 * (0.4 + m.cowl[0]), m.cowl[0], 0.5 * end, boot, end - 0.35, end - 0.05, end)
    x = np.unique(stations)
    corners = ((0, m.nose_z), (0.12, m.nose_z + 0.05), m.cowl, (boot, m.deck[1]), (end, m.tail_z))
    at, heights = zip(*corners, strict=True)
    top = np.interp(x, at, heights)
    half = np.interp(x, (0, 0.12, 0.4, end - 0.35, end - 0.05, end), (0.80, 0.93, 1, 1, 0.95, 0.88))
    low = m.clearance + np.interp(x, (0, 0.5, end - 0.5, end), (0.04, 0, 0, 0.08))
    shell = np.empty((len(x), len(LEVELS), 3))
    for level, (height, width) in enumerate(LEVELS):
        shell[:, level] = np.stack([x, 0.5 * m.width * half * width, low + height * (top - low)], 1)
    shell[0, :, 0] += (0.07, 0, 0.02, 0.07)  # the nose leans back above the bumper, and below it
    shell[-1, :, 0] -= (0.04, 0, 0.01, 0.03)
    return shell


def create_body(m: Model, make: Make, finish: Finish, shell: np.ndarray) -> list[Face]:
    left, right = shell, shell * (1, -1, 1)
    faces = []
    for level, colour in enumerate((make.sill or finish.paint, finish.paint, finish.paint)):
        for half in (left, right):
            quads = zip(half[:-1, level], half[1:, level], half[1:, level + 1], half[:-1, level + 1], strict=True)
            faces += [create_face(quad, colour, 0.5) for quad in quads]
        for end in (0, -1):
            quad = (left[end, level], right[end, level], right[end, level + 1], left[end, level + 1])
            faces.append(create_face(quad, colour, 0.5))
    tops = zip(left[:-1, 3], right[:-1, 3], right[1:, 3], left[1:, 3], strict=True)
    faces += [create_face(quad, finish.paint, 0.6, inside=np.mean(quad, 0) - (0, 0, 1)) for quad in tops]
    if m.body == "pickup":
        x0, x1, y, z = m.deck[0] + 0.08, m.length - 0.12, m.width * 0.37, m.tail_z + 0.01
        bed = ((x0, y, m.deck[1] + 0.01), (x0, -y, m.deck[1] + 0.01), (x1, -y, z), (x1, y, z))
        faces.append(create_face(bed, BLACK, inside=(x0, 0, 0)))
    return faces


def create_front(m: Model, make: Make, finish: Finish, shell: np.ndarray) -> list[Face]:
    faces = [create_face(_on_end(shell, outline), make.intake) for outline in m.intakes]
    for outline in (_scaled(outline, m.grille_scale) for outline in make.grille):
        faces.append(create_face(_on_end(shell, _grown(outline, 1.25)), make.grille_frame, 0.2))
        faces.append(create_face(_on_end(shell, outline), BLACK, 0.1))
    for side in SIDES:
        for outline in make.headlamps:
            faces.append(create_face(_on_end(shell, _grown(outline, 1.2), side), DARK, 0.2))
            faces.append(create_face(_on_end(shell, outline, side), LAMP, 0.9))
    plate = ((-0.32, 0.5), (0.32, 0.5), (0.32, 0.88), (-0.32, 0.88))
    return [*faces, create_face(_on_end(shell, plate), finish.plate)]


def create_rear(m: Model, make: Make, finish: Finish, shell: np.ndarray) -> list[Face]:
    back, low = shell[::-1], m.plate_level
    faces = [create_face(_on_end(back, outline), make.intake) for outline in m.intakes]
    for side in SIDES:
        for outline in make.taillamps:
            faces.append(create_face(_on_end(back, _grown(outline, 1.2), side), DARK_RED, 0.2))
            faces.append(create_face(_on_end(back, outline, side), RED, 0.4))
    plate = ((-0.34, low), (0.34, low), (0.34, low + 0.4), (-0.34, low + 0.4))
    faces.append(create_face(_on_end(back, plate), finish.plate))
    if m.spare_wheel:
        centre, radius = (m.length + 0.03, 0, 0.5 * (m.clearance + m.tail_z) + 0.22), m.wheel_radius * 0.9
        faces.append(create_face(create_circle(radius, centre, "yz"), BLACK))
        faces.append(create_face(create_circle(radius * 0.65, centre, "yz"), GREY, 0.3))
    return faces


def create_doors(m: Model, finish: Finish, shell: np.ndarray) -> list[Face]:
    """Seams, handles, trim and side indicators."""
    red, green, blue = (0.45 * c for c in finish.paint)
    seam = red, green, blue
    edges = np.linspace(m.cowl[0] + 0.12, min(m.roof[1] + 0.05, m.length - 0.95), 2 if m.doors == 2 else 3)
    faces = []
    for side in SIDES:
        for x in edges:
            faces.append(create_face(_on_side(shell, x, x + 0.03, 0.4, 2.9, side), seam))
        for x in edges[1:]:
            faces.append(create_face(_on_side(shell, x - 0.30, x - 0.12, 2.2, 2.35, side), seam))
        if m.trim:
            faces.append(create_face(_on_side(shell, edges[0], edges[-1], 1.1, 1.45, side), m.trim, 0.1))
        faces.append(create_face(_on_side(shell, 0.5, 0.66, 1.5, 1.75, side), AMBER))
    return faces


def _at(shell: np.ndarray, station: float, level: float) -> np.ndarray:
    """The point of the shell between whole stations and levels."""
    i, j = min(int(station), len(shell) - 2), min(int(level), len(LEVELS) - 2)
    a, b = station - i, level - j
    near = shell[i, j] * (1 - b) + shell[i, j + 1] * b
    far = shell[i + 1, j] * (1 - b) + shell[i + 1, j + 1] * b
    return near * (1 - a) + far * a


def _on_end(shell: np.ndarray, outline: Outline, side: int = 1) -> np.ndarray:
    """Points (n, 3) of an outline on the end of the shell at its first station.

    across: -1..1 over the end, and on to 2 round the corner, along the first two stretches of the side.
    """
    points = [_at(shell, 2 * max(abs(across) - 1, 0), np.clip(level, 0, 3)) for across, level in outline]
    return np.array(points) * [(1, side * np.clip(across, -1, 1), 1) for across, _ in outline]


def _on_side(shell: np.ndarray, x0: float, x1: float, low: float, high: float, side: int) -> np.ndarray:
    """Corners (4, 3) of a panel on the side, between two x and two levels."""
    stations = np.interp((x0, x1, x1, x0), shell[:, 1, 0], np.arange(len(shell)))
    points = [_at(shell, *spot) for spot in zip(stations, (low, low, high, high), strict=True)]
    return np.array(points) * (1, side, 1)


def _scaled(outline: Outline, scale: float) -> Outline:
    """Larger or smaller round the middle of the nose."""
    return tuple((across * scale, 1.5 + (level - 1.5) * scale) for across, level in outline)


def _grown(outline: Outline, scale: float) -> Outline:
    """With a margin, for the frame round it."""
    middle = np.mean(outline, 0)
    return tuple(map(tuple, middle + (np.array(outline) - middle) * scale))
