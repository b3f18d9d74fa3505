"""The scan names what is wrong with each photo, finds copies and conflicts, and counts classes like a naive loop."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvision.data.decode import decode_into, empty_images
from carvision.data.health import (
    class_counts,
    describe_colours,
    describe_counts,
    find_copies,
    hints_on_values,
    scan_photos,
)
from carvision.data.images import BadImage, Preprocessing, read_file
from carvision.data.inspection import inspect_photo
from carvision.data.readers.stanford_cars import read_stanford_cars
from carvision.data.table import BOX, Classes, Number, Table
from carvision.errors import InputError
from tests.data.layouts import real_data


def photo(width=60, height=40, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def table_of(root, paths, codes=None, split="train", boxes=None, **columns):
    codes = np.arange(len(paths)) if codes is None else np.asarray(codes)
    classes = Classes(tuple(map(str, range(100))), tuple(f"car {i}" for i in range(100)))
    rows = pd.DataFrame({"path": paths, "model": codes.astype(np.int32), "split": split, **columns})
    if boxes is not None:
        rows[BOX] = np.array(boxes, np.float32)
    return Table("photos", root, rows, {"model": classes}, "model")


@pytest.fixture
def odd_photos(tmp_path):
    """Write a folder of photos; return it and what the scan must report: {name: (problem, note)}."""
    photo().save(tmp_path / "good.jpg")
    photo().save(tmp_path / "whole.png")
    for suffix, whole in ((".jpg", "good.jpg"), (".png", "whole.png")):
        data = (tmp_path / whole).read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "folder.jpg").mkdir()
    photo().save(tmp_path / "bomb.gif")
    bomb = bytearray((tmp_path / "bomb.gif").read_bytes())
    bomb[6:10] = (50_000).to_bytes(2, "little") * 2  # width and height of the header
    (tmp_path / "bomb.gif").write_bytes(bomb)
    for mode, name in {"L": "grey.jpg", "CMYK": "print.jpg", "P": "palette.png", "RGBA": "glass.png"}.items():
        photo(mode=mode).save(tmp_path / name)
    for value, name in {40_000: "deep.png", 3_000: "camera.tif"}.items():
        Image.fromarray(np.full((40, 60), value, np.uint16)).save(tmp_path / name)
    Image.new("RGB", (60, 40), (15, 9, 0)).save(tmp_path / "night.png")
    photo().save(tmp_path / "film.gif", save_all=True, append_images=[photo(seed=1)])
    photo().save(tmp_path / "wrong.png", "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(40, 60).save(tmp_path / "turned.jpg", exif=exif)
    photo().save(tmp_path / "vague.webp", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    problems = {
        "cut.jpg": "truncated", "cut.png": "truncated", "empty.jpg": "empty", "text.jpg": "not a photo",
        "folder.jpg": "unreadable", "gone.jpg": "missing", "bomb.gif": "decompression bomb",
    }  # fmt: skip
    notes = {
        "good.jpg": "", "grey.jpg": "greyscale", "print.jpg": "CMYK", "deep.png": "greyscale; 16-bit",
        "camera.tif": "greyscale; 16-bit; values of 12 bits", "night.png": "nearly black", "palette.png": "palette",
        "glass.png": "transparency", "film.gif": "animated", "wrong.png": "JPEG named .png",
        "turned.jpg": "turned by EXIF", "vague.webp": "odd metadata",
    }  # fmt: skip
    expected = {name: (what, "") for name, what in problems.items()}
    return tmp_path, expected | {name: ("", what) for name, what in notes.items()}


def test_the_scan_reports_problems_and_notes(odd_photos):
    root, expected = odd_photos
    scan = scan_photos(table_of(root, list(expected)), boxes=False, num_workers=0).set_index("path")
    found = {path: (row["problem"], row["note"]) for path, row in scan.iterrows()}
    assert found["film.gif"][1].endswith("animated")  # and a palette, with some versions of Pillow
    assert found | {"film.gif": ("", "animated")} == expected
    assert (scan["detail"] != "").equals(scan["problem"] != "")
    for path in ("good.jpg", "cut.jpg"):
        assert scan.loc[path, "bytes"] == (root / path).stat().st_size
        assert scan.loc[path, "digest"] == hashlib.sha256((root / path).read_bytes()).hexdigest()
    assert tuple(scan.loc["grey.jpg", ["width", "height", "mode", "format"]]) == (60, 40, "L", "JPEG")
    assert tuple(scan.loc["turned.jpg", ["width", "height"]]) == (60, 40)  # upright
    assert tuple(scan.loc["gone.jpg", ["bytes", "width", "mode", "digest"]]) == (0, 0, "", "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
def test_training_can_decode_exactly_the_photos_without_a_problem(odd_photos):
    root, expected = odd_photos
    for path, (problem, _) in expected.items():
        [out] = empty_images(1, 32)
        with pytest.raises(BadImage) if problem else contextlib.nullcontext():
            decode_into(read_file(root / path), Preprocessing(32, (0, 0, 0), (1, 1, 1)), out)


def test_boxes_are_checked_against_the_upright_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    photo(40, 60).save(tmp_path / "photo.jpg", exif=exif)
    for box, problem, note in (
        ((5, 5, 50, 35), "", ""),
        ((0, 0, 60, 40), "", ""),
        ((0, 0, 40, 60), "box outside the photo", ""),
        ((-20, 5, 50, 35), "box outside the photo", ""),
        ((50, 5, 20, 35), "box without area", ""),
        ((np.nan,) * 4, "", "no box"),
    ):
        facts = inspect_photo(tmp_path / "photo.jpg", np.array(box, np.float32))
        assert (facts.problem, facts.note) == (problem, "; ".join(filter(None, ("turned by EXIF", note))))
    with pytest.raises(InputError, match=r"photos has no boxes"):
        scan_photos(table_of(tmp_path, ["photo.jpg"]), boxes=True, num_workers=0)


def test_a_path_never_decides_the_kind_of_a_problem(tmp_path):
    (missing := tmp_path / "truncated bomb" / "missing.jpg").mkdir(parents=True)
    assert inspect_photo(missing, None).problem == "unreadable"


def test_scan_in_processes_equals_scan_in_one(odd_photos):
    root, expected = odd_photos
    table = table_of(root, list(expected) * 5, boxes=[(0, 0, 60, 40)] * 5 * len(expected))  # three chunks
    alone = scan_photos(table, boxes=True, num_workers=0)
    assert alone["path"].tolist() == table.rows["path"].tolist()
    pd.testing.assert_frame_equal(scan_photos(table, boxes=True, num_workers=2), alone)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see the workers start")
@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.15, 2.0])  # while workers still import, and while they read
def test_an_interrupt_ends_the_scan_and_its_workers_print_nothing(tmp_path, after_s):
    """The signal goes to all processes of the group at once, as Ctrl-C's does."""
    photo(300, 200).save(tmp_path / "photo.jpg")
    script = tmp_path / "scan.py"
    script.write_text(
        "if __name__ == '__main__':\n"  # all of it: processes that are spawned import this file
        "    import sys\n    from pathlib import Path\n    import pandas as pd\n"
        "    from carvision.data.health import scan_photos\n    from carvision.data.table import Classes, Table\n"
        "    rows = pd.DataFrame({'path': ['photo.jpg'] * 500_000, 'model': 0, 'split': 'train'})\n"
        "    table = Table('photos', Path(sys.argv[1]), rows, {'model': Classes(('1',), ('car',))}, 'model')\n"
        "    print('ready', flush=True)\n"
        "    try:\n        scan_photos(table, False, 2)\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
    )
    child = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": os.curdir},
        # A shell that runs the tests in the background has them ignore the signal, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "ready\n"
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while len(children.read_text(encoding="utf-8").split()) < 3:  # two workers and multiprocessing's own process
            time.sleep(0.01)
        time.sleep(after_s)
        os.killpg(child.pid, signal.SIGINT)
        out, errors = child.communicate(timeout=60)  # returns when no process holds the pipes: no worker is left
    finally:
        child.kill()
    assert out == "interrupted\n"
    assert "Traceback" not in errors


