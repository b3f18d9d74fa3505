"""Batches of photos and their randomness."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from carvision.data.decode import decode_image
from carvision.data.images import BLANK, Preprocessing, open_image
from carvision.data.loading.dataset import PADDING, PhotoDataset, random_windows
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table

PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM = 8
BAD = {3, 5}


@pytest.fixture
def table(tmp_path) -> Table:
    """Write noisy photos of 24 x 16 px; 3 is an empty file, 5 is missing."""
    random = np.random.default_rng(0)
    for i in set(range(NUM)) - BAD:
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / f"é{i}.png")
    (tmp_path / "é3.png").touch()
    rows = pd.DataFrame({"path": [f"é{i}.png" for i in range(NUM)], "split": "train"})
    rows["class"] = np.array([0, 1, UNKNOWN, 1, 0, 1, 0, 1], np.int32)
    rows["speed"] = np.array([200, 150, math.nan, 1, 2, 3, 4, 5], np.float32)
    rows[BOX] = np.float32([2, 1, 20, 9])
    return Table("some", tmp_path, rows, {"class": Classes(("a", "b"), ("a", "b")), "speed": Number()}, "class")


def photos_of(table: Table, crop_to_box=False, scale=(0.3, 1.0), ratio=(0.5, 2.0), seed=0, **kwargs) -> PhotoDataset:
    return PhotoDataset(table, kwargs.get("preprocessing", PREPROCESSING), crop_to_box, scale, ratio, 4, seed)


@pytest.mark.parametrize("crop_to_box", [False, True])
def test_outside_of_training_images_show_the_whole_photo_or_box(table, crop_to_box):
    batch = photos_of(table, crop_to_box)[[(6, -1), (0, -1), (2, -1)]]
    box = table.rows[BOX].to_numpy()[0] if crop_to_box else None
    for image, row in zip(batch["images"], (6, 0, 2), strict=True):
        with open_image(table.root / f"é{row}.png") as photo:
            assert torch.equal(image, decode_image(photo, PREPROCESSING, box))
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (3, 3, 8, 8)
    assert batch["index"].tolist() == [6, 0, 2]
    classes, speed = batch["targets"]["class"], batch["targets"]["speed"]
    assert (classes.tolist(), classes.dtype, speed.dtype) == ([0, 0, UNKNOWN], torch.int64, torch.float32)
    assert speed.tolist() == pytest.approx([4, 200, math.nan], nan_ok=True)
    assert batch["draws"].tolist() == [[0.0] * 4] * 3
    assert batch["valid"].tolist() == [True] * 3 and batch["reasons"] == [None] * 3


def test_bad_photos_and_padding_are_blank_and_invalid_and_bad_ones_reported(table):
    dataset = photos_of(table, crop_to_box=True)
    for epoch in (-1, 0):
        batch = dataset[[(5, epoch), (0, epoch), (3, epoch), PADDING, PADDING]]
        assert batch["index"].tolist() == [5, 0, 3, -1, -1]
        assert batch["valid"].tolist() == [False, True, False, False, False]
        assert batch["reasons"] == ["the file is missing", None, "the file is empty", None, None]
        assert (batch["images"][[0, 2, 3, 4]] == BLANK).all()
        assert torch.equal(batch["images"][1], dataset[[(0, epoch)]]["images"][0])
    assert dataset.path(5) == "é5.png" and dataset.location(5) == str(table.root / "é5.png")


def items(photos: PhotoDataset, keys: list) -> dict[tuple, tuple]:
    """Return {key: (image, draws)} as bytes."""
    batch = photos[keys]
    values = zip(keys, batch["images"], batch["draws"], strict=True)
    return {key: (image.numpy().tobytes(), draws.numpy().tobytes()) for key, image, draws in values}


def test_an_image_is_the_same_in_any_batch_and_differs_by_epoch_seed_and_row(table):
    keys = [(row, epoch) for row in set(range(NUM)) - BAD for epoch in (0, 1, 2)]
    photos = photos_of(table)
    together = items(photos, keys)
    for key in keys:
        assert items(photos, [key])[key] == together[key]
    assert items(photos_of(table), keys[::-1]) == together
    images, draws = ({value[i] for value in together.values()} for i in range(2))
    assert len(images) == len(draws) == len(keys)
    other = items(photos_of(table, seed=1), keys)
    assert all(other[key][i] != together[key][i] for key in keys for i in range(2))
    draws = photos[keys]["draws"]
    assert ((draws >= 0) & (draws < 1)).all() and len(draws.unique()) == draws.numel()


def quantiles_are_uniform(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> bool:
    levels = np.linspace(0, 1, 21)
    return np.abs(np.quantile((values - low) / (high - low), levels) - levels).max() < 0.02


def test_windows_lie_inside_the_photo_uniform_in_area_aspect_and_position():
    random = np.random.default_rng(0)
    left, top, right, bottom = random_windows(random.random((20_000, 4)), (0.1, 0.3), (0.5, 2.0)).T
    wide, high = right - left, bottom - top
    assert quantiles_are_uniform(wide * high, 0.1, 0.3)
    assert quantiles_are_uniform(np.log(wide / high), -math.log(2), math.log(2))
    assert quantiles_are_uniform(left / (1 - wide)) and quantiles_are_uniform(top / (1 - high))
    related = np.corrcoef([wide * high, wide / high, left / (1 - wide), top / (1 - high)])[np.triu_indices(4, 1)]
    assert abs(related).max() < 0.03
    left, top, right, bottom = random_windows(random.random((5_000, 4)), (0.5, 1.0), (0.25, 4.0)).T
    assert min(left.min(), top.min()) >= 0 and max(right.max(), bottom.max()) <= 1 + 1e-12
    assert ((right - left) * (bottom - top) > 0.1).all()
    assert ((right - left == 1) & (bottom - top < 1)).any()  # too wide a window ends at the edges
    assert random_windows(random.random((1, 4)), (1.0, 1.0), (1.0, 1.0)).tolist() == [[0, 0, 1, 1]]
