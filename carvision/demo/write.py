"""Draw the demo data and write them in CompCars' layout, for its reader.

<folder>/demo.json                                         version and arguments; exists only if everything does
<folder>/data/image/<make_id>/<model_id>/<year>/<14 hex>.jpg
<folder>/data/label/<same path>.txt                        viewpoint; number of boxes (1); x1 y1 x2 y2, 1-based
<folder>/data/misc/{attributes.txt,car_type.mat,make_model_name.mat}
<folder>/data/train_test_split/classification/{train,test}.txt
<folder>/data/train_test_split/verification/verification_{train,pairs_easy,pairs_medium,pairs_hard}.txt

A year folder shows two cars, each with its own paint and number plate. The lists split the photos by year folder, 7 of
each model's 10 for training, so that no test photo shows a car of a training photo.
"""

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.demo.cars import MAKES, MODELS, Make, Model
from carvision.demo.photo import VIEWPOINTS, draw_photo
from carvision.demo.vehicle import PAINTS, create_finish, create_vehicle
from carvision.errors import InputError
from carvision.files.folders import cache_folder

log = logging.getLogger(__name__)

DEMO_VERSION = 1  # increment it with every change of the output: the demo data are then drawn again
YEARS = (*map(str, range(2007, 2016)), "unknown")
NUM_TEST_YEARS = 3
CARS_A_YEAR = 2
PAIR_LEVELS = ("easy", "medium", "hard")
NUM_PAIRS = 300  # per level of difficulty, of same and of different models each
CAR_TYPES = (
    "MPV", "SUV", "sedan", "hatchback", "minibus", "fastback",
    "estate", "pickup", "hardtop convertible", "sports", "crossover", "convertible",
)  # fmt: skip


class DrawnPhoto(NamedTuple):
    path: str  # relative to data/image
    model: Model
    viewpoint: int
    split: str  # train or test


def demo_folder(images_per_model: int) -> Path:
    """Return the folder of this version's demo data in the cache."""
    return cache_folder() / f"demo-v{DEMO_VERSION}-{images_per_model}-0"


