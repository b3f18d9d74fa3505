"""The public metadata of an export, its atomic files, and its agreement with the run."""

import pytest
import torch

from carvision.errors import InputError
from carvision.exports.shared import atomic_export, largest_difference, public_about, require_agreement
from tests.exports.saved import CONFIG


def test_paths_are_reduced_to_their_last_component_and_the_rest_stays():
    public = public_about({"config": CONFIG, "decoding": "joint"})
    assert public["config"]["data"] == {"name": "manifest", "root": None, "file": "table.csv"}
    assert public["config"]["run"]["dir"] == "mine" and public["config"]["model"]["weights"] == "first"
    assert public["config"]["more"] == [{"anything": "else"}] and public["decoding"] == "joint"
    assert CONFIG["data"]["root"] == "/home/owner/secret/cars"  # untouched
    config = {"model": {"weights": "pretrained", "mean": [0.5], "backbone": "a/b"}}
    assert public_about({"config": config})["config"] == config


def test_files_are_complete_or_absent(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with pytest.raises(ZeroDivisionError), atomic_export(target) as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    assert not list((tmp_path / "new").iterdir())
    with atomic_export(target) as partial:
        partial.write_text("all")
        assert not target.exists()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["file.txt"] and target.read_text() == "all"
    with pytest.raises(InputError, match=r"file.txt exists already; give another path with --out"):
        atomic_export(target).__enter__()
    with pytest.raises(InputError, match="can't be written"):
        atomic_export(target / "inside").__enter__()


def test_differences_are_relative_to_the_scale_of_each_output():
    ours = {"a": torch.tensor([100.0, 0.0]), "b": torch.tensor([1.0, 2.0])}
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, {**ours, "a": torch.tensor([100.0, 1.0])}) == pytest.approx(0.01)
    assert largest_difference(ours, {**ours, "b": torch.tensor([1.0, 3.0])}) == pytest.approx(0.5)
    for wrong in (torch.tensor([1.0, float("nan")]), torch.ones(3)):
        with pytest.raises(InputError):
            require_agreement(largest_difference(ours, {**ours, "b": wrong}), 1e9, "it")
