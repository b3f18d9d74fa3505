"""The makes and models of the demo data.

A make shows in its lamps, grille, wheels, sill and roof; a model in its body, proportions and bumper. Names are
invented. Ids have gaps, as in CompCars. Lengths are in metres; x runs from the nose (0) to the tail, y sideways (0 is
the middle), z up from the ground.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue, 0..1
Outline = tuple[tuple[float, float], ...]  # (across, level) on an end of the body, see vehicle.py

BLACK, DARK, GREY = (0.03, 0.03, 0.04), (0.10, 0.10, 0.11), (0.32, 0.33, 0.35)
SILVER, WHITE, CHROME = (0.72, 0.74, 0.76), (0.95, 0.95, 0.93), (0.88, 0.89, 0.91)
LAMP, RED, DARK_RED, AMBER = (1.0, 0.98, 0.88), (0.80, 0.04, 0.06), (0.25, 0.02, 0.03), (0.95, 0.55, 0.10)


def _rect(left: float, right: float, bottom: float, top: float) -> Outline:
    return ((left, bottom), (right, bottom), (right, top), (left, top))


def _disc(u: float, level: float, across: float, up: float) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    return tuple((u + across * np.cos(a), level + up * np.sin(a)) for a in angles)


@dataclass(frozen=True)
class Make:
    """A make's common design.

    headlamps, taillamps: outlines of the right side, mirrored to the left; past across = 1 they continue around the
    corner. grille: outlines across the whole nose. sill, roof: None is the body colour.
    """

    id: int
    name: str
    headlamps: tuple[Outline, ...]
    taillamps: tuple[Outline, ...]
    grille: tuple[Outline, ...]
    grille_frame: Colour
    spokes: int
    spoke_share: float  # of the angle of a spoke and its gap
    hub_share: float  # of the rim's radius
    rim: Colour
    rim_disc: Colour  # behind the spokes
    sill: Colour | None
    intake: Colour  # of the openings in the bumper
    roof: Colour | None
    window_frame: Colour | None


MAKES = (
    Make(3, "Velmora",
         headlamps=(_disc(0.72, 1.65, 0.24, 0.72),),
         taillamps=(_disc(0.76, 1.75, 0.17, 0.55), _disc(0.38, 1.75, 0.15, 0.48)),
         grille=(_disc(-0.17, 1.55, 0.14, 0.75), _disc(0.17, 1.55, 0.14, 0.75)), grille_frame=CHROME,
         spokes=5, spoke_share=0.5, hub_share=0.3, rim=CHROME, rim_disc=DARK,
         sill=None, intake=BLACK, roof=None, window_frame=CHROME),
    Make(7, "Kestrano",
         headlamps=(((0.42, 1.75), (1.0, 1.75), (1.0, 2.15), (0.42, 1.95)), _rect(1.0, 2.0, 1.75, 2.15)),
         taillamps=(_rect(0.0, 1.0, 1.65, 2.15), _rect(1.0, 2.0, 1.65, 2.15)),
         grille=(_rect(-0.62, 0.62, 0.95, 1.45),), grille_frame=BLACK,
         spokes=10, spoke_share=0.35, hub_share=0.25, rim=GREY, rim_disc=BLACK,
         sill=None, intake=BLACK, roof=BLACK, window_frame=BLACK),
    Make(12, "Ironholt",
         headlamps=(_rect(0.56, 0.98, 1.2, 2.15),),
         taillamps=(_rect(0.62, 1.0, 1.25, 2.1), _rect(1.0, 1.5, 1.25, 2.1)),
         grille=(((-0.42, 1.6), (-0.24, 0.95), (0.24, 0.95), (0.42, 1.6), (0.24, 2.25), (-0.24, 2.25)),),
         grille_frame=SILVER,
         spokes=0, spoke_share=0.0, hub_share=0.5, rim=SILVER, rim_disc=BLACK,
         sill=DARK, intake=SILVER, roof=None, window_frame=None),
    Make(20, "Sunvari",
         headlamps=(_rect(0.80, 1.0, 0.6, 2.2), _rect(1.0, 1.4, 0.6, 2.2)),
         taillamps=(_rect(0.84, 1.0, 0.7, 2.8), _rect(1.0, 1.6, 0.7, 2.8)),
         grille=(((-0.42, 2.2), (-0.36, 1.3), (0.0, 0.25), (0.36, 1.3), (0.42, 2.2)),), grille_frame=CHROME,
         spokes=3, spoke_share=0.8, hub_share=0.3, rim=WHITE, rim_disc=GREY,
         sill=SILVER, intake=BLACK, roof=SILVER, window_frame=None),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model's body. Lengths in metres; (x, z) are points on the outline in the middle of the car.

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
    grille_scale: float
    intakes: tuple[Outline, ...]  # openings in the bumper, front and rear
    plate_level: float  # of the rear number plate: on the boot lid (about 1.5) or in the bumper (about 0.6)
    doors: int
    seats: int
    speed: int
    displacement: float
    window_end: float  # of the side windows, as a share of the cabin's length: a sedan has a broad last pillar
    trim: Colour | None = None  # of a strip along the doors
    rails: bool = False
    wing: float = 0.0  # height of a wing above the tail, metres; 0 is none
    spare_wheel: bool = False


_WIDE = (_rect(-0.85, 0.85, 0.1, 0.7),)
_TWIN = (_rect(0.48, 0.95, 0.05, 0.85), _rect(-0.95, -0.48, 0.05, 0.85))
_TRIPLE = (*_TWIN, _rect(-0.36, 0.36, 0.05, 0.45))
_SLIT = (_rect(-0.4, 0.4, 0.1, 0.3),)

MODELS = (
    Model(4, 3, "Velmora Lume", "hatchback", doors=5, seats=5, speed=178, displacement=1.2,
          length=3.75, width=1.66, height=1.58, clearance=0.2, roof_share=0.76, wheel_radius=0.31,
          nose_z=0.76, cowl=(0.98, 0.98), roof=(1.55, 3.25), deck=(3.66, 1.0), tail_z=0.96, window_end=0.84,
          grille_scale=0.7, intakes=_SLIT, plate_level=0.6),
    Model(9, 3, "Velmora Sera", "sedan", doors=4, seats=5, speed=210, displacement=1.8,
          length=4.65, width=1.84, height=1.38, clearance=0.18, roof_share=0.62, wheel_radius=0.33,
          nose_z=0.7, cowl=(1.45, 0.91), roof=(2.2, 3.05), deck=(3.85, 0.96), tail_z=0.94, window_end=0.76,
          grille_scale=0.85, intakes=_WIDE, plate_level=0.6),
    Model(15, 3, "Velmora Tavia", "estate", doors=5, seats=5, speed=205, displacement=2.0,
          length=4.8, width=1.84, height=1.52, clearance=0.21, roof_share=0.7, wheel_radius=0.33,
          nose_z=0.72, cowl=(1.42, 0.94), roof=(2.1, 4.3), deck=(4.72, 0.98), tail_z=0.94, window_end=0.96,
          grille_scale=1.35, intakes=_TWIN, plate_level=1.4, trim=CHROME, rails=True),
    Model(28, 7, "Kestrano Doma", "sedan", doors=4, seats=5, speed=240, displacement=2.5,
          length=5.05, width=1.88, height=1.45, clearance=0.18, roof_share=0.65, wheel_radius=0.35,
          nose_z=0.76, cowl=(1.6, 0.98), roof=(2.3, 3.55), deck=(4.1, 1.02), tail_z=1.0, window_end=0.78,
          grille_scale=1.45, intakes=_WIDE, plate_level=0.6, trim=CHROME),
    Model(31, 7, "Kestrano Monti", "SUV", doors=5, seats=5, speed=200, displacement=2.0,
          length=4.55, width=1.9, height=1.76, clearance=0.28, roof_share=0.74, wheel_radius=0.39,
          nose_z=0.94, cowl=(1.25, 1.14), roof=(1.85, 3.95), deck=(4.48, 1.18), tail_z=1.1, window_end=0.95,
          grille_scale=1.0, intakes=_TRIPLE, plate_level=1.4, trim=DARK, rails=True),
    Model(47, 7, "Kestrano Fera", "sports", doors=2, seats=4, speed=285, displacement=3.5,
          length=4.4, width=1.9, height=1.19, clearance=0.13, roof_share=0.6, wheel_radius=0.34,
          nose_z=0.6, cowl=(1.55, 0.82), roof=(2.3, 2.75), deck=(4.0, 0.88), tail_z=0.86, window_end=0.66,
          grille_scale=0.6, intakes=_TWIN, plate_level=0.6, wing=0.22),
    Model(52, 12, "Ironholt Ridge", "SUV", doors=5, seats=7, speed=175, displacement=3.0,
          length=4.75, width=1.94, height=1.95, clearance=0.32, roof_share=0.8, wheel_radius=0.41,
          nose_z=1.06, cowl=(1.4, 1.2), roof=(1.7, 4.5), deck=(4.68, 1.22), tail_z=1.18, window_end=0.95,
          grille_scale=1.0, intakes=_SLIT, plate_level=0.6, trim=SILVER, rails=True, spare_wheel=True),
    Model(60, 12, "Ironholt Hauler", "pickup", doors=4, seats=5, speed=0, displacement=2.8,
          length=5.35, width=1.98, height=1.78, clearance=0.32, roof_share=0.68, wheel_radius=0.41,
          nose_z=1.0, cowl=(1.45, 1.16), roof=(2.05, 3.2), deck=(3.42, 1.15), tail_z=1.14, window_end=0.9,
          grille_scale=1.3, intakes=_TRIPLE, plate_level=1.3),
    Model(77, 12, "Ironholt Pebble", "hatchback", doors=5, seats=4, speed=155, displacement=1.0,
          length=3.5, width=1.62, height=1.6, clearance=0.2, roof_share=0.72, wheel_radius=0.3,
          nose_z=0.78, cowl=(0.8, 0.96), roof=(1.4, 3.15), deck=(3.42, 0.98), tail_z=0.94, window_end=0.8,
          grille_scale=0.65, intakes=_WIDE, plate_level=1.4),
    Model(83, 20, "Sunvari Merido", "estate", doors=5, seats=0, speed=215, displacement=1.6,
          length=4.92, width=1.88, height=1.48, clearance=0.18, roof_share=0.68, wheel_radius=0.34,
          nose_z=0.74, cowl=(1.5, 0.96), roof=(2.25, 4.25), deck=(4.84, 0.99), tail_z=0.95, window_end=0.96,
          grille_scale=1.0, intakes=_WIDE, plate_level=0.6, trim=DARK),
    Model(90, 20, "Sunvari Zefi", "sports", doors=2, seats=2, speed=235, displacement=1.8,
          length=4.02, width=1.82, height=1.22, clearance=0.14, roof_share=0.61, wheel_radius=0.33,
          nose_z=0.62, cowl=(1.2, 0.85), roof=(1.85, 2.4), deck=(3.2, 0.91), tail_z=0.88, window_end=0.68,
          grille_scale=0.65, intakes=_TRIPLE, plate_level=1.4, wing=0.2),
    Model(104, 20, "Sunvari Kargo", "pickup", doors=2, seats=2, speed=160, displacement=2.2,
          length=4.75, width=1.72, height=1.66, clearance=0.26, roof_share=0.73, wheel_radius=0.35,
          nose_z=0.88, cowl=(1.1, 1.04), roof=(1.6, 2.3), deck=(2.5, 1.04), tail_z=1.02, window_end=0.86,
          grille_scale=1.25, intakes=_SLIT, plate_level=1.3, trim=CHROME),
)  # fmt: skip