def test_workers_import_neither_torch_nor_pandas_and_the_scan_no_torch():
    code = "import sys, carvision.data.inspection, carvision.data.packs.shard; "
    code += "print([m for m in ('torch', 'pandas', 'rich') if m in sys.modules]); "
    code += "import carvision.data.health, carvision.reports.health; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root) == "[]\nFalse\n"


@pytest.fixture
def copied(tmp_path):
    """Photos of equal bytes: a, b (other labels, other splits); c, d, e (alike, some values unknown); f alone."""
    for seed, names in enumerate(("ab", "cde", "f")):
        for name in names:
            photo(seed=seed).save(tmp_path / f"{name}.jpg")
    for name in "gh":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    paths = [f"{name}.jpg" for name in "acbdfegh"]
    table = table_of(
        tmp_path, paths, [0, 3, 1, 3, 3, -1, 0, 1], ["train", "val", "test", "val", "val", "", "train", "test"],
        speed=np.array([1, 200, 1, np.nan, 1, 200, 1, 1], np.float32),
    )  # fmt: skip
    return replace(table, labels={**table.labels, "speed": Number("km/h")})


def test_copies_are_grouped_with_labels_and_splits(copied):
    scan = scan_photos(copied, boxes=False, num_workers=0)
    copies = find_copies(copied, scan)
    assert copies["path"].tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]  # empty files are not copies
    assert copies["group"].tolist() == [0, 0, 1, 1, 1]
    assert copies["split"].tolist() == ["train", "test", "val", "val", ""]
    assert copies["model"].tolist() == ["car 0", "car 1", "car 3", "car 3", ""]
    assert copies["conflict"].tolist() == copies["across_splits"].tolist() == [True, True, False, False, False]
    # Numbers that differ are a conflict, too
    rows = copied.rows.assign(speed=copied.rows["speed"].mask(copied.rows["path"] == "d.jpg", 180))
    assert find_copies(replace(copied, rows=rows), scan)["conflict"].all()


