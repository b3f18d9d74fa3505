"""The vehicles of the demo data: what makes a make and what makes a model, as tables.

A make shows in its lamps, grille, wheels, sill and roof; a model in its body, proportions and bumper.
Names are invented. Ids have gaps, as in CompCars.
"""

from dataclasses import dataclass

import numpy as np

from carvision.data.demo_drawing.faces import BLACK, CHROME, DARK, GREY, SILVER, WHITE, Colour

Outline = tuple[tuple[float, float], ...]  # (across, level) on an end of the body; see body.py


def _rect(left: float, right: float, bottom: float, top: float) -> Outline:
    return ((left, bottom), (right, bottom), (right, top), (left, top))


def _disc(u: float, level: float, across: float, up: float) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    return tuple((u + across * np.cos(a), level + up * np.sin(a)) for a in angles)


@dataclass(frozen=True)
class Make:
    """headlamps, taillamps: outlines of the right-hand side, mirrored to the left; past u = 1 they go round
    the corner. grille: outlines across the whole nose. sill, roof: None is the body colour."""

    id: int
    name: str
    headlamps: tuple[Outline, ...]
    taillamps: tuple[Outline, ...]
    grille: tuple[Outline, ...]
    grille_frame: Colour
    spokes: int
    spoke_share: float  # of the angle that a spoke and its gap take together
    hub_share: float  # of the rim's radius
    rim: Colour
    rim_disc: Colour  # behind the spokes
    sill: Colour | None
    roof: Colour | None
    window_frame: Colour | None


