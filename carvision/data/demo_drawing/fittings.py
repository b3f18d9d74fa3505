"""What stands on the body of a vehicle or under it: cabin, wheels, mirrors, wing."""

import numpy as np

from carvision.data.demo_drawing.cars import Make, Model
from carvision.data.demo_drawing.faces import (
    BLACK,
    DARK,
    SIDES,
    SILVER,
    Colour,
    Face,
    Finish,
    create_circle,
    create_face,
)

BELT_SHARE = 0.86  # width of the cabin at its foot, in widths of the body
EAVES = 0.06  # metres from the edge of the roof up to its top


def create_cabin(m: Model, make: Make, finish: Finish) -> list[Face]:
    colour = make.roof or finish.paint
    belt, eaves = 0.5 * m.width * BELT_SHARE, 0.5 * m.width * m.roof_share
    # (end, side, xyz): front and rear, right and left
    base = np.array([[(x, side * belt, z) for side in SIDES] for x, z in (m.cowl, m.deck)])
    rim = np.array([[(x, side * eaves, m.height - EAVES) for side in SIDES] for x in m.roof])
    inset = 0.12 * (m.roof[1] - m.roof[0])
    top = rim * (1, 0.82, 1) + np.array([[(inset, 0, EAVES)], [(-inset, 0, EAVES)]])
    faces = []
    for end, low in ((0, 0.05), (1, 0.12)):
        faces += _window(np.array([*base[end], *rim[end, ::-1]]), colour, finish, (0.07, 0.93, low, 0.92))
    for j, side in enumerate(SIDES):
        faces += _side_windows(m, make, finish, np.array([base[0, j], base[1, j], rim[1, j], rim[0, j]]))
        faces.append(create_face([rim[0, j], rim[1, j], top[1, j], top[0, j]], colour, 0.6))
        if m.rails:
            y, x0, x1, z = side * eaves * 0.95, m.roof[0] + 0.2, m.roof[1] - 0.1, m.height
            rail = [(x0, y, z), (x1, y, z), (x1, y, z + 0.07), (x0, y, z + 0.07)]
            faces.append(create_face(rail, SILVER, 0.2))
    for end in (0, 1):
        faces.append(create_face([*rim[end], *top[end, ::-1]], colour, 0.6))
    return [*faces, create_face([*top[0], *top[1, ::-1]], colour, 0.7)]


def _window(quad: np.ndarray, colour: Colour, finish: Finish, opening: tuple[float, float, float, float]) -> list[Face]:
    """A wall of the cabin with one pane and the streak that it mirrors. opening: as in _within."""
    left, right, bottom, top = opening
    pane = _within(quad, *opening)
    start, end = (left + share * (right - left) for share in (0.25, 0.45))
    streak = _within(quad, start, end, bottom, top)
    streak[2:] += 0.15 * (streak[1] - streak[0]) * 3
    red, green, blue = (0.6 * c + 0.16 for c in finish.glass)
    return [
        create_face(quad, colour, 0.5),
        create_face(pane, finish.glass, 0.4),
        create_face(streak, (red, green, blue), 0.4),
    ]


def _side_windows(m: Model, make: Make, finish: Finish, quad: np.ndarray) -> list[Face]:
    wall, pane, streak = _window(quad, make.roof or finish.paint, finish, (0.07, m.window_end, 0.08, 0.86))
    faces = [wall]
    if make.window_frame:
        faces.append(create_face(_within(quad, 0.03, m.window_end + 0.03, 0.0, 0.97), make.window_frame, 0.2))
    faces += [pane, streak]
    for share in (0.62,) if m.doors == 2 else (0.40, 0.76):
        s = 0.07 + share * (m.window_end - 0.07)
        faces.append(create_face(_within(quad, s - 0.02, s + 0.02, 0.04, 0.92), finish.pillar, 0.1))
    return faces


