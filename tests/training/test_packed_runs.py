"""Runs on packed photos equal runs on the files they were packed from, to the bit."""

from dataclasses import replace

import pytest

from carvision.data.packs.write import pack
from carvision.data.readers.compcars import read_compcars
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
