"""write_evaluation as a whole: its files and their contents, and tables that 80 columns hold."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvision.evaluation import report
from carvision.evaluation.bootstrap import measure
from carvision.evaluation.predict import Predictions
from carvision.evaluation.report import cell, metric_tables, number, write_evaluation
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, made, photo_losses


def evaluate(predictions: Predictions, folder, labels: dict = LABELS, num_samples: int = 20) -> dict:
    losses = photo_losses(predictions, labels)
    measured = measure(predictions, labels, "joint", losses, HEAD_WEIGHTS, num_samples)
    notes = ["2 classes are not known to the network"]
    return write_evaluation(
        predictions, labels, folder, measured=measured, rule="joint", title="a run on test", notes=notes
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with a photo for each path of `made`."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(120):
        Image.new("RGB", (60, 40), (i, 90, 90)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def evaluated(photos, tmp_path_factory) -> tuple[Predictions, dict, Path, str, list]:
    """Predictions, what write_evaluation returned, its folder, what it printed, and the arguments of each matrix."""
    predictions, matrices, plot = replace(made(temperature={"model": 1.5}), root=photos), [], report.plot_confusion
    folder, printed = tmp_path_factory.mktemp("evaluation") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_confusion", lambda *arguments: (matrices.append(arguments), plot(*arguments)))
        result = evaluate(predictions, folder)
    return predictions, result, folder, printed.getvalue(), matrices


def test_all_files_are_written_and_agree(evaluated):
    predictions, result, folder, printed, _ = evaluated
    assert result == json.loads(json.dumps(result, allow_nan=False))
    kinds = ("confusion_{}.csv", "confusion_{}.png", "confused_{}.csv", "confused_{}.png", "per_class_{}.csv",
             "reliability_{}.png")  # fmt: skip
    files = {kind.format(head) for head in ("make", "model") for kind in kinds}
    others = {"coverage.png", "results.txt", "evaluation.md", "evaluation.html"}
    assert {file.name for file in folder.iterdir()} == files | others
    assert all(np.asarray(Image.open(file)).std() > 5 for file in folder.glob("*.png"))
    results, page = (folder / "results.txt").read_text(), (folder / "evaluation.html").read_text()
    shown = cell(result["figures"], result["intervals"], "model/top1")
    assert re.fullmatch(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", shown) and page.count("<img ") == 7
    unread = f"{int((~predictions.valid).sum())} more could not be read"
    for text in (printed, results, page, (folder / "evaluation.md").read_text().replace("\\", "")):
        assert all(part in " ".join(text.split()) for part in (shown, "2 classes are not known", unread))
    assert max(len(line) for line in results.splitlines()) <= 80 and "…" not in results
    assert set(result["intervals"]) == set(result["figures"]) and result["temperature"] == {"make": 1.0, "model": 1.5}


def test_tables_and_the_matrix_hold_every_class_and_cell(evaluated):
    predictions, result, folder, _, matrices = evaluated
    per_class, cells, pairs = (
        pd.read_csv(folder / f"{kind}_model.csv") for kind in ("per_class", "confusion", "confused")
    )
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


def test_many_heads_of_long_names_fit_and_values_are_rounded():
    heads = [f"a head with a long name {i}" for i in range(5)]
    metrics = {f"{head}/top1": 1.0 for head in heads} | {"joint/top1": 0.5}
    labels = {head: {"ids": ["a"], "names": ["a"]} for head in heads}
    sheets = metric_tables(metrics, {f"{heads[4]}/top1": (0.1, 1.0)}, labels)
    assert [sheet.header[1:] for sheet in sheets] == [heads[:2], heads[2:4], heads[4:], ["all heads"]]
    assert sheets[2].rows[0] == ["top-1 %", "100.0 [10.0, 100.0]"] and "bootstrap" in sheets[3].notes[0]
    assert [*map(number, (0.9996, 0.0, 0.12345, 123.4, 10.0))] == ["1.00", "0.00", "0.123", "123", "10.0"]
