"""Runs on packed photos equal runs on the files they were packed from, to the bit."""

import json

import pytest

from carvision.data.readers.compcars import read_compcars
from carvision.evaluation.run import run as evaluate
from tests.data.packs.server import serving
from tests.data.packs.small import form
from tests.small_runs import train
from tests.training.run.test_killed_runs import assert_same_run

HEADS = [f"+model/head@model.heads.{name}=linear" for name in ("make", "model", "speed")]


@pytest.fixture(scope="module")
def packed(demo_photos, tmp_path_factory):
    """The folder of the demo data as a pack of some ten shards."""
    from dataclasses import replace

    from carvision.data.packs.write import pack

    folder = tmp_path_factory.mktemp("packed") / "demo"
    table = replace(read_compcars(demo_photos, known=None), name="demo", heads=("make", "model"))
    pack(table, form(), 0.1, folder, 0)
    return folder


def of_pack(root, *overrides: str) -> list[str]:
    return ["data=packed", f"data.root={root}", "data.crop_to_box=true", *overrides]


def test_a_run_on_packed_photos_equals_that_on_files(packed, demo_run, tmp_path):
    train(tmp_path / "run", *of_pack(packed), *HEADS, "optimizer.lr=0.003", "data.num_workers=2")
    assert_same_run(tmp_path / "run", demo_run)
    assert (tmp_path / "run" / "splits.csv").read_bytes() == (demo_run / "splits.csv").read_bytes()


def test_a_run_begun_on_a_url_resumes_inside_an_epoch_on_a_folder(packed, tmp_path):
    window = ["data.shuffle_shards=2", "trainer.max_epochs=1"]
    train(tmp_path / "whole", *of_pack(packed), *window)
    with serving(packed) as server:
        remote = [*of_pack(server.url), *window, f"data.cache={tmp_path / 'cache'}", "data.num_workers=2"]
        train(tmp_path / "run", *remote, "run.max_minutes=0.0001")
    assert not (tmp_path / "run" / "history.csv").exists()
    train(tmp_path / "run", *of_pack(packed), *window)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert list(json.loads((tmp_path / "run" / "model.json").read_text())["labels"]) == ["make", "model"]


def test_a_run_is_evaluated_on_packed_photos(packed, demo_run, tmp_path):
    options = (tmp_path / "out", [], "none", "id", {}, 10, "none", "cpu")
    evaluate(demo_run, ["data=packed", f"data.root={packed}", "data.num_workers=0"], "test", *options)
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    trained = json.loads((demo_run / "metrics.json").read_text())["test"]
    assert again["model/top1"] == pytest.approx(trained["model/top1"])
    assert again["loss"] == pytest.approx(trained["loss"], abs=1e-4)
    assert (tmp_path / "out" / "confused_model.png").is_file()
