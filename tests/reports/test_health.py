"""The report of a data set's health: pictures show the counts, and odd names and photos break nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor
from rich.console import Console

from carvision.data.health import scan_photos
from carvision.data.table import BOX, Classes, Table
from carvision.errors import InputError
from carvision.files.folders import refuse_foreign_folder
from carvision.reports import health
from carvision.reports.health import choose_classes, plot_samples, print_health, write_health
from carvision.reports.photos import UNREADABLE
from carvision.reports.plots import SPLIT_COLOURS

RED = "#c81e1e"


def share_of(file, colour):
    """Return the fraction of a PNG's pixels that have exactly this colour."""
    return (np.asarray(Image.open(file).convert("RGB")) == ImageColor.getrgb(colour)).all(axis=-1).mean()


@pytest.fixture
def table(tmp_path):
    """Three models of two makes; the second has a truncated photo, the third none at all; boxes, one wrong."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(6):
        Image.new("RGB", (80, 40), RED).save(root / f"{i}.png")
    (root / "4.png").write_bytes((root / "0.png").read_bytes()[:60])
    rows = pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "split": ["train", "test"] * 3})
    rows["model"] = np.array([0, 0, 0, 0, 1, -1], np.int32)
    rows["make"] = np.array([0, 0, 0, 0, 1, 1], np.int32)
    rows[BOX] = np.array([(10, 5, 70, 35)] * 3 + [(np.nan,) * 4] + [(10, 5, 70, 35), (10, 5, 99, 35)], np.float32)
    model = Classes(("7", "8", "9"), ("Ca$h \\frac", "[bold]Golf", "nobody's"), "make", (0, 1, 1))
    return Table("cars", root, rows, {"make": Classes(("a", "b"), ("A", "B")), "model": model}, "model")


@pytest.mark.parametrize("num_classes", [1, 60, 61])
def test_the_plot_of_counts_has_the_splits_in_their_shares(tmp_path, num_classes):
    file = tmp_path / "new folder" / "counts.png"
    counts = pd.DataFrame({"name": [f"class {i}" for i in range(num_classes)], "train": 60, "test": 20, "total": 80})
    health.plot_class_counts(counts, "photos", file)
    train, test, val = (share_of(file, SPLIT_COLOURS[split]) for split in ("train", "test", "val"))
    assert test > 0.01 and val == 0 and train / test == pytest.approx(3, rel=0.15)  # the legend takes some
    odd = pd.DataFrame({"train": 0, "no split": 0, "total": 0, "name": "$\\frac{ a^ [red] \n" + 200 * "x"}, range(60))
    health.plot_class_counts(odd, "a $ b_{", file)
    assert Image.open(file).width < 1200


def test_samples_show_photos_boxes_and_what_is_unreadable(tmp_path, table, caplog):
    file = tmp_path / "samples.png"
    plot_samples(table, "model", [0, 1, 2], file, num_per_class=4)
    num_pixels = np.prod(Image.open(file).size)
    photos = 4 * 140 * 70  # four of the first class; the one of the second can't be read, the third has none
    assert 0.9 * photos < share_of(file, RED) * num_pixels <= photos
    assert share_of(file, UNREADABLE) * num_pixels == pytest.approx(140 * 140, rel=0.1)
    red, _, blue = np.asarray(Image.open(file).convert("RGB")).astype(int).transpose(2, 0, 1)
    bluish = (blue - red > 40).sum()  # nothing else on the sheet is
    assert 3 * 314 < bluish < 3 * 314 * 3  # three boxes of 105 x 52 pixels, lines one to three pixels wide
    for name in ("a", "b"):
        plot_samples(table, "make", [0, 1] * 40, tmp_path / name, num_per_class=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and "first 60 of 80 classes" in caplog.text


def test_the_report_has_all_files_and_counts_the_problems(tmp_path, table, capsys):
    out = tmp_path / "out"
    report = write_health(table, scan_photos(table, boxes=True, num_workers=0), out, choose_classes(table, ["7"]))
    assert {path.name for path in out.iterdir()} == {
        "photos.csv", "problems.csv", "copies.csv", "colours.csv", "health.json",
        "classes_make.csv", "counts_make.png", "samples_make.png",
        "classes_model.csv", "counts_model.png", "samples_model.png",
    }  # fmt: skip
    assert json.loads((out / "health.json").read_text(encoding="utf-8")) == report
    refuse_foreign_folder(out, "out", health.is_health)  # another may replace it
    problems = pd.read_csv(out / "problems.csv")
    assert dict(problems[["path", "problem"]].values) == {"4.png": "truncated", "5.png": "box outside the photo"}
    assert len(pd.read_csv(out / "photos.csv")) == 6
    assert report["copies"] == {"photos": 5, "groups": 1, "conflicts": 1, "across_splits": 1}
    assert report["labels"]["model"]["unknown"] == 1 and report["labels"]["model"]["splits"][-1]["photos"] == 5
    colours = pd.read_csv(out / "colours.csv").set_index("split")
    assert colours.loc["ImageNet", "blue"] == 0.406 and colours.loc["all", "photos"] == 5
    assert print_health(report, Console(width=80)) == 2
    text = capsys.readouterr().out
    for part in ("used (problems.csv): 2", "truncated: 1", "4.png", "model: 3 classes (photos of unknown model: 1)"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    whole = table.select(table.rows["path"] == "1.png")
    report = write_health(whole, scan_photos(whole, boxes=True, num_workers=0), tmp_path / "ok", choose_classes(whole))
    assert print_health(report, Console(quiet=True)) == 0 and "NaN" not in (tmp_path / "ok/health.json").read_text()
    for content in ("[]", '{"name": "x"}'):
        (out / "health.json").write_text(content)
        with pytest.raises(InputError, match=r"out: .* holds something that this command did not write"):
            refuse_foreign_folder(out, "out", health.is_health)
    with pytest.raises(InputError, match=r"show: 'nobodys' is not a class of cars .* nearest: nobody's"):
        choose_classes(table, ["nobodys"])
