"""Build a whole vehicle from polygons: body, cabin, wheels and fittings.

The body is a shell: a grid (station, level, xyz) of points of its left half. Stations run from nose to tail; levels
from 0 (sill) over 1 (bumper) and 2 (shoulder) to 3 (bonnet, window sill, boot lid).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from carvision.demo.cars import AMBER, BLACK, DARK, DARK_RED, GREY, LAMP, RED, SILVER, Colour, Make, Model, Outline

PAINTS: tuple[Colour, ...] = (  # as many as each model has training cars
    (0.93, 0.93, 0.92), (0.70, 0.71, 0.73), (0.42, 0.44, 0.47), (0.15, 0.16, 0.18), (0.72, 0.10, 0.10),
    (0.42, 0.06, 0.10), (0.16, 0.32, 0.66), (0.08, 0.14, 0.34), (0.12, 0.36, 0.22), (0.76, 0.69, 0.55),
    (0.38, 0.25, 0.16), (0.90, 0.66, 0.12), (0.88, 0.40, 0.10), (0.20, 0.55, 0.58),
)  # fmt: skip
SIDES = (-1, 1)
LEVELS = ((0, 0.95), (0.42, 1), (0.86, 0.97), (1, 0.88))  # shares of the height and of the half width
BELT_SHARE = 0.86  # width of the cabin at its foot, in widths of the body
AXLES = (0.185, 0.805)  # shares of the length
EAVES = 0.06  # metres from the edge of the roof up to its top


class Finish(NamedTuple):
    """The look of one car, unrelated to its make and model."""

    paint: Colour
    glass: Colour
    plate: Colour
    pillar: Colour
    wheel_scale: float


class Face(NamedTuple):
    """A polygon. It is only drawn as seen from the side opposite to the point `inside`.

    inside: None for a point on the vehicle's centre line, for nose and tail further in.
    """

    points: np.ndarray  # (n, 3)
    colour: Colour
    gloss: float  # 0..1: how much of the sky it reflects
    inside: np.ndarray | None  # (3,)


def create_face(
    points: Iterable[Iterable[float]], colour: Colour, gloss: float = 0.0, inside: Iterable[float] | None = None
) -> Face:
    """Create a Face from any sequences of corners (n, 3)."""
    return Face(np.array(points, float), colour, gloss, None if inside is None else np.array(inside, float))


def create_circle(radius: float, centre: Iterable[float], plane: str = "xz", num: int = 16) -> np.ndarray:
    """Return the corners (num, 3) of a circle in the plane of two axes."""
    angles = np.linspace(0, 2 * np.pi, num, endpoint=False)
    points = np.tile(np.array(centre, float), (num, 1))
    points[:, "xyz".index(plane[0])] += radius * np.cos(angles)
    points[:, "xyz".index(plane[1])] += radius * np.sin(angles)
    return points


class Vehicle(NamedTuple):
    """A vehicle's polygons as arrays, in painting order: later ones cover earlier ones."""

    points: np.ndarray  # (faces, corners, xyz); a face with fewer corners repeats its last one
    num_corners: np.ndarray  # (faces,)
    middles: np.ndarray  # (faces, xyz)
    normals: np.ndarray  # (faces, xyz), of length 1, pointing outward
    colours: np.ndarray  # (faces, rgb), 0..1
    gloss: np.ndarray  # (faces,), 0..1


def create_finish(paint: Colour, rng: np.random.Generator) -> Finish:
    """Draw the finish of a car: nearly this paint, and random glass, plate and pillars."""
    shade = np.clip(np.array(paint) + rng.normal(0, 0.015, 3), 0.08, 0.96)
    glass = np.array((0.09, 0.11, 0.13)) * rng.uniform(0.5, 1.6)
    plate = ((0.93, 0.93, 0.90), (0.90, 0.78, 0.25), (0.75, 0.80, 0.90))[rng.integers(3)]
    pillar = (BLACK, tuple(shade))[rng.integers(2)]
    return Finish(tuple(shade), tuple(glass), plate, pillar, rng.uniform(0.96, 1.05))


