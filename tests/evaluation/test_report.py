"""write_evaluation as a whole: its files, tables that 80 columns hold, and pictures without text on text."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from carvision.evaluation import pictures, report
from carvision.evaluation.bootstrap import measure
from carvision.evaluation.metrics import confused_pairs, confusions
from carvision.evaluation.predict import Predictions
from carvision.evaluation.report import cell, metric_tables, number, write_evaluation
from carvision.reports.matrix import shade
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, made, photo_losses
from tests.reports.test_photos import texts_of

NAME = "Mercedes-Benz SL-Class Coupe"


def evaluate(predictions: Predictions, folder, labels: dict = LABELS, num_samples: int = 20) -> dict:
    losses = photo_losses(predictions, labels)
    measured = measure(predictions, labels, "joint", losses, HEAD_WEIGHTS, num_samples)
    notes = ["2 classes are not known to the network"]
    return write_evaluation(predictions, labels, folder, measured=measured, rule="joint", title="a run", notes=notes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with a photo for each path of `made`."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(120):
        Image.new("RGB", (60, 40), (i, 90, 90)).save(folder / f"{i}.jpg")
    return folder


def test_all_files_are_written_and_agree(photos, tmp_path, monkeypatch, capsys):
    predictions, matrices, plot = replace(made(temperature={"model": 1.5}), root=photos), [], report.plot_confusion
    monkeypatch.setattr(report, "plot_confusion", lambda *arguments: (matrices.append(arguments), plot(*arguments)))
    folder = tmp_path / "out"
    result, printed = evaluate(predictions, folder), capsys.readouterr().out
    assert result == json.loads(json.dumps(result, allow_nan=False))
    kinds = ("confusion_{}.csv", "confusion_{}.png", "confused_{}.csv", "confused_{}.png", "per_class_{}.csv",
             "reliability_{}.png")  # fmt: skip
    files = {kind.format(head) for head in ("make", "model") for kind in kinds}
    others = {"coverage.png", "results.txt", "evaluation.md", "evaluation.html"}
    assert {file.name for file in folder.iterdir()} == files | others
    assert all(np.asarray(Image.open(file)).std() > 5 for file in folder.glob("*.png"))
    results, page = (folder / "results.txt").read_text(), (folder / "evaluation.html").read_text()
    shown = cell(result["figures"], result["intervals"], "model/top1")
    assert (
        re.fullmatch(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", shown) and page.count("<img ") == 2 + 1
    )  # pairs of two heads, a photo opened
    unread = f"{int((~predictions.valid).sum())} more could not be read"
    for text in (printed, results, page, (folder / "evaluation.md").read_text().replace("\\", "")):
        assert all(part in " ".join(text.split()) for part in (shown, "2 classes are not known", unread))
    assert max(len(line) for line in results.splitlines()) <= 80 and "…" not in results
    assert len(printed.splitlines()) <= 32 and printed.endswith(f"page: {folder / 'evaluation.html'}\n")
    assert "Keras" not in results
    assert set(result["intervals"]) == set(result["figures"]) and result["temperature"] == {"make": 1.0, "model": 1.5}
    tables = ("per_class", "confusion", "confused")
    per_class, cells, pairs = (pd.read_csv(folder / f"{name}_model.csv") for name in tables)
    assert list(cells) == ["true_id", "true", "predicted_id", "predicted", "photos"]
    assert cells["photos"].sum() == per_class["photos"].sum() == int(predictions.known("model").sum())
    wrong = cells[cells["true_id"] != cells["predicted_id"]]
    assert wrong["photos"].sum() == pairs["photos"].sum() == result["mistakes"]["model"]["photos"]
    accuracy = pytest.approx(result["figures"]["model/top1"])
    assert per_class["right"].sum() / per_class["photos"].sum() == accuracy
    assert result["coverage"]["model"]["rows"][0]["accuracy"] == accuracy
    first = pairs.iloc[0]
    there = wrong[(wrong["true_id"] == first["a_id"]) & (wrong["predicted_id"] == first["b_id"])]
    assert there["photos"].item() == first["a_as_b"] and there["true"].item() == first["a"]
    assert [LABELS["model"]["names"][code] for code in per_class["id"]] == per_class["name"].tolist()
    assert sorted(per_class["id"]) == [*range(7)]
    drawn, names, parents = matrices[1][:3]  # in an order of its own
    assert names == [*"abdcgef"] and parents == ["Ironholt"] * 3 + ["Kestrano"] * 2 + ["Velmora"] * 2
    shown = {(names[true], names[guess], photos) for true, guess, photos in drawn.itertuples(index=False)}
    assert shown == set(cells[["true", "predicted", "photos"]].itertuples(index=False, name=None))


def test_one_head_a_number_and_heads_without_known_classes(photos, tmp_path):
    labels = {"model": {**LABELS["model"], "parent": "make"}}
    result = evaluate(replace(made(labels=labels), root=photos), tmp_path / "one", labels, num_samples=0)
    assert result["intervals"] == {} and result["mistakes"]["model"]["within_parent"] is None
    text = (tmp_path / "one" / "results.txt").read_text()
    assert not any(word in text for word in ("bootstrap", "All heads", "model.decoding", "within"))
    labels = {"speed": LABELS["speed"]}
    result = evaluate(replace(made(labels=labels), root=photos), tmp_path / "number", labels)
    assert set(result["intervals"]) == {"loss", "speed/loss", "speed/mae", "speed/rmse"}
    assert "speed, km/h" in (tmp_path / "number" / "results.txt").read_text()
    predictions = replace(made(), root=photos)
    predictions.targets["make"][:] = -1
    evaluate(predictions, tmp_path / "two")
    assert not list((tmp_path / "two").glob("*make*")) and (tmp_path / "two" / "per_class_model.csv").is_file()
    predictions.valid[:] = False
    assert evaluate(predictions, tmp_path / "none")["photos"] == 0
    assert (tmp_path / "none" / "evaluation.html").is_file()


def test_ranks_that_few_classes_have_and_what_keras_counts_are_left_out_unless_asked_for():
    names = ("top1", "top3", "top5", "precision_at50")
    metrics = {f"{head}/{name}": 0.5 for head in ("few", "many") for name in names}
    labels = {"few": {"ids": [*"abc"], "names": [*"abc"]}, "many": {"ids": [*"abcdef"], "names": [*"abcdef"]}}
    (plain, _), (keras, _) = (metric_tables(metrics, {}, labels, keras) for keras in (False, True))
    assert plain.rows == [["top-1 %", "50.0", "50.0"], ["top-3 %", "", "50.0"], ["top-5 %", "", "50.0"]]
    assert keras.rows == [*plain.rows, ["precision %, all p > 0.5 (Keras)", "50.0", "50.0"]]
    assert len(metric_tables(metrics, {}, {"few": labels["few"]})[0].rows) == 1


def test_many_heads_of_long_names_fit_and_values_are_rounded():
    heads = [f"a head with a long name {i}" for i in range(5)]
    metrics = {f"{head}/top1": 1.0 for head in heads} | {"joint/top1": 0.5}
    labels = {head: {"ids": ["a"], "names": ["a"]} for head in heads}
    sheets = metric_tables(metrics, {f"{heads[4]}/top1": (0.1, 1.0)}, labels)
    assert [sheet.header[1:] for sheet in sheets] == [heads[:2], heads[2:4], heads[4:], ["all heads"]]
    assert sheets[2].rows[0] == ["top-1 %", "100.0 [10.0, 100.0]"] and "bootstrap" in sheets[3].notes[0]
    assert [*map(number, (0.9996, 0.0, 0.12345, 123.4, 10.0))] == ["1.00", "0.00", "0.123", "123", "10.0"]


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
        pictures.plot_pairs(table, predictions, "model", names, codes, "pairs", file)
        return texts_of(figures[-1])

    texts = draw([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3], [0, 0, 0, 1, 1, 0, 1, 1, 2, 0, 2])
    assert {"2 of 5 taken for B", "1 of 3 taken for A", "1 of 2 taken for B", "0 of 5 taken for A"} <= set(texts)
    num_photos = (2 + 2 + 1 + 2) + (1 + 1 + 2) + (1 + 1)
    assert sum("%" in text for text in texts) == len(figures[0].axes[0].images) == num_photos
    assert texts.count("none") == 3  # no photo of 0 is taken for 2, none of 2 for 3, none of 3 is recognised
    assert "No photo" in draw([0, 1, 1], [0, 1, 1])[-1] and not figures[-1].axes[0].images
    (tmp_path / "1.jpg").unlink()
    assert "unreadable" in draw([0, 1, 1], [0, 0, 1])
