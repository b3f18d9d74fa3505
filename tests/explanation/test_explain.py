"""carvision.explain as a command: its pictures, messages and refusals; and the overlay."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import carvision
from carvision.explain import explain
from carvision.explanation.overlay import overlay, seen_part
from tests.inference.tiny import PREPROCESSING, save_tiny, write_photos


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture
def call(capsys, caplog):
    """Return a function call(...) -> (exit status or error, standard output, messages)."""

    def call(*arguments):
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as done:
            explain([str(word) for word in arguments])
        return done.value.code, capsys.readouterr().out, caplog.messages

    return call


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_each_photo_has_a_picture_with_the_predicted_class_and_its_probability(run, tmp_path, call, figures):
    first = write_photos(tmp_path / "a", 2)
    write_photos(tmp_path / "b", 1, seed=1)
    code, out, messages = call(run, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "maps")
    assert (code, out, messages) == (0, f"explain: {tmp_path / 'maps'}\n", [])
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["000.cam.png", "000_2.cam.png", "001.cam.png"]
    for file, figure in zip(first, figures, strict=False):
        [result] = carvision.load(run).predict([file])
        best = result["model"][0]
        title, name, *rest = texts(figure)
        assert title == f"{best['name']} {100 * best['prob']:.1f} %" and name == file.name
        assert " ".join(rest).startswith(f"evidence for {title}") and "computed at 224 px" in " ".join(rest)
        assert len(figure.axes[0].images) == 2


def test_a_photo_that_cannot_be_used_is_a_line_of_its_own(run, tmp_path, call):
    good, bad = write_photos(tmp_path, 2)
    bad.write_bytes(b"no photo")
    code, out, messages = call(run, bad, good, tmp_path / "000.jpg", "--out", tmp_path / "maps")
    assert code == 1 and out and messages == [f"{bad}: not a supported image format"]
    assert len(list((tmp_path / "maps").iterdir())) == 2
    code, out, messages = call(run, bad, "--out", tmp_path / "none")
    assert code == "error: no photo of those given can be used; give others" and not out
    assert messages == [f"{bad}: not a supported image format"] and not (tmp_path / "none").exists()


def test_other_files_are_never_overwritten(run, tmp_path, call):
    photos = write_photos(tmp_path / "photos", 1)
    before = photos[0].read_bytes()
    code, _, _ = call(run, *photos, "--out", tmp_path / "photos")
    assert re.match(r"error: --out: .*photos exists already and holds something else; give a folder that is new", code)
    assert photos[0].read_bytes() == before and len(list((tmp_path / "photos").iterdir())) == 1


def test_several_classes_another_head_and_a_class_of_ones_own_choice(run, tmp_path, call, figures):
    [photo] = write_photos(tmp_path, 1)
    assert call(run, photo, "--out", tmp_path / "1", "--top", 9)[0] == 0
    assert call(run, photo, "--out", tmp_path / "2", "--head", "make", "--class", "BMW")[0] == 0
    assert call(run, photo, "--out", tmp_path / "3", "--head", "speed")[0] == 0
    assert len(figures[0].axes[0].images) == 4  # the photo, and a map of each of three classes
    [result] = carvision.load(run).predict([photo], top=2)
    prob = next(found["prob"] for found in result["make"] if found["name"] == "BMW")
    assert any(text.startswith(f"evidence for BMW {100 * prob:.1f} %") for text in texts(figures[1]))
    assert texts(figures[2])[0] == f"speed {result['speed']:.4g}"


@pytest.mark.parametrize(
    ("backbone", "size_px", "options"),
    [("test_vit", 160, {}), ("swin_tiny_patch4_window7_224", 64, {"embed_dim": 12, "depths": (1, 1, 1, 1)})],
)
def test_a_transformer_is_explained(tmp_path, call, figures, backbone, size_px, options):
    preprocessing = replace(PREPROCESSING, size_px=size_px)
    run = save_tiny(tmp_path / "run", preprocessing=preprocessing, network=(backbone, options))
    assert call(run, *write_photos(tmp_path, 2), "--out", tmp_path / "maps")[0] == 0
    assert ("computed at 224 px" in " ".join(texts(figures[0]))) == (size_px == 64)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--head", "mke"], "--head: 'mke' is not one of make, model, speed"),
        (["--class", "a44"], "--class: 'a44' is not the id or the name of one of the 3 classes of model; nearest: A4"),
        (["--class", "X5"], r"--class: 2 classes of model are named 'X5'; give an id instead \(2, 9\)"),
        (["--head", "speed", "--class", "9"], "--class: speed estimates a number and has no classes; leave it out"),
        (["--class", "9", "--top", "2"], "--class: explains one class; leave it out, or --top"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, call, words, line):
    [photo] = write_photos(tmp_path, 1)
    code, _, _ = call(run, photo, "--out", tmp_path / "maps", *words)
    assert re.fullmatch(f"error: {line}", code) and not (tmp_path / "maps").exists()


def test_boxes_of_a_list_are_used_by_a_model_of_boxes(tmp_path, call, figures):
    run = save_tiny(tmp_path / "run", crop_to_box=True)
    [photo] = write_photos(tmp_path, 1)
    (tmp_path / "list.csv").write_text(f"path,left,top,right,bottom\n{photo.name},10,0,50,20\n{photo.name},,,,\n")
    code, _, _ = call(run, "--list", tmp_path / "list.csv", "--root", tmp_path, "--out", tmp_path / "maps")
    assert code == 0
    boxed, whole = (figure.axes[0] for figure in figures)
    assert boxed.images[1].get_array().shape[:2] == (210, 420) and whole.images[1].get_array().shape[:2] == (336, 420)
    assert any("outlined" in text.get_text() for text in boxed.texts)
    assert not any("outlined" in text.get_text() for text in whole.texts)


def test_names_of_photos_and_classes_come_from_anywhere(tmp_path, call):
    names = ["<img onerror=alert(1)>", "日本 $x$ مرحبا 😀", "n" * 200]
    labels = {"model": {"ids": ["1", "2", "9"], "names": names, "parent": None, "parent_codes": []}}
    labels["make"] = {"ids": ["3", "7"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []}
    labels["speed"] = {"unit": "km/h", "mean": 180.0, "std": 20.0}
    run = save_tiny(tmp_path / "run", labels=labels)
    [photo] = write_photos(tmp_path, 1)
    strange = photo.rename(tmp_path / f"{'a' * 100}<b> 日本.jpg")
    code, _, _ = call(run, strange, "--head", "model", "--top", "3", "--out", tmp_path / "maps")
    [picture] = (tmp_path / "maps").iterdir()
    assert code == 0 and re.fullmatch(r"[\w.-]+\.cam\.png", picture.name)


def test_the_overlay_grows_lighter_with_the_value_and_keeps_the_size():
    grey = Image.new("RGB", (90, 60), (128, 128, 128))
    values = np.linspace(0, 1, 9, dtype=np.float32)[None].repeat(7, axis=0)
    drawn = overlay(grey, values)
    assert drawn.size == (90, 60) and drawn.mode == "RGB"
    lightness = np.asarray(drawn.convert("L"), int)[30]
    line = np.flatnonzero(np.isin(lightness, (0, 255)))
    assert lightness[line].tolist() == [0, 255] and abs(line.mean() - 45) < 5  # at half of the maximum
    assert (np.diff(np.delete(lightness, line)) >= -1).all() and lightness[-1] > lightness[0] + 120


def test_the_seen_part_is_upright_and_inside_the_box_or_square(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (400, 200)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert seen_part(image, PREPROCESSING).size == (200, 400)
        assert seen_part(image, PREPROCESSING, [0, 100, 200, 250]).size == (200, 150)
        crop = type(PREPROCESSING)(32, PREPROCESSING.mean, PREPROCESSING.std, resize="crop")
        assert seen_part(image, crop).size == (200, 200)
