"""Runs on packed photos equal runs on the files they were packed from, to the bit."""

import json
from dataclasses import replace

import pytest

from carvision.data.packs.write import pack
from carvision.data.readers.compcars import read_compcars
from tests.data.packs.server import serving
from tests.data.packs.small import form
from tests.small_runs import train
from tests.training.run.test_killed_runs import assert_same_run


@pytest.fixture(scope="module")
def packed(demo_photos, tmp_path_factory):
    """The folder of the demo data as a pack of some ten shards."""
    folder = tmp_path_factory.mktemp("packed") / "demo"
    table = replace(read_compcars(demo_photos, known=None), name="demo", heads=("make", "model"))
    pack(table, form(), 0.1, folder, 0)
    return folder


def of_pack(root) -> list[str]:
    return ["data=packed", f"data.root={root}", "data.crop_to_box=true"]


HEADS = [f"+model/head@model.heads.{name}=linear" for name in ("make", "model", "speed")]


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
