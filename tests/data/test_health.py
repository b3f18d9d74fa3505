"""The scan names what is wrong with each photo, finds copies and conflicts, and counts classes like a naive loop."""

import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvision.data import health
from carvision.data.decode import decode_into, empty_images
from carvision.data.health import find_copies, hints_on_values, scan_photos
from carvision.data.images import BadImage, Preprocessing, read_file
from carvision.data.table import BOX, Classes, Number, Table
from carvision.errors import InputError
from tests.conftest import ROOT


def photo(width=60, height=40, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def table_of(root, paths, codes=None, split="train", boxes=None):
    codes = np.arange(len(paths)) if codes is None else np.asarray(codes)
    classes = Classes(tuple(map(str, range(100))), tuple(f"car {i}" for i in range(100)))
    rows = pd.DataFrame({"path": paths, "model": codes.astype(np.int32), "split": split})
    if boxes is not None:
        rows[BOX] = np.array(boxes, np.float32)
    return Table("photos", root, rows, {"model": classes}, "model")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
def test_the_scan_reports_problems_and_notes_in_any_number_of_threads(tmp_path):
    photo().save(tmp_path / "good.jpg")
    photo().save(tmp_path / "whole.png")
    for suffix, whole in ((".jpg", "good.jpg"), (".png", "whole.png")):
        data = (tmp_path / whole).read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "truncated bomb.jpg").mkdir()  # its path doesn't decide the kind of its problem
    photo().save(tmp_path / "bomb.gif")
    bomb = bytearray((tmp_path / "bomb.gif").read_bytes())
    bomb[6:10] = (50_000).to_bytes(2, "little") * 2  # width and height of the header
    (tmp_path / "bomb.gif").write_bytes(bomb)
    for mode, name in {"L": "grey.jpg", "CMYK": "print.jpg", "P": "palette.png", "RGBA": "glass.png"}.items():
        photo(mode=mode).save(tmp_path / name)
    Image.fromarray(np.full((40, 60), 3_000, np.uint16)).save(tmp_path / "camera.tif")
    Image.new("RGB", (60, 40), (15, 9, 0)).save(tmp_path / "night.png")
    photo().save(tmp_path / "film.gif", save_all=True, append_images=[photo(seed=1)])
    photo().save(tmp_path / "wrong.png", "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(40, 60).save(tmp_path / "turned.jpg", exif=exif)
    photo().save(tmp_path / "vague.webp", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    problems = {
        "cut.jpg": "truncated", "cut.png": "truncated", "empty.jpg": "empty", "text.jpg": "not a photo",
        "truncated bomb.jpg": "unreadable", "gone.jpg": "missing", "bomb.gif": "decompression bomb",
    }  # fmt: skip
    notes = {
        "good.jpg": "", "grey.jpg": "greyscale", "print.jpg": "CMYK", "glass.png": "transparency",
        "camera.tif": "greyscale; 16-bit; values of 12 bits", "night.png": "nearly black", "palette.png": "palette",
        "film.gif": "animated", "wrong.png": "JPEG named .png", "turned.jpg": "turned by EXIF",
        "vague.webp": "odd metadata",
    }  # fmt: skip
    expected = {name: (what, "") for name, what in problems.items()}
    expected |= {name: ("", what) for name, what in notes.items()}
    table = table_of(tmp_path, list(expected) * 5, boxes=[(0, 0, 60, 40)] * 5 * len(expected))
    scans = [scan_photos(table, boxes, num_workers) for boxes, num_workers in ((False, 0), (True, 0), (True, 2))]
    assert scans[0]["path"].tolist() == table.rows["path"].tolist()
    pd.testing.assert_frame_equal(scans[1], scans[2])
    assert scans[1]["problem"].equals(scans[0]["problem"])  # each box is inside the upright photo
    with pytest.raises(InputError, match=r"photos has no boxes"):
        scan_photos(table_of(tmp_path, ["good.jpg"]), boxes=True, num_workers=0)
    scan = scans[0][: len(expected)].set_index("path")
    found = {path: (row["problem"], row["note"]) for path, row in scan.iterrows()}
    assert found["film.gif"][1].endswith("animated")  # and a palette, with some versions of Pillow
    assert found | {"film.gif": ("", "animated")} == expected
    assert (scan["detail"] != "").equals(scan["problem"] != "")
    for path in ("good.jpg", "cut.jpg"):
        assert scan.loc[path, "bytes"] == (tmp_path / path).stat().st_size
        assert scan.loc[path, "digest"] == hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()
    assert tuple(scan.loc["grey.jpg", ["width", "height", "mode", "format"]]) == (60, 40, "L", "JPEG")
    assert tuple(scan.loc["turned.jpg", ["width", "height"]]) == (60, 40)  # upright
    assert tuple(scan.loc["gone.jpg", ["bytes", "width", "mode", "digest"]]) == (0, 0, "", "")
    for path, (problem, _) in expected.items():  # training can decode exactly the photos without a problem
        [out] = empty_images(1, 32)
        with pytest.raises(BadImage) if problem else contextlib.nullcontext():
            decode_into(read_file(tmp_path / path), Preprocessing(32, (0, 0, 0), (1, 1, 1)), out)


def test_ctrl_c_ends_the_scan_and_its_threads(tmp_path, monkeypatch):
    count, inspect = itertools.count(), health.inspect_photo

    def interrupted(*photo):
        if next(count) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return inspect(*photo)

    monkeypatch.setattr(health, "inspect_photo", interrupted)
    photo().save(tmp_path / "photo.jpg")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            scan_photos(table_of(tmp_path, ["photo.jpg"] * 50_000, [0] * 50_000), False, 2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert next(count) < 50_000 and not any("_work" in thread.name for thread in threading.enumerate())


def test_the_scan_imports_no_torch():
    code = "import sys, carvision.data.health, carvision.reports.health; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "False\n"


def test_copies_are_grouped_with_labels_and_splits(tmp_path):
    """Of equal bytes: a, b (other labels, other splits); c, d, e (alike, some values unknown); f alone; g, h empty."""
    for seed, names in enumerate(("ab", "cde", "f")):
        for name in names:
            photo(seed=seed).save(tmp_path / f"{name}.jpg")
    for name in "gh":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    split = ["train", "val", "test", "val", "val", "", "train", "test"]
    table = table_of(tmp_path, [f"{name}.jpg" for name in "acbdfegh"], [0, 3, 1, 3, 3, -1, 0, 1], split)
    table.labels["speed"] = Number("km/h")
    table.rows["speed"] = np.array([1, 200, 1, np.nan, 1, 200, 1, 1], np.float32)
    scan = scan_photos(table, boxes=False, num_workers=0)
    copies = find_copies(table, scan)
    assert copies["path"].tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]  # empty files are not copies
    assert copies["group"].tolist() == [0, 0, 1, 1, 1]
    assert copies["split"].tolist() == ["train", "test", "val", "val", ""]
    assert copies["model"].tolist() == ["car 0", "car 1", "car 3", "car 3", ""]
    assert copies["conflict"].tolist() == copies["across_splits"].tolist() == [True, True, False, False, False]
    table.rows.loc[table.rows["path"] == "d.jpg", "speed"] = 180  # numbers that differ are a conflict, too
    assert find_copies(table, scan)["conflict"].all()


def test_counts_equal_those_of_a_naive_loop_and_their_description():
    random = np.random.default_rng(0)
    codes = random.integers(-1, 30, 500)
    split = random.choice(["train", "test", ""], 500)
    counts = health.class_counts(table_of(Path(), [str(i) for i in range(500)], codes, split), "model")
    assert list(counts) == ["id", "name", "train", "test", "no split", "total"]
    for code in range(100):
        by_split = [((codes == code) & (split == value)).sum() for value in ("train", "test", "")]
        assert counts.loc[code].tolist() == [str(code), f"car {code}", *by_split, (codes == code).sum()]
    counts = pd.DataFrame({"id": ["1", "2", "3"], "name": ["a", "b", "c"], "train": [4, 0, 8], "test": [1, 1, 1]})
    train, test, total = health.describe_counts(counts.assign(total=[5, 1, 9])).to_dict("records")
    quantiles = {f"p{q}": pytest.approx(8 * q / 100) for q in (10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90)}
    numbers = {"split": "train", "classes": 2, "photos": 12, "mean": 4.0, "std": 4.0, "min": 0, "max": 8}
    assert train == {**numbers, **quantiles}
    assert [(row["split"], row["photos"], row["classes"]) for row in (test, total)] == [("test", 3, 3), ("all", 15, 3)]


def test_colours_equal_those_of_all_pixels(tmp_path):
    """The photos are too small to be scaled down while decoding."""
    photos = [photo(70, 66, seed, mode) for seed, mode in enumerate(["RGB", "RGB", "L"])]
    for i, each in enumerate(photos):
        each.save(tmp_path / f"{i}.png")
    table = table_of(tmp_path, ["0.png", "1.png", "2.png", "gone.png"], split=["train", "train", "test", "test"])
    colours = health.describe_colours(table, scan_photos(table, boxes=False, num_workers=0)).set_index("split")
    assert colours["photos"].to_dict() == {"train": 2, "test": 1, "all": 3}
    values = np.stack([np.asarray(each.convert("RGB")).reshape(-1, 3) / 255 for each in photos])
    for split, part in (("train", values[:2]), ("test", values[2:]), ("all", values)):
        found = colours.loc[split, ["red", "green", "blue", "red_std", "green_std", "blue_std"]].to_numpy(float)
        assert found == pytest.approx([*part.mean(axis=(0, 1)), *part.std(axis=1).mean(axis=0)], abs=1e-4)


def scanned(**columns) -> tuple[Table, pd.DataFrame]:
    """A table and a scan of 40 photos with these columns."""
    paths = [f"{i}.jpg" for i in range(40)]
    fixed = {"path": paths, "note": "", "red": 0.4, "green": 0.4, "blue": 0.4}
    return table_of(Path(), paths), pd.DataFrame({**fixed, **columns})


def test_more_blue_than_red_dark_photos_and_assumed_bits_are_hints_and_more_red_is_not():
    random = np.random.default_rng(0)
    red, blue = random.normal(0.45, 0.02, 40), random.normal(0.42, 0.02, 40)
    assert hints_on_values(*scanned(red=red, blue=blue)) == []
    table, scan = scanned(red=blue, blue=red)
    (hint,) = hints_on_values(table, scan)
    assert hint.startswith("the photos of train are on average more blue than red") and "BGR" in hint
    assert hints_on_values(table.select(np.arange(40) < 9), scan[:9]) == []  # too few
    notes = ["16-bit; values of 12 bits; nearly black", "values of 8 bits", "values of 12 bits"] + [""] * 37
    dark, bits = hints_on_values(*scanned(note=notes))
    assert dark.startswith("1 photos are nearly black (first: 0.jpg)")
    assert "3 grey photos" in bits and "2 values of 12 bits, 1 values of 8 bits" in bits and "first: 0.jpg" in bits