def test_counts_equal_those_of_a_naive_loop():
    random = np.random.default_rng(0)
    codes = random.integers(-1, 30, 500)
    split = random.choice(["train", "test", ""], 500)
    counts = class_counts(table_of(Path(), [str(i) for i in range(500)], codes, split), "model")
    assert list(counts) == ["id", "name", "train", "test", "no split", "total"]
    for code in range(100):
        by_split = [((codes == code) & (split == value)).sum() for value in ("train", "test", "")]
        assert counts.loc[code].tolist() == [str(code), f"car {code}", *by_split, (codes == code).sum()]


def test_description_of_counts():
    counts = pd.DataFrame({"id": ["1", "2", "3"], "name": ["a", "b", "c"], "train": [4, 0, 8], "total": [4, 0, 8]})
    (row,) = describe_counts(counts).to_dict("records")
    assert row == {
        "split": "train", "classes": 2, "photos": 12, "mean": 4.0, "std": 4.0, "min": 0, "max": 8,
        **{f"p{q}": pytest.approx(8 * q / 100) for q in (10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90)},
    }  # fmt: skip
    both = describe_counts(counts.assign(test=[1, 1, 1], total=[5, 1, 9]))
    assert both["split"].tolist() == ["train", "test", "all"]
    assert both["photos"].tolist() == [12, 3, 15]
    assert both["classes"].tolist() == [2, 3, 3]


