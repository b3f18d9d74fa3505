"""The Space's folder runs with its own copy of carvision and what its requirements bring, and answers as the model."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from unittest import mock

import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import carvision
from carvision.exports import space_app
from carvision.exports.space import GRADIO, REQUIREMENTS, export_space
from tests.conftest import ROOT
from tests.exports.conftest import save_model
from tests.inference.tiny import rewrite, write_photos

POINTS = [{"accuracy": 0.9, "threshold": 0.0, "coverage": 1.0}, {"accuracy": 0.95, "threshold": 1.0, "coverage": 0.1}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("space") / "run")
    rewrite(folder, operating_points={"make": POINTS})
    return folder


@pytest.fixture(scope="module")
def space(run):
    summary = export_space(carvision.load(run), run, run / "space")
    assert summary.startswith(f"space: app.py for gradio {GRADIO}")
    return run / "space"


def installed_with(requirements: list[str]) -> set[str]:
    """The names of the installed packages that these bring."""
    waiting, found = [Requirement(line) for line in requirements], set()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += [Requirement(line) for line in requires(name) or []]
    return found


def test_the_app_answers_as_the_model_with_its_own_carvision_and_its_requirements_alone(run, space, tmp_path):
    photo = str(write_photos(tmp_path, 1)[0])
    brought = installed_with(REQUIREMENTS)
    others = [
        top for top, names in packages_distributions().items()
        if top != "carvision" and not {canonicalize_name(name) for name in names} & brought
    ]  # fmt: skip
    assert {"hydra", "pandas", "pytorch_lightning", "optuna"} < {*others}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({others}))
import app, carvision, json
model = carvision.load(".")
print(json.dumps([carvision.__file__, app.answer(model, {photo!r}), app.answer(model, {photo!r}, 5, 5, 40, 30)]))
"""
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    file, *answers = json.loads(done.stdout)
    assert file == str(space / "carvision" / "__init__.py")
    model = carvision.load(run)
    for (words, make, name, data), box in zip(answers, (None, (5, 5, 40, 30)), strict=True):
        [found] = model.predict([photo], [box], top=space_app.TOP)
        assert data == {head: found[head] for head in ("make", "model.name", "speed")}
        assert make == {one["name"]: one["prob"] for one in found["make"]} and sum(name.values()) == pytest.approx(1)
        assert set(name) == {"A4", "X5 (2)", "X5 (9)"}  # two classes of one name
        of_make, of_model, of_speed = words.splitlines()
        first = found["make"][0]
        assert of_make == (
            f"make: {first['name']}, {100 * first['prob']:.0f} % (not sure: above 100 %, 95 % of the answers are right)"
        )
        assert "not sure" not in of_model and of_speed == f"speed: {found['speed']:.4g} km/h"
    assert answers[0] != answers[1]


def test_what_can_not_be_used_is_an_error_in_one_line(run, tmp_path):
    model = carvision.load(run)
    (tmp_path / "junk.jpg").write_text("no photo")
    for photo, box, message in (
        (None, (), "no photo: choose one"),
        (str(tmp_path / "junk.jpg"), (), "the photo can't be used: "),
        (str(write_photos(tmp_path, 1)[0]), (1, 2, None, None), "all of left, top, right, bottom"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
            space_app.answer(model, photo, *box)


@pytest.mark.parametrize("on_boxes", [False, True])
def test_the_page_has_an_input_and_an_output_for_each_value(run, on_boxes, tmp_path, monkeypatch):
    """gradio, whose limits the lock's versions do not fit, is replaced where it is absent."""
    gradio = mock.MagicMock(Error=type("Error", (Exception,), {"__init__": lambda self, message, **_: None}))
    if importlib.util.find_spec("gradio"):
        import gradio

        monkeypatch.setattr(gradio, "Interface", mock.Mock())
    else:
        monkeypatch.setitem(sys.modules, "gradio", gradio)
    model = carvision.load(run)
    model.crop_to_box = on_boxes
    space_app.page(model, "cars")
    function, inputs, outputs = gradio.Interface.call_args.args
    photo, *box = [str(write_photos(tmp_path, 1)[0]), 5.0, 5.0, 40.0, 30.0] if on_boxes else write_photos(tmp_path, 1)
    assert len(inputs) == 1 + len(box)
    given = function(str(photo), *box)
    assert given == space_app.answer(model, str(photo), *box) and len(given) == len(outputs) == 4
    with pytest.raises(gradio.Error):
        function(None)


def test_the_hub_reads_the_readme_and_no_path_of_the_owner_is_in_the_folder(run, space):
    card = ModelCard.load(space / "README.md").data.to_dict()
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", GRADIO, "app.py")
    assert len(card["short_description"]) <= 60 and card["colorFrom"] in ("blue", "green")  # as the hub requires
    assert ModelCard.load(space / "MODEL.md").data.model_name == "cars-test_resnet"
    assert (space / "carvision" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert not [*space.rglob("__pycache__")]
    files = [file for file in space.iterdir() if file.is_file()]
    assert len(files) == 6 and not [file for file in files if re.search(b"secret|owner/", file.read_bytes())]


def test_the_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*REQUIREMENTS} < {*project["dependencies"]}
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if "==" in line]
    assert not any(line.startswith("gradio==") for line in lines)  # else the stand-in above would not be needed
