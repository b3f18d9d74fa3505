"""The demo data: drawn vehicles, written to disk as CompCars lies on disk, so that its reader reads them.

<folder>/demo.json                                         version and arguments; there only if all is there
<folder>/data/image/<make_id>/<model_id>/<year>/<14 hex>.jpg
<folder>/data/label/<same path>.txt                        viewpoint; number of boxes (1); x1 y1 x2 y2, 1-based
<folder>/data/misc/{attributes.txt,car_type.mat,make_model_name.mat}
<folder>/data/train_test_split/classification/{train,test}.txt
<folder>/data/train_test_split/verification/verification_{train,pairs_easy,pairs_medium,pairs_hard}.txt

A year folder shows two cars, each with its paint and number plate. The lists divide the photos by year folder, 7 of
each model's 10 for training, so that a test photo never shows a car of a training photo.
"""

import hashlib
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.demo.cars import MAKES, MODELS, Model
from carvision.demo.photo import VIEWPOINTS, draw_photo
from carvision.demo.vehicle import PAINTS, create_finish, create_vehicle
from carvision.errors import InputError
from carvision.files.folders import cache_folder

log = logging.getLogger(__name__)

DEMO_VERSION = 1  # raise it with every change of what is drawn or written: the demo data are then drawn anew
IMAGES_PER_MODEL = 100
YEARS = (*map(str, range(2007, 2016)), "unknown")
NUM_TEST_YEARS = 3
CARS_A_YEAR = 2
MIN_IMAGES_PER_MODEL = 2 * len(YEARS)  # fewer may leave no pair of one model and viewpoint for verification
PAIR_LEVELS = ("easy", "medium", "hard")
NUM_PAIRS = 300  # of each level of difficulty, so many of one model and so many of two
CAR_TYPES = (
    "MPV", "SUV", "sedan", "hatchback", "minibus", "fastback",
    "estate", "pickup", "hardtop convertible", "sports", "crossover", "convertible",
)  # fmt: skip


class Photo(NamedTuple):
    path: str  # relative to data/image
    model: Model
    viewpoint: int
    split: str  # train or test


def demo_folder(cache: Path | None = None, images_per_model: int = IMAGES_PER_MODEL, seed: int = 0) -> Path:
    """Where the demo data of this version and these arguments belong.

    cache: by default carvision's own.
    """
    folder = cache_folder() if cache is None else Path(cache).expanduser()
    return folder / f"demo-v{DEMO_VERSION}-{images_per_model}-{seed}"


