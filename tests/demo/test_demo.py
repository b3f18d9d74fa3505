"""The demo data: in CompCars' layout, the same each time, complete or not at all."""

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from carvision.demo import write
from carvision.demo.cars import MODELS
from carvision.demo.photo import VIEWPOINTS
from carvision.errors import InputError

NUM = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write.write_demo(tmp_path_factory.mktemp("cache") / "demo", NUM)


def lines(folder: Path, name: str) -> list[str]:
    return (folder / "data/train_test_split" / name).read_text().splitlines()


def label(folder: Path, path: str) -> list[str]:
    return (folder / "data/label" / path).with_suffix(".txt").read_text().splitlines()


def test_every_photo_is_listed_once_and_has_a_label_with_a_box_inside(folder):
    images, labels = folder / "data/image", folder / "data/label"
    found = {path.relative_to(images).as_posix() for path in images.rglob("*.jpg")}
    train, test = lines(folder, "classification/train.txt"), lines(folder, "classification/test.txt")
    assert found == {*train, *test} and len(found) == len(train) + len(test) == NUM * len(MODELS)
    assert found == {path.relative_to(labels).with_suffix(".jpg").as_posix() for path in labels.rglob("*.txt")}
    assert all(re.fullmatch(r"\d+/\d+/(\d{4}|unknown)/[0-9a-f]{14}\.jpg", path) for path in found)
    assert len({path.rsplit("/")[-1] for path in found}) == len(found)
    viewpoints = Counter()
    for path in found:
        viewpoint, num_boxes, box = label(folder, path)
        left, top, right, bottom = map(int, box.split())
        with Image.open(folder / "data/image" / path) as image:
            assert 1 <= left < right <= image.width and 1 <= top < bottom <= image.height
            assert (right - left) * (bottom - top) > 0.15 * image.width * image.height
        assert num_boxes == "1"
        viewpoints[int(viewpoint)] += 1
    assert viewpoints == dict.fromkeys(VIEWPOINTS, NUM * len(MODELS) // len(VIEWPOINTS))
    years = [{path.rsplit("/", 1)[0] for path in listed} for listed in (train, test)]
    assert not years[0] & years[1]  # no year folder is in both splits
    for model in MODELS:
        assert [sum(f"/{model.id}/" in year for year in side) for side in years] == [7, 3]


def test_easy_pairs_share_the_viewpoint_and_hard_ones_the_make(folder):
    test = set(lines(folder, "classification/test.txt"))
    assert lines(folder, "verification/verification_train.txt") == lines(folder, "classification/train.txt")
    for level in write.PAIR_LEVELS:
        pairs = [line.split() for line in lines(folder, f"verification/verification_pairs_{level}.txt")]
        assert len({frozenset(pair[:2]) for pair in pairs}) == len(pairs) >= 24
        for first, second, same in pairs:
            assert {first, second} <= test and first != second
            (make, model), (other_make, other_model) = first.split("/")[:2], second.split("/")[:2]
            assert same == str(int(model == other_model))
            assert level != "hard" or make == other_make
            assert level != "easy" or label(folder, first)[0] == label(folder, second)[0]
        assert Counter(pair[2] for pair in pairs) == dict.fromkeys("01", len(pairs) / 2)


def test_the_seed_decides_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MODELS", MODELS[:2])
    first, again, other = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (write.write_demo(tmp_path / f"{i}", NUM, seed) for i, seed in enumerate((0, 0, 1)))
    )
    assert first == again
    assert {path for path in first if path.suffix == ".jpg"}.isdisjoint(other)


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "MODELS", MODELS[:1])
    monkeypatch.setattr(write, "_write_misc", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write.write_demo(tmp_path / "cache" / "demo", NUM)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_complete_folder_is_not_drawn_again_and_any_other_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_write_all", lambda *args: pytest.fail("drawn again"))
    assert write.write_demo(folder, NUM) == folder
    with pytest.raises(InputError, match="holds something other"):
        write.write_demo(folder, NUM, seed=1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*CARVISION_CACHE"):
        write.write_demo(tmp_path / "file" / "demo", NUM)
