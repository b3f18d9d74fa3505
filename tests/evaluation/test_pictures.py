"""Pictures of an evaluation: they have the size of what they show, and no text lies on another."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from carvision.evaluation import pictures
from carvision.evaluation.metrics import confused_pairs, confusions
from carvision.evaluation.predict import Predictions
from carvision.reports.matrix import shade
from tests.reports.test_photos import texts_of

NAME = "Mercedes-Benz SL-Class Coupe"


def make_cells(num_classes: int, num_photos: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    true = random.integers(num_classes, size=num_photos)
    wrong = random.random(num_photos) < 0.3
    return confusions(true, np.where(wrong, random.integers(num_classes, size=num_photos), true))


@pytest.mark.parametrize(("num_classes", "num_parents"), [(4, 0), (27, 8), (60, 20), (102, 0), (1716, 163)])
def test_confusion_matrices_of_all_sizes(num_classes, num_parents, tmp_path, figures):
    cells = make_cells(num_classes, 5 * num_classes)
    names = [f"{NAME} {i}" for i in range(num_classes)]
    sizes = np.sort(np.random.default_rng(1).integers(max(1, num_parents), size=num_classes))
    parents = [f"Make number {i}" if num_parents else "" for i in sizes]
    pictures.plot_confusion(cells, names, parents, "a run on test: model", "5 photos. " * 20, tmp_path / "c.png")
    assert max(Image.open(tmp_path / "c.png").size) < 2600
    texts = texts_of(figures[0])
    assert sum(text.startswith("Mercedes") for text in texts) >= (2 * num_classes if num_classes <= 60 else 0)
    assert sum(text.startswith("Make") for text in texts) >= num_parents * (0.9 if num_classes < 1000 else 0.4)
    odd = ["$x_1$", "_", "long " * 30]  # names like formulas, and a class without photos
    pictures.plot_confusion(make_cells(2, 9), odd, [""] * 3, "$a on $ " * 30, "", tmp_path / "c.png")
    assert any("grey" in text for text in texts_of(figures[1]))


@pytest.mark.parametrize("spread", [False, True])
def test_colours_of_the_matrix_are_fractions_of_the_true_class(spread):
    counts = np.zeros((9, 9), int)
    counts[1, 1], counts[1, 4], counts[4, 8] = 3, 1, 2
    colours = pictures.cell_colours(counts, spread)
    quarter, most, every = (shade(np.sqrt(share)).tolist() for share in (0.25, 0.75, 1.0))
    assert [colours[1, 1].tolist(), colours[1, 4].tolist(), colours[4, 8].tolist()] == [most, quarter, every]
    assert (colours[4, 2] == 1).all() and (colours[7, 4] == pictures.EMPTY).all()  # class 7 has no photos
    assert (colours[1, 5].tolist() == quarter) == spread  # a dot is no smaller than three pixels


def test_confused_pairs_show_photos_of_each_kind(tmp_path, figures):
    for i in range(11):
        Image.new("RGB", (300 + i, 200), (20 * i, 90, 90)).save(tmp_path / f"{i}.jpg")

    def draw(targets: list[int], predicted: list[int]) -> list[str]:
        """Draw the pairs, of photos with boxes; return the sheet's texts."""
        num, names = len(targets), [f"{NAME} of a very long name {i}" for i in range(max(targets) + 1)]
        logits = {"model": torch.randn(num, len(names)) + 5 * torch.eye(len(names))[predicted]}
        boxes, paths = np.array([[50, 20, 250, 190]] * num, np.float32), [f"{i}.jpg" for i in range(num)]
        valid = torch.ones(num, dtype=torch.bool)
        predictions = Predictions(paths, tmp_path, boxes, logits, {"model": torch.tensor(targets)}, valid, {})
        table = confused_pairs(confusions(np.array(targets), np.array(predicted)))
        codes, file = torch.tensor(predicted), tmp_path / "confused.png"
        pictures.plot_pairs(table, predictions, "model", names, codes, "pairs", True, file)
        return texts_of(figures[-1])

    texts = draw([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3], [0, 0, 0, 1, 1, 0, 1, 1, 2, 0, 2])
    assert {"2 of 5 taken for B", "1 of 3 taken for A", "1 of 2 taken for B", "0 of 5 taken for A"} <= set(texts)
    num_photos = (2 + 2 + 1 + 2) + (1 + 1 + 2) + (1 + 1)
    assert sum("%" in text for text in texts) == len(figures[0].axes[0].images) == num_photos
    assert texts.count("none") == 3  # no photo of 0 is taken for 2, none of 2 for 3, none of 3 is recognised
    assert "No photo" in draw([0, 1, 1], [0, 1, 1])[-1] and not figures[-1].axes[0].images
    (tmp_path / "1.jpg").unlink()
    assert "unreadable" in draw([0, 1, 1], [0, 0, 1])


@pytest.mark.parametrize(("num_heads", "num_photos"), [(14, 90), (1, 1)])
def test_coverage_of_many_heads_and_of_one_photo(num_heads, num_photos, tmp_path, figures):
    certain = np.random.default_rng(0).random(num_photos)
    heads = {f"head {i}": (certain, certain > 0.5) for i in range(num_heads)}
    pictures.plot_coverage(heads, "a run", tmp_path / "coverage.png")
    assert len(figures[0].axes[0].lines) == 2 * num_heads and len(figures[0].legends[0].texts) == num_heads
