"""Which photos are evaluated: overrides in training's grammar, and the run's own split."""

import pandas as pd
import pytest

from carvision.errors import InputError
from carvision.evaluation.photos import compose_data, photos_of, read_photos
from tests.data.layouts import write_class_folders

OWN = {"name": "folder", "root": "somewhere", "batch_size": 7, "crop_to_box": False, "split": {"kind": "stratified"}}
ABOUT = {"config": {"data": OWN}}


def refusal(overrides: list[str], about: dict = ABOUT) -> str:
    with pytest.raises(InputError) as error:
        compose_data(about, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_overrides_the_data_are_the_runs():
    data, own = compose_data(ABOUT, [])
    assert own and (data["root"], data["batch_size"], data["split"]["kind"]) == ("somewhere", 7, "stratified")
    assert data["split"]["fractions"] == [0.675, 0.225, 0.1]  # a key that the run's file did not have


def test_keys_change_and_groups_are_chosen_as_in_training():
    data, own = compose_data(ABOUT, ["data.root=else/where", "data.split.seed=3", "data.classes=[oak,'a b']"])
    assert own and data["root"] == "else/where" and data["split"]["seed"] == 3 and data["classes"] == ["oak", "a b"]
    data, own = compose_data(ABOUT, ["data=manifest", "data.root=r", "data.file=f.csv", "data.parents={model:make}"])
    assert not own and data["name"] == "manifest" and data["parents"] == {"model": "make"} and data["batch_size"] == 64


def test_a_network_of_boxes_looks_at_boxes_of_other_data_too():
    of_boxes = {"config": {"data": {**OWN, "crop_to_box": True}}}
    assert compose_data(of_boxes, ["data=folder", "data.root=r"])[0]["crop_to_box"]
    assert not compose_data(of_boxes, ["data=folder", "data.root=r", "data.crop_to_box=false"])[0]["crop_to_box"]
    assert not compose_data(ABOUT, ["data=folder", "data.root=r"])[0]["crop_to_box"]


def test_wrong_overrides_are_one_line_each():
    assert "optimizer.lr: evaluate takes data=<choice>" in refusal(["optimizer.lr=3"])
    assert "data.rot: there is no such key; nearest: data.root" in refusal(["data.rot=x"])
    assert "data.image_px: belongs to the trained weights" in refusal(["data.image_px=64"])
    assert "data: 'foldr' is not one of" in refusal(["data=foldr"])
    assert "data.batch_size: 0 is not a whole number from 1" in refusal(["data.batch_size=0"])
    assert "data.root: must be given" in refusal(["data=compcars"])
    assert "one value for a key" in refusal(["data.root=a,b"])
    assert "one value for a key" in refusal(["~data.root"])
    assert "data.parents.model" in refusal(["data.parents.model=make"])
    assert "does not say what it was trained on" in refusal([], {})
    assert "data.split.kind" in refusal(["data.split.kind=offical"])
    assert "data.root=" in refusal(["data.root='"])  # of Hydra's parser


@pytest.fixture
def photos(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    return tmp_path / "photos"


def test_the_split_of_the_run_is_repeated(photos, tmp_path, caplog):
    paths = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))
    splits = tmp_path / "splits.csv"
    listed = pd.DataFrame({"path": [*paths[:20], "gone.jpg"], "split": ["test", "val", "train"] * 7})
    listed.to_csv(splits, index=False)
    data, _ = compose_data(ABOUT, [f"data.root={photos}"])
    table, repeated = read_photos(data, ["class"], "test", splits)
    assert repeated and list(photos_of(table, "test").rows["path"]) == paths[:20:3]
    assert len(photos_of(table, "all")) == 24
    assert "1 of the 21 photos" in caplog.text and "gone.jpg" in caplog.text


def test_other_photos_are_split_anew_or_taken_whole(photos, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nquite/another.jpg,test\n")
    data, _ = compose_data(ABOUT, [f"data.root={photos}"])
    table, repeated = read_photos(data, ["class"], "test", splits)
    assert not repeated and 0 < len(photos_of(table, "test")) < 24 and "split anew" in caplog.text
    without = {**data, "split": {**data["split"], "kind": "official"}}
    table, _ = read_photos(without, ["class"], "all", None)
    assert len(photos_of(table, "all")) == 24
    with pytest.raises(InputError, match="has no test photos \\(none in any split\\); choose another, or --split all"):
        photos_of(table, "test")