def write_demo(folder: Path, images_per_model: int = IMAGES_PER_MODEL, seed: int = 0) -> Path:
    """Draw the demo data into `folder`, or return at once where they lie there already.

    The same arguments give the same bytes. All is drawn in a temporary folder beside `folder` that gets its name as
    the last step: an interrupted writing leaves nothing, and of two processes at the same time one wins.
    Raises InputError where the folder holds something else or can't be written.
    """
    if images_per_model < MIN_IMAGES_PER_MODEL:
        raise InputError(
            f"demo data: {images_per_model} images_per_model are too few; {MIN_IMAGES_PER_MODEL} or more, "
            f"two in each of {len(YEARS)} year folders"
        )
    if seed < 0:
        raise InputError(f"demo data: seed {seed} is negative; give 0 or more")
    folder = Path(folder)
    stamp = json.dumps({"version": DEMO_VERSION, "images_per_model": images_per_model, "seed": seed}) + "\n"
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if _is_complete(folder, stamp):
        return folder
    if occupied:
        raise InputError(
            f"demo data: {folder} holds something else than {stamp.strip()}; name another folder with data.root"
        )
    num_photos = images_per_model * len(MODELS)
    log.info("drawing %s photos of the demo data into %s (once, some ten seconds)", f"{num_photos:,}", folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            draft = Path(temporary) / "draft"
            _write_all(draft, images_per_model, seed)
            (draft / "demo.json").write_text(stamp, encoding="utf-8")
            _move(draft, folder, stamp)
    except OSError as error:
        raise InputError(
            f"demo data: cannot write {folder} ({error.strerror or error}); "
            "name another place with CARVISION_CACHE or data.root"
        ) from error
    return folder


def _is_complete(folder: Path, stamp: str) -> bool:
    return (folder / "demo.json").is_file() and (folder / "demo.json").read_text(encoding="utf-8") == stamp


def _move(draft: Path, folder: Path, stamp: str) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not _is_complete(folder, stamp):  # else another process was faster, with the same bytes
            raise


def _write_all(root: Path, images_per_model: int, seed: int) -> None:
    photos = [photo for model in MODELS for photo in _write_photos(root / "data", model, images_per_model, seed)]
    _write_misc(root / "data" / "misc")
    lists = root / "data" / "train_test_split"
    train, test = ([photo for photo in photos if photo.split == split] for split in ("train", "test"))
    for name, listed in (("train", train), ("test", test)):
        _write_lines(lists / "classification" / f"{name}.txt", [photo.path for photo in listed])
    _write_lines(lists / "verification" / "verification_train.txt", [photo.path for photo in train])
    for level in PAIR_LEVELS:
        _write_lines(lists / "verification" / f"verification_pairs_{level}.txt", _pairs(test, level, seed))


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", newline="\n", encoding="utf-8")


def _write_photos(data: Path, model: Model, num_images: int, seed: int) -> list[Photo]:
    """Draw a model's photos and write them with their labels. Cars and viewpoints take turns in a year folder."""
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
            photos.append(Photo(f"{stem}.jpg", model, viewpoint, "test" if is_test[y] else "train"))
    return photos


def _paints(model: Model, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(years, cars) the number of the paint of each car, and (years,) bool: which years' photos are for testing.

    Every model has one training car of every paint. So colour tells nothing about the model, and a network that
    learns single cars by heart, which show best by their colour, gains nothing from it.
    """
    rng = np.random.default_rng([seed, model.id])
    is_test = np.isin(np.arange(len(YEARS)), rng.choice(len(YEARS), NUM_TEST_YEARS, replace=False))
    paints = np.empty((len(YEARS), CARS_A_YEAR), int)
    paints[~is_test] = rng.permutation(len(PAINTS)).reshape(-1, CARS_A_YEAR)
    paints[is_test] = rng.choice(len(PAINTS), (NUM_TEST_YEARS, CARS_A_YEAR), replace=False)
    return paints, is_test


def _write_misc(misc: Path) -> None:
    lines = ["model_id maximum_speed displacement door_number seat_number type"]
    for m in MODELS:
        lines.append(f"{m.id} {m.speed} {m.displacement} {m.doors} {m.seats} {CAR_TYPES.index(m.body) + 1}")
    _write_lines(misc / "attributes.txt", lines)
    types = np.array([CAR_TYPES], dtype=object)
    makes, models = _cells({m.id: m.name for m in MAKES}), _cells({m.id: m.name for m in MODELS})
    _write_mat(misc / "car_type.mat", {"types": types})
    _write_mat(misc / "make_model_name.mat", {"make_names": makes, "model_names": models})


def _cells(names: dict[int, str]) -> np.ndarray:
    """A cell array (highest id, 1): cell i holds the name of id i + 1; cells of unused ids are empty."""
    cells = np.empty((max(names), 1), dtype=object)
    for i in range(len(cells)):
        cells[i, 0] = names.get(i + 1, np.zeros((0, 0)))
    return cells


def _write_mat(path: Path, content: dict[str, np.ndarray]) -> None:
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # scipy writes the time into these bytes: never the same twice
    path.write_bytes(header + buffer.getvalue()[len(header) :])


def _pairs(photos: list[Photo], level: str, seed: int) -> list[str]:
    """Lines `path1 path2 label`, half of them of one model (1), half of two (0), in random order.

    easy: both from the same viewpoint. medium: any. hard: two models are of the same make.
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