def test_colours_equal_those_of_all_pixels(tmp_path):
    """The photos are too small to be scaled down while decoding."""
    photos = [photo(70, 66, seed, mode) for seed, mode in enumerate(["RGB", "RGB", "L"])]
    for i, each in enumerate(photos):
        each.save(tmp_path / f"{i}.png")
    table = table_of(tmp_path, ["0.png", "1.png", "2.png", "gone.png"])
    table.rows["split"] = ["train", "train", "test", "test"]
    colours = describe_colours(table, scan_photos(table, boxes=False, num_workers=0)).set_index("split")
    assert colours["photos"].to_dict() == {"train": 2, "test": 1, "all": 3}
    values = np.stack([np.asarray(each.convert("RGB")).reshape(-1, 3) / 255 for each in photos])
    for split, part in (("train", values[:2]), ("test", values[2:]), ("all", values)):
        found = colours.loc[split, ["red", "green", "blue", "red_std", "green_std", "blue_std"]].to_numpy(float)
        assert found == pytest.approx([*part.mean(axis=(0, 1)), *part.std(axis=1).mean(axis=0)], abs=1e-4)
    nothing = table.select(table.rows["path"] == "gone.png")
    assert describe_colours(nothing, scan_photos(nothing, boxes=False, num_workers=0)).empty


def scanned(**columns) -> tuple[Table, pd.DataFrame]:
    """A table and a scan of 40 photos with these columns."""
    paths = [f"{i}.jpg" for i in range(40)]
    fixed = {"path": paths, "note": "", "red": 0.4, "green": 0.4, "blue": 0.4}
    return table_of(Path(), paths, split=columns.pop("split", "train")), pd.DataFrame({**fixed, **columns})


def test_more_blue_than_red_is_a_hint_and_more_red_is_not():
    random = np.random.default_rng(0)
    red, blue = random.normal(0.45, 0.02, 40), random.normal(0.42, 0.02, 40)
    assert hints_on_values(*scanned(red=red, blue=blue)) == []
    (hint,) = hints_on_values(*scanned(red=blue, blue=red))
    assert hint.startswith("the photos of train are on average more blue than red") and "BGR" in hint
    table, scan = scanned(red=blue, blue=red)
    assert hints_on_values(table.select(np.arange(40) < 9), scan[:9]) == []  # too few
    small = ["train"] * 26 + ["val"] * 7 + ["test"] * 7
    (hint,) = hints_on_values(*scanned(red=blue, blue=blue + 0.026 + 0.05 * (-1) ** np.arange(40), split=small))
    assert hint.startswith("the photos are on average more blue than red")  # each split alone has too few
    noisy = random.normal(0, 0.2, 40)
    assert hints_on_values(*scanned(red=0.42 + noisy, blue=0.42 - noisy + noisy.mean() + 0.02)) == []
    assert hints_on_values(*scanned()) == []  # grey photos


def test_dark_photos_and_assumed_bits_are_counted_and_named():
    notes = ["16-bit; values of 12 bits; nearly black", "values of 8 bits", "values of 12 bits"] + [""] * 37
    dark, bits = hints_on_values(*scanned(note=notes))
    assert dark.startswith("1 photos are nearly black (first: 0.jpg)")
    assert "3 grey photos" in bits and "2 values of 12 bits, 1 values of 8 bits" in bits and "first: 0.jpg" in bits


def test_real_photos_have_hints_only_where_red_and_blue_are_exchanged():
    root = real_data("oxford102").parent
    files = [f"oxford102/jpg/image_{i:05d}.jpg" for i in range(1, 8189, 100)]
    files += [f"imagenette/val/{path.parent.name}/{path.name}" for path in sorted(root.glob("imagenette/val/*/*"))[::5]]
    table = table_of(root, files, split=["train"] * 82 + ["val"] * (len(files) - 82), codes=[0] * len(files))
    scan = scan_photos(table, boxes=False, num_workers=0)
    assert hints_on_values(table, scan) == []
    exchanged = scan.rename(columns={"red": "blue", "blue": "red"})
    assert [hint.split(" are ")[0] for hint in hints_on_values(table, exchanged)] == [
        "the photos of train", "the photos of val"
    ]  # fmt: skip


def test_stanford_photos_have_equal_pairs_with_different_labels():
    table = read_stanford_cars(real_data("stanford_cars"), allow_missing=True)
    scan = scan_photos(table, boxes=False, num_workers=0)
    assert (scan["problem"] == "").all()
    copies = find_copies(table, scan)
    assert copies["conflict"].all() and copies["group"].nunique() >= 2
    assert {"cars_train/02641.jpg", "cars_train/07765.jpg"} <= set(copies["path"])
