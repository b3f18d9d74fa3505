"""A whole vehicle, ready to be drawn from anywhere: the polygons of all parts as arrays."""

from typing import NamedTuple

import numpy as np

from carvision.data.demo_drawing import body, fittings
from carvision.data.demo_drawing.cars import Make, Model
from carvision.data.demo_drawing.faces import BLACK, Colour, Face, Finish

PAINTS: tuple[Colour, ...] = (  # so many as each model has cars for training
    (0.93, 0.93, 0.92), (0.70, 0.71, 0.73), (0.42, 0.44, 0.47), (0.15, 0.16, 0.18), (0.72, 0.10, 0.10),
    (0.42, 0.06, 0.10), (0.16, 0.32, 0.66), (0.08, 0.14, 0.34), (0.12, 0.36, 0.22), (0.76, 0.69, 0.55),
    (0.38, 0.25, 0.16), (0.90, 0.66, 0.12), (0.88, 0.40, 0.10), (0.20, 0.55, 0.58),
)  # fmt: skip


class Vehicle(NamedTuple):
    """Faces in the order in which to paint them: later ones cover earlier ones."""

    points: np.ndarray  # (faces, corners, xyz); a face with fewer corners repeats its last one
    num_corners: np.ndarray  # (faces,)
    middles: np.ndarray  # (faces, xyz)
    normals: np.ndarray  # (faces, xyz), of length 1, pointing outward
    colours: np.ndarray  # (faces, rgb), 0..1
    gloss: np.ndarray  # (faces,), 0..1


def create_finish(paint: Colour, rng: np.random.Generator) -> Finish:
    """A car in nearly this paint, with glass, plate and pillars drawn by lot."""
    shade = np.clip(np.array(paint) + rng.normal(0, 0.015, 3), 0.08, 0.96)
    glass = np.array((0.09, 0.11, 0.13)) * rng.uniform(0.5, 1.6)
    plate = ((0.93, 0.93, 0.90), (0.90, 0.78, 0.25), (0.75, 0.80, 0.90))[rng.integers(3)]
    pillar = (BLACK, tuple(shade))[rng.integers(2)]
    return Finish(tuple(shade), tuple(glass), plate, pillar, rng.uniform(0.96, 1.05))


def create_vehicle(model: Model, make: Make, finish: Finish) -> Vehicle:
    shell = body.create_shell(model)
    mirrors, wing = fittings.create_mirrors(model, finish), fittings.create_wing(model)
    faces = [
        *fittings.create_treads(model, finish),
        *body.create_body(model, make, finish, shell),
        *body.create_front(model, make, finish, shell),
        *body.create_rear(model, make, finish, shell),
        *body.create_doors(model, finish, shell),
        *fittings.create_wheels(model, make, finish),
        *mirrors,
        *wing,
        *fittings.create_cabin(model, make, finish),
        # Once more, over the cabin, where that side of the car is the near one.
        *(face._replace(inside=face.points.mean(0) * (1, 0.5, 1)) for face in mirrors),
        *(face._replace(inside=face.points.mean(0) - (1, 0, 0)) for face in wing),
    ]
    return _stack(faces)


def _stack(faces: list[Face]) -> Vehicle:
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
    normals = np.cross(points, np.roll(points, -1, axis=1)).sum(1)  # Newell: right for slightly bent faces too
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[(normals * (middles - insides)).sum(1) < 0] *= -1
    colours, gloss = np.array([face.colour for face in faces]), np.array([face.gloss for face in faces])
    return Vehicle(points, num_corners, middles, normals, colours, gloss)
