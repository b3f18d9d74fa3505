"""Which photos are evaluated: overrides in training's grammar, and the run's own split."""

import pandas as pd
import pytest

from carvision.errors import InputError
from carvision.evaluation.select import compose_data, notes_on_seen_photos, read_photos, select_split
from tests.data.layouts import write_class_folders

OWN = {"name": "folder", "root": "somewhere", "batch_size": 7, "crop_to_box": False, "split": {"kind": "stratified"}}
ABOUT = {"config": {"data": OWN}}


def about(**own) -> dict:
    return {"config": {"data": {**OWN, **own}}}


def test_without_overrides_the_data_are_the_runs():
    chosen = compose_data(ABOUT, [])
    assert (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (True, True, False)
    data = chosen.data
    assert (data["root"], data["batch_size"], data["split"]["kind"]) == ("somewhere", 7, "stratified")
    assert data["split"]["fractions"] == [0.675, 0.225, 0.1]  # a key that the run's file did not have


def test_overrides_change_keys_and_choose_groups_as_in_training():
    chosen = compose_data(ABOUT, ["data.root=else/where", "data.split.seed=3", "data.classes=[oak,'a b']"])
    assert (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (False, False, True)
    data = chosen.data
    assert (data["root"], data["split"]["seed"], data["classes"]) == ("else/where", 3, ["oak", "a b"])
    chosen = compose_data(ABOUT, ["data=manifest", "data.root=r", "data.file=f.csv", "data.parents={model:make}"])
    data = chosen.data
    assert not chosen.is_run_data
    assert (data["name"], data["parents"], data["batch_size"]) == ("manifest", {"model": "make"}, 64)


def test_paths_are_taken_as_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for typed in ("it's (1)", "a,b", "lr=0.1", "Blüten"):
        assert compose_data(ABOUT, [f"data.root={typed}"]).data["root"] == typed
    data = compose_data(ABOUT, ["data=manifest", "data.root=~/a#b", "data.file=~/[new].csv"]).data
    assert (data["root"], data["file"]) == ("/home/me/a#b", "/home/me/[new].csv")


def test_only_some_keys_leave_the_photos_as_in_training():
    for override in ("data.crop_to_box=true", "data.classes=[oak]", "data.allow_missing=true"):
        chosen = compose_data(ABOUT, [override])
        assert (chosen.is_run_data, chosen.as_in_training) == (True, False)
    assert compose_data(ABOUT, ["data.root=r", "data.batch_size=3", "data.on_bad_image=skip"]).as_in_training


def test_a_network_of_boxes_reads_boxes_of_other_data_too():
    others = ["data=folder", "data.root=r"]
    assert compose_data(about(crop_to_box=True), others).data["crop_to_box"]
    assert not compose_data(about(crop_to_box=True), [*others, "data.crop_to_box=false"]).data["crop_to_box"]
    assert not compose_data(ABOUT, others).data["crop_to_box"]


def test_environment_variables_in_a_model_json_are_not_resolved(monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    with pytest.raises(InputError, match="changed by hand") as refused:
        compose_data(about(root="${oc.env:SECRET}"), [])
    assert "leaked" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=3", "optimizer.lr: this command takes data=<choice>"),
        ("data.rot=x", "data.rot: there is no such key; nearest: data.root"),
        ("data.image_px=64", "data.image_px: belongs to the trained weights"),
        ("data=foldr", "data: 'foldr' is not one of"),
        ("data.batch_size=0", "data.batch_size: 0 is not a whole number from 1"),
        ("data.batch_size=auto", "data.batch_size: auto is for training; give a number"),
        ("data=compcars", "data.root: must be given"),
        ("data.batch_size=1,2", "one value for a key"),
        ("~data.root", "one value for a key"),
        ("data.parents.model=make", "data.parents.model"),
        ("data.split.kind=offical", "data.split.kind"),
        ("data.classes=[it's]", "quote it within the word: \"data.classes=['it\\'s']\""),
        (None, "does not say what it was trained on"),
    ],
)
def test_wrong_overrides_are_one_line_each(override, message):
    with pytest.raises(InputError) as refused:
        compose_data(ABOUT if override else {}, [override] if override else [])
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def photos(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    return tmp_path / "photos"


@pytest.fixture
def paths(photos) -> list[str]:
    return sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))