def create_vehicle(model: Model, make: Make, finish: Finish) -> Vehicle:
    """Build a vehicle that can be drawn from anywhere."""
    shell, mirrors, wing = create_shell(model), create_mirrors(model, finish), create_wing(model)
    faces = [
        *create_treads(model, finish),
        *create_body(model, make, finish, shell),
        *create_front(model, make, finish, shell),
        *create_rear(model, make, finish, shell),
        *create_doors(model, finish, shell),
        *create_wheels(model, make, finish),
        *mirrors,
        *wing,
        *create_cabin(model, make, finish),
        # Again over the cabin, for views in which that side of the car is the near one
        *(face._replace(inside=face.points.mean(0) * (1, 0.5, 1)) for face in mirrors),
        *(face._replace(inside=face.points.mean(0) - (1, 0, 0)) for face in wing),
    ]
    return _stack(faces)


def _stack(faces: list[Face]) -> Vehicle:
    """Stack the faces into arrays, with normals that point outward."""
    num_corners = np.array([len(face.points) for face in faces])
    corner = np.minimum(np.arange(num_corners.max()), num_corners[:, None] - 1)
    first = np.cumsum(num_corners) - num_corners
    points = np.concatenate([face.points for face in faces])[first[:, None] + corner]
    is_own = np.arange(num_corners.max()) < num_corners[:, None]
    middles = (points * is_own[..., None]).sum(1) / num_corners[:, None]
    insides = middles * (0.75, 0, 0) + (0.6, 0, 0.6)
    for i, face in enumerate(faces):
        if face.inside is not None:
            insides[i] = face.inside
    # Newell's method, which also holds for slightly bent faces
    normals = np.cross(points, np.roll(points, -1, axis=1)).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[(normals * (middles - insides)).sum(1) < 0] *= -1
    colours, gloss = np.array([face.colour for face in faces]), np.array([face.gloss for face in faces])
    return Vehicle(points, num_corners, middles, normals, colours, gloss)


def create_shell(m: Model) -> np.ndarray:
    """Return the points of the body's left half, (stations, 4 levels, xyz)."""
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
    """Create the faces of the shell, and of a pickup's bed."""
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
    """Create air intakes, grille, headlamps and number plate."""
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
    """Create bumper openings, taillamps, number plate and spare wheel."""
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
    """Create seams, handles, trim and side indicators."""
    red, green, blue = finish.paint
    seam = 0.45 * red, 0.45 * green, 0.45 * blue
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
    """Interpolate a point of the shell between whole stations and levels."""
    i, j = min(int(station), len(shell) - 2), min(int(level), len(LEVELS) - 2)
    a, b = station - i, level - j
    near = shell[i, j] * (1 - b) + shell[i, j + 1] * b
    far = shell[i + 1, j] * (1 - b) + shell[i + 1, j + 1] * b
    return near * (1 - a) + far * a


def _on_end(shell: np.ndarray, outline: Outline, side: int = 1) -> np.ndarray:
    """Project an outline onto the end of the shell at its first station, (n, 3).

    Its coordinate across runs from -1 to 1 over the end, and on to 2 around the corner, along the first two stations.
    """
    points = [_at(shell, 2 * max(abs(across) - 1, 0), np.clip(level, 0, 3)) for across, level in outline]
    return np.array(points) * [(1, side * np.clip(across, -1, 1), 1) for across, _ in outline]


def _on_side(shell: np.ndarray, x0: float, x1: float, low: float, high: float, side: int) -> np.ndarray:
    """Return the corners (4, 3) of a panel on the side, between two x and two levels."""
    stations = np.interp((x0, x1, x1, x0), shell[:, 1, 0], np.arange(len(shell)))
    points = [_at(shell, *spot) for spot in zip(stations, (low, low, high, high), strict=True)]
    return np.array(points) * (1, side, 1)


def _scaled(outline: Outline, scale: float) -> Outline:
    """Scale an outline about the centre of the nose."""
    return tuple((across * scale, 1.5 + (level - 1.5) * scale) for across, level in outline)


def _grown(outline: Outline, scale: float) -> Outline:
    """Scale an outline about its own centre, for the frame around it."""
    middle = np.mean(outline, 0)
    return tuple(map(tuple, middle + (np.array(outline) - middle) * scale))