def write_demo(folder: Path, images_per_model: int, seed: int = 0) -> Path:
    """Draw the demo data into `folder`, unless they are there already; return the folder.

    images_per_model: 20 or more, two in each year folder; with fewer, a model and viewpoint may have no pair for
    verification. The same arguments give the same bytes. A temporary folder beside `folder` is renamed as the last
    step: an interrupted call leaves nothing, and of two concurrent processes one wins. Raises InputError for a folder
    that has other content or can't be written.
    """
    stamp = json.dumps({"version": DEMO_VERSION, "images_per_model": images_per_model, "seed": seed}) + "\n"
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if _is_complete(folder, stamp):
        return folder
    if occupied:
        text = f"{folder} holds something other than {stamp.strip()}"
        raise InputError(f"demo data: {text}; name another folder with data.root")
    num_photos = f"{images_per_model * len(MODELS):,}"
    log.info("drawing %s photos of the demo data into %s (once, some ten seconds)", num_photos, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            draft = Path(temporary) / "draft"
            _write_all(draft, images_per_model, seed)
            (draft / "demo.json").write_text(stamp, encoding="utf-8")
            draft.rename(folder)
    except OSError as error:
        if not _is_complete(folder, stamp):  # else another process has written the same bytes
            text = f"cannot write {folder} ({error.strerror or error})"
            raise InputError(f"demo data: {text}; name another folder with CARVISION_CACHE or data.root") from error
    return folder


def _is_complete(folder: Path, stamp: str) -> bool:
    return (folder / "demo.json").is_file() and (folder / "demo.json").read_text(encoding="utf-8") == stamp


def _write_all(root: Path, images_per_model: int, seed: int) -> None:
    photos = [photo for model in MODELS for photo in _write_photos(root / "data", model, images_per_model, seed)]
    _write_misc(root / "data" / "misc")
    lists = root / "data" / "train_test_split"
    train, test = ([photo for photo in photos if photo.split == split] for split in ("train", "test"))
    files = {"classification/train": train, "classification/test": test, "verification/verification_train": train}
    for name, listed in files.items():
        _write_lines(lists / f"{name}.txt", [photo.path for photo in listed])
    for level in PAIR_LEVELS:
        _write_lines(lists / "verification" / f"verification_pairs_{level}.txt", _pairs(test, level, seed))


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", newline="\n", encoding="utf-8")


def _write_photos(data: Path, model: Model, num_images: int, seed: int) -> list[DrawnPhoto]:
    """Draw a model's photos and write them with their labels; cars and viewpoints alternate in each year folder."""
    make = next(make for make in MAKES if make.id == model.make_id)
    paints, is_test = _paints(model, seed)
    photos = []
    for y, year in enumerate(YEARS):
        cars = [
            create_vehicle(model, make, create_finish(PAINTS[paint], np.random.default_rng([seed, model.id, y, c])))
            for c, paint in enumerate(paints[y])
        ]
        folder = f"{make.id}/{model.id}/{year}"
        (data / "image" / folder).mkdir(parents=True)
        (data / "label" / folder).mkdir(parents=True)
        for i in range(y, num_images, len(YEARS)):
            turn = i // len(YEARS)
            rng = np.random.default_rng([seed, model.id, y, CARS_A_YEAR, i])
            viewpoint = VIEWPOINTS[(y + turn) % len(VIEWPOINTS)]
            image, (left, top, right, bottom) = draw_photo(cars[turn % CARS_A_YEAR], viewpoint, rng)
            stem = f"{folder}/{hashlib.sha256(f'{seed}/{folder}/{i}'.encode()).hexdigest()[:14]}"
            image.save(data / "image" / f"{stem}.jpg", quality=int(rng.integers(70, 95)))
            box = f"{left + 1} {top + 1} {right} {bottom}"  # CompCars counts from 1 and includes both ends
            (data / "label" / f"{stem}.txt").write_text(f"{viewpoint}\n1\n{box}\n", newline="\n", encoding="utf-8")
            photos.append(DrawnPhoto(f"{stem}.jpg", model, viewpoint, "test" if is_test[y] else "train"))
    return photos


def _paints(model: Model, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the paint number of each car, (years, cars), and which years are for testing, bool (years,).

    Every model has one training car of every paint, so that colour carries no information about the model, and
    memorising cars by their colour doesn't help.
    """
    rng = np.random.default_rng([seed, model.id])
    is_test = np.isin(np.arange(len(YEARS)), rng.choice(len(YEARS), NUM_TEST_YEARS, replace=False))
    paints = np.empty((len(YEARS), CARS_A_YEAR), int)
    paints[~is_test] = rng.permutation(len(PAINTS)).reshape(-1, CARS_A_YEAR)
    paints[is_test] = rng.choice(len(PAINTS), (NUM_TEST_YEARS, CARS_A_YEAR), replace=False)
    return paints, is_test


def _write_misc(misc: Path) -> None:
    """Write attributes.txt and the names of car types, makes and models."""
    lines = ["model_id maximum_speed displacement door_number seat_number type"]
    for m in MODELS:
        lines.append(f"{m.id} {m.speed} {m.displacement} {m.doors} {m.seats} {CAR_TYPES.index(m.body) + 1}")
    _write_lines(misc / "attributes.txt", lines)
    names = {"make_names": _cells(MAKES), "model_names": _cells(MODELS)}
    _write_mat(misc / "car_type.mat", {"types": np.array([CAR_TYPES], dtype=object)})
    _write_mat(misc / "make_model_name.mat", names)


def _cells(named: Sequence[Make | Model]) -> np.ndarray:
    """Return a cell array (highest id, 1): cell i holds the name of id i + 1; cells of unused ids are empty."""
    names = {each.id: each.name for each in named}
    cells = np.empty((max(names), 1), dtype=object)
    for i in range(len(cells)):
        cells[i, 0] = names.get(i + 1, np.zeros((0, 0)))
    return cells


def _write_mat(path: Path, content: dict[str, np.ndarray]) -> None:
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # scipy writes the current time into these bytes
    path.write_bytes(header + buffer.getvalue()[len(header) :])


def _pairs(photos: list[DrawnPhoto], level: str, seed: int) -> list[str]:
    """Draw lines `path1 path2 label`, half of one model (1), half of two (0), in random order.

    level: easy, both photos have the same viewpoint; medium, any pair; hard, both models are of the same make.
    """
    first, second = np.triu_indices(len(photos), k=1)
    models, makes, viewpoints = (
        np.array(values) for values in zip(*((p.model.id, p.model.make_id, p.viewpoint) for p in photos), strict=True)
    )
    same = models[first] == models[second]
    wanted = np.ones(len(first), bool)
    if level == "easy":
        wanted = viewpoints[first] == viewpoints[second]
    elif level == "hard":
        wanted = makes[first] == makes[second]
    positives, negatives = np.flatnonzero(wanted & same), np.flatnonzero(wanted & ~same)
    num = min(NUM_PAIRS, len(positives), len(negatives))
    rng = np.random.default_rng([seed, PAIR_LEVELS.index(level)])
    chosen = np.concatenate([rng.choice(group, num, replace=False) for group in (positives, negatives)])
    return [f"{photos[first[i]].path} {photos[second[i]].path} {int(same[i])}" for i in rng.permutation(chosen)]
