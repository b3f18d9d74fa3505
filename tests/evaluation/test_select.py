"""Which photos are evaluated, and which of their classes are the model's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import UNKNOWN, Classes, Number, Table
from carvision.errors import InputError
from carvision.evaluation.select import compose_data, match_classes, notes_on_seen_photos, read_photos, select_split
from tests.data.layouts import write_class_folders

OWN = {"name": "folder", "root": "somewhere", "batch_size": 7, "crop_to_box": False, "split": {"kind": "stratified"}}
ABOUT = {"config": {"data": OWN}}
PATHS = sorted(f"{name}/{i}.jpg" for name in ("ash", "oak") for i in range(12))


def about(**own) -> dict:
    return {"config": {"data": {**OWN, **own}}}


def test_overrides_change_keys_and_choose_groups_as_in_training():
    chosen = compose_data(ABOUT, [])
    assert (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (True, True, False)
    data = chosen.data
    assert (data["root"], data["batch_size"], data["split"]["kind"]) == ("somewhere", 7, "stratified")
    assert data["split"]["fractions"] == [0.675, 0.225, 0.1]  # a key that the run's file did not have
    chosen = compose_data(ABOUT, ["data.root=else/where", "data.split.seed=3", "data.classes=[oak,'a b']"])
    assert (chosen.is_run_data, chosen.as_in_training, chosen.root_given) == (False, False, True)
    data = chosen.data
    assert (data["root"], data["split"]["seed"], data["classes"]) == ("else/where", 3, ["oak", "a b"])
    chosen = compose_data(ABOUT, ["data=manifest", "data.root=r", "data.file=f.csv", "data.parents={model:make}"])
    assert not chosen.is_run_data and chosen.data["parents"] == {"model": "make"} and chosen.data["batch_size"] == 64
    chosen = compose_data(ABOUT, ["data.crop_to_box=true"])
    assert (chosen.is_run_data, chosen.as_in_training) == (True, False)
    assert compose_data(ABOUT, ["data.root=r", "data.batch_size=3", "data.on_bad_image=skip"]).as_in_training
    # A network of boxes reads those of other data too
    others = ["data=folder", "data.root=~/it's #1"]  # a path is taken as typed
    data = compose_data(about(crop_to_box=True), others).data
    assert data["crop_to_box"] and data["root"] == str(Path("~/it's #1").expanduser())
    assert not compose_data(about(crop_to_box=True), [*others, "data.crop_to_box=false"]).data["crop_to_box"]
    assert not compose_data(ABOUT, others).data["crop_to_box"]


def test_wrong_overrides_are_one_line_each_and_no_variable_of_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    with pytest.raises(InputError, match=r"^(?!.*leaked).*changed by hand"):
        compose_data(about(root="${oc.env:SECRET}"), [])
    for override, message in {
        "optimizer.lr=3": "optimizer.lr: this command takes data=<choice>",
        "data.image_px=64": "data.image_px: belongs to the trained weights",
        "data.batch_size=1,2": "one value for a key",
        "data.classes=[it's]": "quote it within the word: \"data.classes=['it\\'s']\"",
        "": "does not say what it was trained on",
    }.items():
        with pytest.raises(InputError) as refused:
            compose_data(ABOUT if override else {}, [override] if override else [])
        assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def photos(tmp_path):
    return write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})


def test_the_split_of_the_run_is_repeated(photos, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    listed = pd.DataFrame({"path": PATHS[:20], "split": [*["test", "val", "train"] * 6, "test", "val"]})
    listed.to_csv(splits, index=False)
    chosen = compose_data(ABOUT, [f"data.root={photos}"])
    table, is_run_split = read_photos(chosen, ["class"], "test", splits)
    assert is_run_split and list(select_split(table, "test").rows["path"]) == PATHS[:20:3]
    # records of other modules may come from a thread that another test left
    assert len(select_split(table, "all")) == 24 and not [r for r in caplog.records if "evaluation" in r.name]
    pd.concat([listed, pd.DataFrame({"path": ["gone.jpg"], "split": ["val"]})]).to_csv(splits, index=False)
    _, is_run_split = read_photos(chosen, ["class"], "test", splits)
    assert is_run_split is False and "1 of the 21 photos" in caplog.text and "gone.jpg" in caplog.text


def test_other_photos_are_split_anew_or_taken_whole(photos, tmp_path, caplog):
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nquite/another.jpg,test\n")
    table, is_run_split = read_photos(compose_data(ABOUT, [f"data.root={photos}"]), ["class"], "test", splits)
    assert is_run_split is None and 0 < len(select_split(table, "test")) < 24 and "split anew" in caplog.text
    others = compose_data(ABOUT, ["data=folder", f"data.root={photos}"])
    table, is_run_split = read_photos(others, ["class"], "all", splits)
    assert is_run_split is None and len(select_split(table, "all")) == 24
    with pytest.raises(InputError, match=r"has no test photos \(none in any split\); choose another, or --split all"):
        select_split(table, "test")
    listed = pd.DataFrame({"path": PATHS, "class": [path.split("/")[0] for path in PATHS], "split": "test"})
    listed.to_csv(tmp_path / "table.csv", index=False)  # of test photos alone
    words = ["data=manifest", f"data.root={photos}", f"data.file={tmp_path / 'table.csv'}"]
    table, _ = read_photos(compose_data(ABOUT, words), ["class"], "test", tmp_path / "none.csv")
    assert len(select_split(table, "test")) == 24
    # An unknown fold is not guessed
    splits = [{"kind": "kfold", "fold": fold} for fold in ("all", 1)]
    every, one = (compose_data(about(root=str(photos), split=split), []) for split in splits)
    with pytest.raises(InputError, match=r"data\.split\.fold: all, and without the run's splits\.csv"):
        read_photos(every, ["class"], "test", tmp_path / "none.csv")
    table, is_run_split = read_photos(one, ["class"], "test", tmp_path / "none.csv")
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


LABELS = {
    "make": {"ids": ["1", "2"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model": {"ids": ["10", "20", "30"], "names": ["A4", "X5", "Z4"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
MODEL = {"model": LABELS["model"]}


def table(ids: tuple, names: tuple, codes: list[int], name: str = "model", **labels) -> Table:
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(codes))], "split": "", name: np.array(codes, np.int32)})
    for other, (label, values) in labels.items():
        rows[other] = np.array(values, np.float32 if isinstance(label, Number) else np.int32)
    return Table("mine", "photos", rows, {name: Classes(ids, names), **{n: v[0] for n, v in labels.items()}}, name)


def test_classes_match_by_id_in_any_order_and_beside_others():
    speed = (Number("km/h"), [100.0, np.nan, 200.0, np.nan, 150.0])
    found = match_classes(table(("30", "77", "10"), ("Z4", "Golf", "A4"), [0, 1, 2, UNKNOWN, 1], speed=speed), LABELS)
    assert found.targets["model"].tolist() == [2, UNKNOWN, 0, UNKNOWN, UNKNOWN]
    assert found.targets["make"].tolist() == [UNKNOWN] * 5
    assert found.targets["speed"].isnan().tolist() == [False, True, False, True, False]
    assert found.judged.tolist() == [True, False, True, False, True]  # the last by its speed
    assert found.unmatched.to_dict("records") == [
        {"head": "model", "only_in": "data", "id": "77", "name": "Golf", "photos": 2},
        {"head": "model", "only_in": "model", "id": "20", "name": "X5", "photos": 0},
    ]
    text = "\n".join(found.notes)
    assert "make: the data have no such label" in text
    assert "model: 1 of the data's 3 classes are unknown to the model; their 2 photos are not judged" in text
    assert "model: 1 of the model's 3 classes are not among the data" in text


@pytest.mark.parametrize("by", ["id", "name"])
def test_both_forms_of_unicode_match_and_equal_classes_leave_no_notes(by):
    described = {"ids": ["Ros\u00e9", "x"], "names": ["Ros\u00e9", "x"], "parent": None, "parent_codes": []}
    found = match_classes(table(("x", "Rose\u0301"), ("x", "Rose\u0301"), [1, 0]), {"model": described}, by=by)
    assert found.targets["model"].tolist() == [0, 1] and found.judged.all()
    assert not found.notes and found.unmatched.empty


def test_other_names_of_the_same_ids_are_reported_names_match_in_any_case_and_labels_may_be_renamed():
    (note,) = match_classes(table(("10", "20", "30"), ("rose", "X5", "tulip"), [0, 1, 2]), MODEL).notes
    assert "2 of 3 classes that match by id have other names (first: id 10 is 'rose' in the data, 'A4'" in note
    found = match_classes(table(("0", "1"), ("z4", "a4"), [0, 1]), MODEL, by="name")
    assert found.targets["model"].tolist() == [2, 0]
    given = table(("10", "20"), ("A4", "X5"), [1, 0], name="class")  # a label of another name
    assert match_classes(given, LABELS, renamed={"model": "class"}).targets["model"].tolist() == [1, 0]
    for renamed, message in (
        ({}, "has the labels class and the model the heads make, model, speed"),
        ({"modle": "class"}, "'modle' is not a head of the model; nearest: model"),
    ):
        with pytest.raises(InputError, match=message):
            match_classes(given, LABELS, renamed=renamed)


def test_a_head_without_a_common_class_is_not_judged_and_all_without_are_an_error():
    make = (Classes(("1", "2"), ("Audi", "BMW")), [0, 1])
    found = match_classes(table(("a4", "x5"), ("A4", "X5"), [0, 1], make=make), LABELS)
    assert found.targets["make"].tolist() == [0, 1] and found.targets["model"].tolist() == [UNKNOWN, UNKNOWN]
    assert len(found.unmatched) == 5 and set(found.unmatched["head"]) == {"model"}
    alone = table(("a4", "x5"), ("A4", "X5"), [0, 1])
    with pytest.raises(InputError, match=r"no photo has a label that the model knows.*by id.*--match name"):
        match_classes(alone, LABELS)
    twice = {"model": {**LABELS["model"], "names": ["A4", "X5", "X5"]}}
    with pytest.raises(InputError, match="the name 'x5' of model stands for several classes; match by id"):
        match_classes(alone, twice, by="name")
