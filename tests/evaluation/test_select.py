"""Which photos are evaluated: overrides in training's grammar, and the run's own split."""

import pandas as pd
import pytest

from carvision.errors import InputError
from carvision.evaluation.select import compose_data, notes_on_seen_photos, read_photos, select_split
from tests.data.layouts import write_class_folders

OWN = {"name": "folder", "root": "somewhere", "batch_size": 7, "crop_to_box": False, "split": {"kind": "stratified"}}
ABOUT = {"config": {"data": OWN}}


def refusal(overrides: list[str], about: dict = ABOUT) -> str:
    with pytest.raises(InputError) as error:
        compose_data(about, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_overrides_the_data_are_the_runs():
    chosen = compose_data(ABOUT, [])
    data = chosen.data
    assert (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (True, True, False)
    assert (data["root"], data["batch_size"], data["split"]["kind"]) == ("somewhere", 7, "stratified")
    assert data["split"]["fractions"] == [0.675, 0.225, 0.1]  # a key that the run's file did not have


def test_keys_change_and_groups_are_chosen_as_in_training():
    chosen = compose_data(ABOUT, ["data.root=else/where", "data.split.seed=3", "data.classes=[oak,'a b']"])
    data = chosen.data
    assert (
        (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (False, False, True)
        and data["root"] == "else/where"
        and data["split"]["seed"] == 3
        and data["classes"] == ["oak", "a b"]
    )
    chosen = compose_data(ABOUT, ["data=manifest", "data.root=r", "data.file=f.csv", "data.parents={model:make}"])
    data = chosen.data
    assert (
        not chosen.is_run_data
        and data["name"] == "manifest"
        and data["parents"] == {"model": "make"}
        and data["batch_size"] == 64
    )


def test_paths_are_taken_as_they_are_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for typed in ("it's (1)", "a,b", "lr=0.1", "Blüten"):
        assert compose_data(ABOUT, [f"data.root={typed}"]).data["root"] == typed
    words = ["data=manifest", "data.root=~/a#b", "data.file=~/[new].csv"]
    data = compose_data(ABOUT, words).data
    assert (data["root"], data["file"]) == ("/home/me/a#b", "/home/me/[new].csv")


def test_what_reads_photos_otherwise_is_not_plain():
    for override in ("data.crop_to_box=true", "data.classes=[oak]", "data.allow_missing=true"):
        chosen = compose_data(ABOUT, [override])
        assert (chosen.is_run_data, chosen.as_in_training) == (True, False)
    assert compose_data(ABOUT, ["data.root=r", "data.batch_size=3", "data.on_bad_image=skip"]).as_in_training


def test_a_strangers_file_is_not_resolved(monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    about = {"config": {"data": {**OWN, "root": "${oc.env:SECRET}"}}}
    assert "leaked" not in refusal([], about) and "changed by hand" in refusal([], about)


def test_a_network_of_boxes_looks_at_boxes_of_other_data_too():
    of_boxes = {"config": {"data": {**OWN, "crop_to_box": True}}}
    assert compose_data(of_boxes, ["data=folder", "data.root=r"]).data["crop_to_box"]
    assert not compose_data(of_boxes, ["data=folder", "data.root=r", "data.crop_to_box=false"]).data["crop_to_box"]
    assert not compose_data(ABOUT, ["data=folder", "data.root=r"]).data["crop_to_box"]


def test_wrong_overrides_are_one_line_each():
    assert "optimizer.lr: this command takes data=<choice>" in refusal(["optimizer.lr=3"])
    assert "data.rot: there is no such key; nearest: data.root" in refusal(["data.rot=x"])
    assert "data.image_px: belongs to the trained weights" in refusal(["data.image_px=64"])
    assert "data: 'foldr' is not one of" in refusal(["data=foldr"])
    assert "data.batch_size: 0 is not a whole number from 1" in refusal(["data.batch_size=0"])
    assert "data.batch_size: auto is for training; give a number" in refusal(["data.batch_size=auto"])
    assert "data.root: must be given" in refusal(["data=compcars"])
    assert "one value for a key" in refusal(["data.batch_size=1,2"])
    assert "one value for a key" in refusal(["~data.root"])
    assert "data.parents.model" in refusal(["data.parents.model=make"])
    assert "does not say what it was trained on" in refusal([], {})
    assert "data.split.kind" in refusal(["data.split.kind=offical"])
    assert "quote it within the word: \"data.classes=['it\\'s']\"" in refusal(["data.classes=[it's]"])


@pytest.fixture
def photos(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    return tmp_path / "photos"


def test_the_split_of_the_run_is_repeated(photos, tmp_path, caplog):
    paths = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))
    splits = tmp_path / "splits.csv"
    listed = pd.DataFrame({"path": paths[:20], "split": [*["test", "val", "train"] * 6, "test", "val"]})
    listed.to_csv(splits, index=False)
    chosen = compose_data(ABOUT, [f"data.root={photos}"])
    table, of_run = read_photos(chosen, ["class"], "test", splits)
    assert of_run and list(select_split(table, "test").rows["path"]) == paths[:20:3]
    # those of other modules may come from a thread that another test left, which still fetches from its server
    assert len(select_split(table, "all")) == 24 and not [r for r in caplog.records if "evaluation" in r.name]
    pd.concat([listed, pd.DataFrame({"path": ["gone.jpg"], "split": ["val"]})]).to_csv(splits, index=False)
    _, of_run = read_photos(chosen, ["class"], "test", splits)
    assert of_run is False and "1 of the 21 photos" in caplog.text and "gone.jpg" in caplog.text


def test_other_photos_are_split_anew_or_taken_whole(photos, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nquite/another.jpg,test\n")
    table, of_run = read_photos(compose_data(ABOUT, [f"data.root={photos}"]), ["class"], "test", splits)
    assert of_run is None and 0 < len(select_split(table, "test")) < 24 and "split anew" in caplog.text
    others = compose_data(ABOUT, ["data=folder", f"data.root={photos}"])
    table, of_run = read_photos(others, ["class"], "all", splits)
    assert of_run is None and len(select_split(table, "all")) == 24
    with pytest.raises(InputError, match=r"has no test photos \(none in any split\); choose another, or --split all"):
        select_split(table, "test")


def test_a_table_of_test_photos_alone_is_enough(photos, tmp_path):
    paths = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))
    table = pd.DataFrame({"path": paths, "class": [path.split("/")[0] for path in paths], "split": "test"})
    table.to_csv(tmp_path / "table.csv", index=False)
    chosen = compose_data(ABOUT, ["data=manifest", f"data.root={photos}", f"data.file={tmp_path / 'table.csv'}"])
    table, _ = read_photos(chosen, ["class"], "test", tmp_path / "none.csv")
    assert len(select_split(table, "test")) == 24


def test_a_fold_that_is_not_known_is_not_guessed(photos, tmp_path):
    """Of all folds but the first, the first one's test photos were trained on."""
    of_folds = {"config": {"data": {**OWN, "root": str(photos), "split": {"kind": "kfold", "fold": "all"}}}}
    with pytest.raises(InputError, match=r"data\.split\.fold: all, and without the run's splits\.csv"):
        read_photos(compose_data(of_folds, []), ["class"], "test", tmp_path / "none.csv")
    of_folds["config"]["data"]["split"]["fold"] = 1
    table, of_run = read_photos(compose_data(of_folds, []), ["class"], "test", tmp_path / "none.csv")
    assert of_run and 0 < len(select_split(table, "test")) < 24


def test_photos_that_a_run_has_seen_are_told(photos, tmp_path):
    table, _ = read_photos(compose_data(ABOUT, ["data=folder", f"data.root={photos}"]), ["class"], "all", photos)
    files = []
    for name, split in (("a", "test"), ("b", "train"), ("c", "val")):
        files.append(tmp_path / name / "splits.csv")
        files[-1].parent.mkdir()
        pd.DataFrame({"path": table.rows["path"][:10], "split": split}).to_csv(files[-1], index=False)
    files.append(tmp_path / "without" / "splits.csv")
    ours, theirs = notes_on_seen_photos(table, "test", files)
    assert ours.startswith("b was trained on 10 of these 24 photos, and its weights were chosen by 0")
    assert theirs.startswith("c was trained on 0 of these 24 photos, and its weights were chosen by 10")
    assert len(notes_on_seen_photos(table, "val", files)) == 1  # of validation photos that is known