MAKES = (
    Make(
        3, "Velmora",
        headlamps=(_disc(0.72, 1.65, 0.24, 0.72),),
        taillamps=(_disc(0.76, 1.75, 0.17, 0.55), _disc(0.38, 1.75, 0.15, 0.48)),
        grille=(_disc(-0.17, 1.55, 0.14, 0.75), _disc(0.17, 1.55, 0.14, 0.75)), grille_frame=CHROME,
        spokes=5, spoke_share=0.5, hub_share=0.3, rim=CHROME, rim_disc=DARK,
         sill=None, roof=None, window_frame=CHROME,
    ),
    Make(
        7, "Kestrano",
        headlamps=(((0.42, 1.75), (1.0, 1.75), (1.0, 2.15), (0.42, 1.95)), _rect(1.0, 2.0, 1.75, 2.15)),
        taillamps=(_rect(0.0, 1.0, 1.65, 2.15), _rect(1.0, 2.0, 1.65, 2.15)),
        grille=(_rect(-0.62, 0.62, 0.95, 1.45),), grille_frame=BLACK,
        spokes=10, spoke_share=0.35, hub_share=0.25, rim=GREY, rim_disc=BLACK,
         sill=None, roof=BLACK, window_frame=BLACK,
    ),
    Make(
        12, "Ironholt",
        headlamps=(_rect(0.56, 0.98, 1.2, 2.15),),
        taillamps=(_rect(0.62, 1.0, 1.25, 2.1), _rect(1.0, 1.5, 1.25, 2.1)),
        grille=(((-0.42, 1.6), (-0.24, 0.95), (0.24, 0.95), (0.42, 1.6), (0.24, 2.25), (-0.24, 2.25)),),
        grille_frame=SILVER,
        spokes=0, spoke_share=0.0, hub_share=0.5, rim=SILVER, rim_disc=BLACK,
         sill=DARK, roof=None, window_frame=None,
    ),
    Make(
        20, "Sunvari",
        headlamps=(_rect(0.80, 1.0, 0.6, 2.2), _rect(1.0, 1.4, 0.6, 2.2)),
        taillamps=(_rect(0.84, 1.0, 0.7, 2.8), _rect(1.0, 1.6, 0.7, 2.8)),
        grille=(((-0.42, 2.2), (-0.36, 1.3), (0.0, 0.25), (0.36, 1.3), (0.42, 2.2)),), grille_frame=CHROME,
        spokes=3, spoke_share=0.8, hub_share=0.3, rim=WHITE, rim_disc=GREY,
         sill=SILVER, roof=SILVER, window_frame=None,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A body. Lengths in metres, (x, z) points on the outline in the middle of the car.

    cowl, deck: where the windscreen and the rear window meet the body. roof: its first and last x.
    speed (km/h), displacement (litres), doors, seats: as in attributes.txt, 0 where not known.
    """

    id: int
    make_id: int
    name: str
    body: str
    length: float
    width: float
    height: float
    clearance: float
    nose_z: float
    cowl: tuple[float, float]
    roof: tuple[float, float]
    deck: tuple[float, float]
    tail_z: float
    roof_share: float  # width of the roof, in widths of the body
    wheel_radius: float
    intakes: tuple[Outline, ...]  # openings in the bumper, front and rear
    plate_level: float  # of the rear number plate: on the lid (about 1.5) or in the bumper (about 0.6)
    doors: int
    seats: int
    speed: int
    displacement: float
    rails: bool = False
    wing: float = 0.0  # height of a wing above the tail, metres; 0 is none
    spare_wheel: bool = False


_WIDE = (_rect(-0.85, 0.85, 0.1, 0.7),)
_TWIN = (_rect(0.48, 0.95, 0.05, 0.85), _rect(-0.95, -0.48, 0.05, 0.85))
_TRIPLE = (*_TWIN, _rect(-0.36, 0.36, 0.05, 0.45))
_SLIT = (_rect(-0.4, 0.4, 0.1, 0.3),)

MODELS = (
    Model(4, 3, "Velmora Lume", "hatchback", 3.75, 1.66, 1.58, 0.20, 0.76, (0.98, 0.98), (1.55, 3.25),
          (3.66, 1.00), 0.96, 0.76, 0.31, _SLIT, 0.6, 5, 5, 178, 1.2),
    Model(9, 3, "Velmora Sera", "sedan", 4.65, 1.84, 1.38, 0.18, 0.70, (1.45, 0.91), (2.20, 3.05),
          (3.85, 0.96), 0.94, 0.62, 0.33, _WIDE, 1.4, 4, 5, 210, 1.8),
    Model(15, 3, "Velmora Tavia", "estate", 4.80, 1.84, 1.52, 0.21, 0.72, (1.42, 0.94), (2.10, 4.30),
          (4.72, 0.98), 0.94, 0.70, 0.33, _TWIN, 1.4, 5, 5, 205, 2.0, rails=True),
    Model(28, 7, "Kestrano Doma", "sedan", 4.98, 1.88, 1.46, 0.17, 0.74, (1.65, 0.97), (2.45, 3.30),
          (4.45, 1.03), 1.02, 0.65, 0.35, _SLIT, 0.6, 4, 5, 240, 2.5),
    Model(31, 7, "Kestrano Monti", "SUV", 4.55, 1.90, 1.76, 0.28, 0.94, (1.25, 1.14), (1.85, 3.95),
          (4.48, 1.18), 1.10, 0.74, 0.39, _TRIPLE, 1.4, 5, 5, 200, 2.0, rails=True),
    Model(47, 7, "Kestrano Fera", "sports", 4.40, 1.90, 1.19, 0.13, 0.60, (1.55, 0.82), (2.30, 2.75),
          (4.00, 0.88), 0.86, 0.60, 0.34, _TWIN, 0.6, 2, 4, 285, 3.5, wing=0.22),
    Model(52, 12, "Ironholt Ridge", "SUV", 4.75, 1.94, 1.95, 0.32, 1.06, (1.40, 1.20), (1.70, 4.50),
          (4.68, 1.22), 1.18, 0.80, 0.41, _SLIT, 0.6, 5, 7, 175, 3.0, rails=True, spare_wheel=True),
    Model(60, 12, "Ironholt Hauler", "pickup", 5.35, 1.98, 1.78, 0.32, 1.00, (1.45, 1.16), (2.05, 3.20),
          (3.42, 1.15), 1.14, 0.68, 0.41, _TRIPLE, 1.3, 4, 5, 0, 2.8),
    Model(77, 12, "Ironholt Pebble", "hatchback", 3.50, 1.62, 1.60, 0.20, 0.78, (0.80, 0.96), (1.40, 3.15),
          (3.42, 0.98), 0.94, 0.72, 0.30, _WIDE, 1.4, 5, 4, 155, 1.0),
    Model(83, 20, "Sunvari Merido", "estate", 4.92, 1.88, 1.48, 0.18, 0.74, (1.50, 0.96), (2.30, 3.95),
          (4.82, 0.99), 0.95, 0.68, 0.34, _WIDE, 0.6, 5, 0, 215, 1.6),
    Model(90, 20, "Sunvari Zefi", "sports", 4.02, 1.82, 1.22, 0.14, 0.62, (1.20, 0.85), (1.85, 2.40),
          (3.20, 0.91), 0.88, 0.61, 0.33, _TRIPLE, 1.4, 2, 2, 235, 1.8, wing=0.12),
    Model(104, 20, "Sunvari Kargo", "pickup", 4.75, 1.72, 1.66, 0.26, 0.88, (1.10, 1.04), (1.60, 2.30),
          (2.50, 1.04), 1.02, 0.73, 0.35, _SLIT, 1.3, 2, 2, 160, 2.2),
)  # fmt: skip