def create_cabin(m: Model, make: Make, finish: Finish) -> list[Face]:
    """Create windows, roof and roof rails."""
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
    """Create a wall of the cabin with one pane and a reflection on it. opening: as in `_within`."""
    left, right, bottom, top = opening
    pane = _within(quad, *opening)
    start, end = (left + share * (right - left) for share in (0.25, 0.45))
    streak = _within(quad, start, end, bottom, top)
    streak[2:] += 0.15 * (streak[1] - streak[0]) * 3
    red, green, blue = (0.6 * c + 0.16 for c in finish.glass)
    panes = [create_face(pane, finish.glass, 0.4), create_face(streak, (red, green, blue), 0.4)]
    return [create_face(quad, colour, 0.5), *panes]


def _side_windows(m: Model, make: Make, finish: Finish, quad: np.ndarray) -> list[Face]:
    """Create one side of the cabin with its panes and pillars."""
    faces = _window(quad, make.roof or finish.paint, finish, (0.07, m.window_end, 0.08, 0.86))
    if make.window_frame:  # painted after the wall, before the pane
        faces.insert(1, create_face(_within(quad, 0.03, m.window_end + 0.03, 0.0, 0.97), make.window_frame, 0.2))
    for share in (0.62,) if m.doors == 2 else (0.40, 0.76):
        s = 0.07 + share * (m.window_end - 0.07)
        faces.append(create_face(_within(quad, s - 0.02, s + 0.02, 0.04, 0.92), finish.pillar, 0.1))
    return faces


def _within(quad: np.ndarray, left: float, right: float, bottom: float, top: float) -> np.ndarray:
    """Return the part (4, 3) of a quad between shares of its sides; corners counterclockwise from the bottom left."""
    a, b, c, d = quad
    spots = ((left, bottom), (right, bottom), (right, top), (left, top))
    return np.array([(a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t for s, t in spots])


def create_treads(m: Model, finish: Finish) -> list[Face]:
    """Create the lower halves of the four tyres, without their outer sides; the body covers the rest."""
    radius, width = m.wheel_radius * finish.wheel_scale, 0.22
    faces = []
    for x in (share * m.length for share in AXLES):
        lower = np.roll(create_circle(radius, (x, 0, radius), num=12), 6, axis=0)[:7]
        for side in SIDES:
            outer, inner = (lower + np.array((0, side * y, 0)) for y in (0.485 * m.width, 0.485 * m.width - width))
            for quad in zip(inner[:-1], inner[1:], outer[1:], outer[:-1], strict=True):
                faces.append(create_face(quad, BLACK, 0.1, inside=(x, side * 0.3 * m.width, radius)))
            faces.append(create_face(inner, BLACK, inside=(x, side * m.width, radius)))
    return faces


def create_wheels(m: Model, make: Make, finish: Finish) -> list[Face]:
    """Create arches, tyres and rims as seen from the side."""
    radius = m.wheel_radius * finish.wheel_scale
    faces = []
    for x in (share * m.length for share in AXLES):
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
    """Create spokes and hub."""
    faces = [create_face(create_circle(radius * make.hub_share, centre, num=12), make.rim, 0.2)]
    for angle in 2 * np.pi / max(make.spokes, 1) * np.arange(make.spokes) + 0.3:
        half = np.pi / make.spokes * make.spoke_share
        spoke = [(np.cos(a) * radius, 0, np.sin(a) * radius) for a in (angle - half, angle, angle + half)]
        spoke += [(np.cos(a) * radius * 0.2, 0, np.sin(a) * radius * 0.2) for a in (angle + 1, angle - 1)]
        faces.append(create_face(centre + spoke, make.rim, 0.2))
    return faces


def create_mirrors(m: Model, finish: Finish) -> list[Face]:
    """Create both wing mirrors."""
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
    """Create a sports car's rear wing."""
    if not m.wing:
        return []
    x0, x1, half, z = m.length - 0.35, m.length - 0.02, 0.42 * m.width, m.tail_z + m.wing
    plate = [(x0, -half, z), (x0, half, z), (x1, half, z + 0.04), (x1, -half, z + 0.04)]
    edge = [(x1, -half, z - 0.02), (x1, half, z - 0.02), (x1, half, z + 0.05), (x1, -half, z + 0.05)]
    leg = np.array([(x0, 0, m.tail_z), (x1 - 0.1, 0, m.tail_z), (x1 - 0.1, 0, z), (x0, 0, z)])
    legs = [create_face(leg + np.array((0, y, 0)), BLACK) for y in (-0.8 * half, 0.8 * half)]
    return [*legs, create_face(plate, BLACK, 0.3, inside=(x0, 0, z - 1)), create_face(edge, BLACK)]