def test_the_split_of_the_run_is_repeated(photos, paths, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    listed = pd.DataFrame({"path": paths[:20], "split": [*["test", "val", "train"] * 6, "test", "val"]})
    listed.to_csv(splits, index=False)
    chosen = compose_data(ABOUT, [f"data.root={photos}"])
    table, is_run_split = read_photos(chosen, ["class"], "test", splits)
    assert is_run_split and list(select_split(table, "test").rows["path"]) == paths[:20:3]
    # records of other modules may come from a thread that another test left
    assert len(select_split(table, "all")) == 24 and not [r for r in caplog.records if "evaluation" in r.name]
    pd.concat([listed, pd.DataFrame({"path": ["gone.jpg"], "split": ["val"]})]).to_csv(splits, index=False)
    _, is_run_split = read_photos(chosen, ["class"], "test", splits)
    assert is_run_split is False and "1 of the 21 photos" in caplog.text and "gone.jpg" in caplog.text


def test_other_photos_are_split_anew_or_taken_whole(photos, paths, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nquite/another.jpg,test\n")
    table, is_run_split = read_photos(compose_data(ABOUT, [f"data.root={photos}"]), ["class"], "test", splits)
    assert is_run_split is None and 0 < len(select_split(table, "test")) < 24 and "split anew" in caplog.text
    others = compose_data(ABOUT, ["data=folder", f"data.root={photos}"])
    table, is_run_split = read_photos(others, ["class"], "all", splits)
    assert is_run_split is None and len(select_split(table, "all")) == 24
    with pytest.raises(InputError, match=r"has no test photos \(none in any split\); choose another, or --split all"):
        select_split(table, "test")
    listed = pd.DataFrame({"path": paths, "class": [path.split("/")[0] for path in paths], "split": "test"})
    listed.to_csv(tmp_path / "table.csv", index=False)  # of test photos alone
    words = ["data=manifest", f"data.root={photos}", f"data.file={tmp_path / 'table.csv'}"]
    table, _ = read_photos(compose_data(ABOUT, words), ["class"], "test", tmp_path / "none.csv")
    assert len(select_split(table, "test")) == 24


def test_an_unknown_fold_is_not_guessed(photos, tmp_path):
    none = tmp_path / "none.csv"
    every = compose_data(about(root=str(photos), split={"kind": "kfold", "fold": "all"}), [])
    with pytest.raises(InputError, match=r"data\.split\.fold: all, and without the run's splits\.csv"):
        read_photos(every, ["class"], "test", none)
    one = compose_data(about(root=str(photos), split={"kind": "kfold", "fold": 1}), [])
    table, is_run_split = read_photos(one, ["class"], "test", none)
    assert is_run_split and 0 < len(select_split(table, "test")) < 24


def test_photos_that_a_run_has_seen_are_reported(photos, tmp_path):
    table, _ = read_photos(compose_data(ABOUT, ["data=folder", f"data.root={photos}"]), ["class"], "all", photos)
    files = [tmp_path / name / "splits.csv" for name in ("a", "b", "c", "without")]
    for file, split in zip(files, ("test", "train", "val"), strict=False):
        file.parent.mkdir()
        pd.DataFrame({"path": table.rows["path"][:10], "split": split}).to_csv(file, index=False)
    ours, theirs = notes_on_seen_photos(table, "test", files)
    assert ours.startswith("b was trained on 10 of these 24 photos, and its weights were chosen by 0")
    assert theirs.startswith("c was trained on 0 of these 24 photos, and its weights were chosen by 10")
    assert len(notes_on_seen_photos(table, "val", files)) == 1  # validation photos chose the weights anyway
