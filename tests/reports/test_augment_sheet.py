"""The sheet of augmented photos shows what training sees; the command."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from carvision.augment.mixing import Mix
from carvision.augment.pipeline import Augment
from carvision.data.images import Preprocessing
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.readers.compcars import read_compcars
from carvision.data.table import UNKNOWN, Table
from carvision.errors import InputError
from carvision.reports import augment_sheet

SIZE = augment_sheet.TILE_PX  # so that tiles are not resized


@pytest.fixture(scope="module")
def table(demo_photos) -> Table:
    return read_compcars(demo_photos, known=None)


def photos_of(table: Table, num_draws: int) -> PhotoDataset:
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3)
    return PhotoDataset(table, preprocessing, True, (0.5, 0.9), (0.8, 1.2), num_draws, seed=3)


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=1.0, cutmix=1.0)])
def test_tiles_show_what_training_sees(table, tmp_path, mix, figures):
    augment = Augment(["flip", "brightness"], {"flip": {"p": 0.5}, "brightness": {"p": 1.0, "factor": [0.3, 0.8]}})
    photos = photos_of(table, augment.num_draws)
    augment_sheet.plot_augmented(photos, table, augment, mix, "title", tmp_path / "sheet.png", 3, 2, seed=3)
    rows = augment_sheet.choose_rows(table, 3, 3)
    columns = [photos[[(row, -1) for row in rows]]["images"] / 255]
    for epoch in range(2):
        batch = photos[[(row, epoch) for row in rows]]
        images = augment(batch["images"] / 255, batch["draws"])
        columns.append(mix(images, batch["valid"], (3, epoch, 0, 0))[0])
    tiles = [np.asarray(image.get_array(), np.float32) for image in figures[0].axes[0].images]
    for tile, image in zip(tiles, torch.stack(columns, 1).flatten(0, 1), strict=True):  # row by row
        np.testing.assert_allclose(tile, 255 * image.permute(1, 2, 0).numpy(), atol=0.51)


def test_rows_are_of_different_classes_first_and_depend_on_the_seed(table):
    codes = table.rows["model"].to_numpy()
    rows = augment_sheet.choose_rows(table, 24, 0)
    assert sorted(codes[rows[:12]]) == sorted(codes[rows[12:]]) == list(range(12))
    assert rows == augment_sheet.choose_rows(table, 24, 0) != augment_sheet.choose_rows(table, 24, 1)
    assert len(augment_sheet.choose_rows(table, 10_000, 0)) == len(codes)


def test_unreadable_photos_and_unknown_classes(table, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("carvision"), "propagate", True)
    table = replace(table, rows=table.rows.iloc[:2].assign(path=["nowhere.jpg", table.rows["path"].iloc[1]]))
    table.rows["model"] = UNKNOWN
    photos, file = photos_of(table, 0), tmp_path / "sheet.png"
    augment_sheet.plot_augmented(photos, table, Augment([], {}), Mix(mixup=1.0), "Ca$h & $x^2$", file, 2, 1)
    assert file.exists() and augment_sheet.class_names(table, [0, 1]) == ["model not known"] * 2
    assert "nowhere.jpg: the file is missing; its row of the sheet is grey" in caplog.text
    gone = replace(table, rows=table.rows.assign(path=["nowhere.jpg", "gone.jpg"]))
    with pytest.raises(InputError, match="not one of the 2 photos of the split 'train' can be read"):
        augment_sheet.plot_augmented(photos_of(gone, 0), gone, Augment([], {}), Mix(), "title", file, 2, 1)


def test_the_command_draws_a_picture_and_a_mistake_is_one_line(run_forked, demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "data.images_per_model=20", "augment=r1", "augment.mixup=0.2"]
    done = run_forked("carvision.augment_sheet", *overrides, "num_photos=2", "num_versions=3", check=0)
    last = done.stdout.splitlines()[-1]
    width, height = Image.open(tmp_path / last.removeprefix("augment_sheet: ")).size
    assert last.startswith("augment_sheet: augment_sheets/demo_r1_") and width > 4 * SIZE and height > 2 * SIZE
    assert "Warning" not in done.stderr
    done = run_forked("carvision.augment_sheet", "out=sheet.jpg", check=1)
    assert done.stderr == "error: out: 'sheet.jpg' is not the name of a picture, such as sheet.png\n"