def _within(quad: np.ndarray, left: float, right: float, bottom: float, top: float) -> np.ndarray:
    """The part (4, 3) of a quad between shares of its sides; corners from bottom left, against the clock."""
    a, b, c, d = quad
    spots = ((left, bottom), (right, bottom), (right, top), (left, top))
    return np.array([(a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t for s, t in spots])


def _axles(m: Model) -> tuple[float, float]:
    return 0.185 * m.length, 0.805 * m.length


def create_treads(m: Model, finish: Finish) -> list[Face]:
    """The lower halves of the four tyres, without what is seen from the near side; the body covers the rest."""
    radius, width = m.wheel_radius * finish.wheel_scale, 0.22
    faces = []
    for x in _axles(m):
        lower = np.roll(create_circle(radius, (x, 0, radius), num=12), 6, axis=0)[:7]
        for side in SIDES:
            outer, inner = (lower + np.array((0, side * y, 0)) for y in (0.485 * m.width, 0.485 * m.width - width))
            for quad in zip(inner[:-1], inner[1:], outer[1:], outer[:-1], strict=True):
                faces.append(create_face(quad, BLACK, 0.1, inside=(x, side * 0.3 * m.width, radius)))
            faces.append(create_face(inner, BLACK, inside=(x, side * m.width, radius)))
    return faces


def create_wheels(m: Model, make: Make, finish: Finish) -> list[Face]:
    """Arches, tyres and rims as seen from the side."""
    radius = m.wheel_radius * finish.wheel_scale
    faces = []
    for x in _axles(m):
        for side in SIDES:
            middle, centre = np.array([x, side * 0.5 * m.width, radius]), np.array([x, side * 0.49 * m.width, radius])
            for colour, scale in ((make.sill, 1.4), (BLACK, 1.2)):
                if colour:
                    arch = create_circle(m.wheel_radius * scale, middle, num=20)
                    arch[:, 2] = np.maximum(arch[:, 2], m.clearance + 0.02)
                    faces.append(create_face(arch, colour))
            faces.append(create_face(create_circle(radius, centre), (0.07, 0.07, 0.08)))
            faces.append(create_face(create_circle(radius * 0.70, centre), make.rim_disc, 0.1))
            faces += _spokes(make, centre, radius * 0.68)
    return faces


def _spokes(make: Make, centre: np.ndarray, radius: float) -> list[Face]:
    """Spokes and hub."""
    faces = [create_face(create_circle(radius * make.hub_share, centre, num=12), make.rim, 0.2)]
    for angle in 2 * np.pi / max(make.spokes, 1) * np.arange(make.spokes) + 0.3:
        half = np.pi / make.spokes * make.spoke_share
        spoke = [(np.cos(a) * radius, 0, np.sin(a) * radius) for a in (angle - half, angle, angle + half)]
        spoke += [(np.cos(a) * radius * 0.2, 0, np.sin(a) * radius * 0.2) for a in (angle + 1, angle - 1)]
        faces.append(create_face(centre + spoke, make.rim, 0.2))
    return faces


def create_mirrors(m: Model, finish: Finish) -> list[Face]:
    x, z, half = m.cowl[0] + 0.42, m.cowl[1] + 0.06, 0.5 * m.width
    faces = []
    for side in SIDES:
        inner, outer = side * half * 0.80, side * half * 1.10
        front = np.array([(x, inner, z), (x, outer, z), (x, outer, z + 0.15), (x, inner, z + 0.12)])
        end = [(x, outer, z), (x + 0.12, outer, z), (x + 0.12, outer, z + 0.15), (x, outer, z + 0.15)]
        faces.append(create_face(front, finish.paint, 0.4, inside=(x + 1, 0, z)))
        faces.append(create_face(end, finish.paint, 0.4))
        faces.append(create_face(front + np.array((0.12, 0, 0)), DARK, 0.4, inside=(x - 1, 0, z)))
    return faces


def create_wing(m: Model) -> list[Face]:
    if not m.wing:
        return []
    x0, x1, half, z = m.length - 0.35, m.length - 0.02, 0.42 * m.width, m.tail_z + m.wing
    plate = [(x0, -half, z), (x0, half, z), (x1, half, z + 0.04), (x1, -half, z + 0.04)]
    edge = [(x1, -half, z - 0.02), (x1, half, z - 0.02), (x1, half, z + 0.05), (x1, -half, z + 0.05)]
    legs = [
        [(x0, y, m.tail_z), (x1 - 0.1, y, m.tail_z), (x1 - 0.1, y, z), (x0, y, z)] for y in (-0.8 * half, 0.8 * half)
    ]
    return [
        *(create_face(leg, BLACK) for leg in legs),
        create_face(plate, BLACK, 0.3, inside=(x0, 0, z - 1)),
        create_face(edge, BLACK),
    ]
