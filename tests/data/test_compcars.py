import logging

import numpy as np
import pytest

from carvision.data import compcars
from carvision.data.build import build_split, read_table
from carvision.data.compcars import A_FEW, KNOWN, read_compcars
from carvision.data.table import BOX, UNKNOWN, Number
from carvision.errors import InputError
from tests.data import layouts


def by_name(table):
    """Rows by the 14 digits of the photo."""
    return table.rows.set_index(table.rows["path"].str[-18:-4].str[-2:])


@pytest.mark.parametrize("nesting", ["", "data", "data/data"])
def test_every_nesting_of_the_root_is_read(tmp_path, nesting):
    base = layouts.write_compcars(tmp_path, nesting)
    table = read_compcars(tmp_path, known=None)
    assert len(table) == 8
    assert table.root == base
    assert all((table.root / path).is_file() for path in table.rows["path"])
    assert table.rows["path"].tolist() == sorted(table.rows["path"])


def test_classes_are_known_by_id_and_shown_by_name(tmp_path):
    layouts.write_compcars(tmp_path)
    labels = read_compcars(tmp_path, known=None).labels
    assert labels["make"].ids == ("1", "2", "12")
    assert labels["make"].names == ("Audi", "Benz", "Audi")
    assert labels["model"].ids == ("3", "4", "10", "11")
    assert labels["model"].names == ("A4", "4", "A6L", "GLK")  # model 4 has an empty cell
    assert labels["model"].parent == "make"
    assert labels["model"].parent_codes == (0, 2, 0, 1)


def test_official_lists_give_the_split_and_the_rest_has_none(tmp_path):
    layouts.write_compcars(tmp_path)
    rows = by_name(read_compcars(tmp_path, known=None))
    assert rows["split"].to_dict() == {
        "01": "train", "02": "test", "03": "train", "04": "test", "05": "", "06": "train", "07": "", "08": "",
    }  # fmt: skip


def test_listed_photos_alone_without_walking(tmp_path, monkeypatch):
    base = layouts.write_compcars(tmp_path)
    (base / "image/12/4/2014/3ac218c0c6c308.jpg").unlink()  # in no list
    monkeypatch.setattr(compcars, "find_photos", lambda *_: pytest.fail("image/ was walked"))
    table = read_compcars(tmp_path, photos="listed", known=None)
    assert len(table) == 5
    assert table.rows["split"].value_counts().to_dict() == {"train": 3, "test": 2}
    assert table.labels["model"].ids == ("3", "10", "11")


def test_the_photos_of_the_verification_lists_without_walking(tmp_path, monkeypatch):
    base = layouts.write_compcars(tmp_path)
    monkeypatch.setattr(compcars, "find_photos", lambda *_: pytest.fail("image/ was walked"))
    table = read_compcars(tmp_path, photos="verification", known=None)
    rows = by_name(table)
    assert rows["split"].to_dict() == {"06": "train", "03": "test", "01": "test", "02": "test"}
    assert rows["viewpoint"].to_dict() == {"06": 1, "03": UNKNOWN, "01": 0, "02": 2}  # rear, unknown, front, front-side
    assert table.labels["model"].ids == ("3", "10", "11") and table.labels["model"].parent_codes == (0, 0, 1)
    assert all(file.is_file() for file in compcars.pair_lists(table.root).values())
    assert list(compcars.pair_lists(base)) == ["easy", "medium", "hard"]


def test_part_1_trains_and_what_only_the_verification_list_has_validates(tmp_path):
    base = layouts.write_compcars(tmp_path)
    pairs = base / "train_test_split/verification"
    own, tested = "12/4/2014/3ac218c0c6c308.jpg", "1/3/2012/3ac218c0c6c30a.jpg"
    for path in (own, tested):
        layouts.write_photo(base / "image" / path)
    (pairs / "verification_train.txt").write_text("\n".join([layouts.COMPCARS_TRAIN[0], own, tested]) + "\n")
    (pairs / "verification_pairs_hard.txt").write_text(f"{tested} {layouts.COMPCARS_TEST[0]} 0\n")
    split = {
        "kind": "official",
        "file": None,
        "val_fraction": 0.2,
        "seed": 0,
        "keep_groups": True,
        "val_as_test": False,
    }
    data = {"name": "compcars", "root": str(tmp_path), "allow_missing": True, "split": split | {"test_as_train": True}}
    divided = build_split(read_table(data, annotations=False), data["split"]).rows.set_index("path")["split"]
    lists = [*layouts.COMPCARS_TRAIN, *layouts.COMPCARS_TEST]
    assert divided.to_dict() == {f"image/{path}": "train" for path in lists} | {f"image/{own}": "val"}
    data["split"] = split  # without it the lists are what they were
    assert set(read_table(data, annotations=False).rows["split"]) == {"train", "test"}


def test_photos_of_the_verification_lists_on_both_sides_or_absent(tmp_path, caplog):
    base = layouts.write_compcars(tmp_path)
    lists = base / "train_test_split/verification"
    read_compcars(tmp_path, photos="verification", known=None)
    assert "2 of the 3 photos of" in caplog.text and "in the lists of pairs, too" in caplog.text
    (base / "image/2/11/unknown/3ac218c0c6c306.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 listed photos are not there"):
        read_compcars(tmp_path, photos="verification", known=None)
    assert len(read_compcars(tmp_path, photos="verification")) == 3  # so few the real lists may name
    (lists / "verification_pairs_hard.txt").write_text("1/3/2012/a.jpg 1/3/2012/b.jpg\n")
    with pytest.raises(InputError, match=r"hard.txt, line 1: '1/3/2012/a.jpg 1/3/2012/b.jpg' is not make.* label"):
        read_compcars(tmp_path, photos="verification", known=None)
    (lists / "verification_pairs_hard.txt").unlink()
    with pytest.raises(InputError, match=r"verification_pairs_hard.txt does not exist.*comp_cars"):
        read_compcars(tmp_path, photos="verification", known=None)


def test_attributes_follow_from_the_model_and_zero_is_unknown(tmp_path):
    layouts.write_compcars(tmp_path)
    table = read_compcars(tmp_path, known=None)
    rows, labels = by_name(table), table.labels
    assert labels["speed"] == Number("km/h")
    assert labels["displacement"] == Number("l")
    assert rows["speed"].dtype == np.float32
    np.testing.assert_equal(rows.loc[["01", "03", "06", "08"], "speed"].to_numpy(), [235, 180, np.nan, np.nan])
    np.testing.assert_allclose(rows.loc[["01", "06", "08"], "displacement"], [1.8, 1.6, np.nan], rtol=1e-6)
    assert labels["doors"].ids == ("2", "4", "5")
    assert rows.loc[["01", "03", "06", "08"], "doors"].tolist() == [2, 1, 0, UNKNOWN]
    assert labels["seats"].ids == ("5",)
    assert rows.loc["06", "seats"] == UNKNOWN
    assert labels["type"].ids == ("3", "4", "12")
    assert labels["type"].names == ("sedan", "hatchback", "convertible")
    assert rows.loc[["01", "08"], "type"].tolist() == [1, UNKNOWN]


def test_viewpoint_and_box_from_the_label_files(tmp_path):
    layouts.write_compcars(tmp_path)
    table = read_compcars(tmp_path, known=None)
    rows, viewpoint = by_name(table), table.labels["viewpoint"]
    assert viewpoint.ids == ("1", "2", "3", "4", "5")
    assert viewpoint.names == ("front", "rear", "side", "front-side", "rear-side")
    assert rows.loc[["01", "02", "03", "04"], "viewpoint"].tolist() == [0, 3, UNKNOWN, 4]
    assert rows.loc["01", BOX].tolist() == [0, 1, 16, 12]  # on disk 1 2 16 12
    assert rows.loc["04", BOX].tolist() == [8, 8, 3, 2]  # x1 > x2 is kept: decoding and the check decide
    assert rows[BOX].dtypes.eq(np.float32).all()


def test_without_annotations_no_label_file_is_read(tmp_path, monkeypatch):
    layouts.write_compcars(tmp_path)
    monkeypatch.setattr(compcars, "_read_small_files", lambda _: pytest.fail("a label file was read"))
    table = read_compcars(tmp_path, known=None, annotations=False)
    assert not table.has_boxes
    assert "viewpoint" not in table.labels
    assert "doors" in table.labels


@pytest.mark.parametrize(
    "content", ["", "1\n1\n", "1\n1\n1 2 3\n", "one\n1\n1 2 3 4\n", "1\n1\n1 2 x 4\n", "7\n1\n1 2 3 4\n", None]
)
def test_an_unreadable_label_file_is_counted_and_named(tmp_path, caplog, content):
    base = layouts.write_compcars(tmp_path)
    file = base / "label/1/3/2012/3ac218c0c6c301.txt"
    file.unlink() if content is None else file.write_text(content)
    table = read_compcars(tmp_path, known=None)
    assert "1 of 8 label files" in caplog.text
    assert str(file) in caplog.text
    rows = by_name(table)
    assert rows.loc["01", "viewpoint"] == UNKNOWN
    assert rows.loc["01", BOX].isna().all()
    assert rows.loc["02", BOX].tolist() == [2, 3, 10, 9]


def test_photos_of_an_unknown_year_stand_each_by_itself(tmp_path):
    layouts.write_compcars(tmp_path)
    rows = by_name(read_compcars(tmp_path, known=None))
    assert rows["group"].to_dict() == {
        "01": "1/3/2012", "02": "1/3/2012", "03": "1/10/2012", "04": "1/10/2013", "05": "1/10/2013",
        "06": "", "07": "", "08": "12/4/2014",
    }  # fmt: skip


def test_absent_misc_files_are_named_and_done_without(tmp_path, caplog):
    base = layouts.write_compcars(tmp_path)
    for file in (base / "misc").iterdir():
        file.unlink()
    (base / "train_test_split/classification/test.txt").unlink()
    labels = read_compcars(tmp_path, known=None).labels
    assert set(labels) == {"make", "model", "viewpoint"}
    assert labels["make"].names == ("1", "2", "12")
    for name in ("attributes.txt", "make_model_name.mat", "test.txt"):
        assert name in caplog.text


def test_absent_type_names_leave_the_ids(tmp_path, caplog):
    base = layouts.write_compcars(tmp_path)
    (base / "misc/car_type.mat").unlink()
    assert read_compcars(tmp_path, known=None).labels["type"].names == ("3", "4", "12")
    assert "car_type.mat" in caplog.text


def test_an_absent_label_folder_is_done_without(tmp_path, caplog):
    base = layouts.write_compcars(tmp_path)
    (base / "label").rename(base / "label_of_old")
    table = read_compcars(tmp_path, known=None)
    assert not table.has_boxes
    assert "viewpoint" not in table.labels
    assert f"{base / 'label'} does not exist" in caplog.text


@pytest.mark.parametrize("photos", ["all", "listed"])
def test_a_listed_photo_that_is_absent(tmp_path, caplog, photos):
    base = layouts.write_compcars(tmp_path)
    (base / "image/2/11/unknown/3ac218c0c6c306.jpg").unlink()
    with pytest.raises(InputError, match=r"1 (of 5 listed )?photos .*not there .*3ac218c0c6c306.jpg.*allow_missing"):
        read_compcars(tmp_path, photos=photos, known=None)
    table = read_compcars(tmp_path, photos=photos, known=None, allow_missing=True)
    assert "3ac218c0c6c306.jpg" in caplog.text
    assert len(table) == (7 if photos == "all" else 4)
    assert len(table.labels["model"]) == (4 if photos == "all" else 2)  # of GLK no other photo is listed


@pytest.mark.parametrize("photos", ["all", "listed"])
def test_the_real_lists_may_name_a_few_absent_photos(tmp_path, monkeypatch, photos):
    base = layouts.write_compcars(tmp_path)
    known = {"all": {"photos": 8, "make": 3, "model": 4}, "listed": {"train": 4, "test": 2, "make": 2, "model": 3}}
    with (base / "train_test_split/classification/train.txt").open("a") as stream:
        stream.write("1/3/2012/00000000000000.jpg\n")
    table = read_compcars(tmp_path, photos=photos, known=known)
    assert len(table) == known[photos].get("photos", 5)
    monkeypatch.setattr(compcars, "A_FEW", 0)
    with pytest.raises(InputError, match=r"00000000000000.jpg"):
        read_compcars(tmp_path, photos=photos, known=known)


def test_known_counts_are_asserted(tmp_path, caplog):
    layouts.write_compcars(tmp_path)
    with pytest.raises(InputError, match="8 photos instead of 136,726, 3 make classes instead of 163"):
        read_compcars(tmp_path)
    with pytest.raises(InputError, match="3 train photos instead of 16,016, 2 test photos instead of 14,939"):
        read_compcars(tmp_path, photos="listed")
    assert len(read_compcars(tmp_path, allow_missing=True)) == 8
    assert "8 photos instead of 136,726" in caplog.text
    assert KNOWN["listed"]["train"] + KNOWN["listed"]["test"] == 30_955  # as the paper's table says
    assert A_FEW < 30_955 / 431  # a lost model folder is noticed


@pytest.mark.parametrize("difference", [-A_FEW, -1, 1, A_FEW])
def test_a_copy_with_a_few_photos_more_or_fewer_is_taken_with_a_line(tmp_path, caplog, difference):
    """As one of 136,732 in place of 136,726."""
    layouts.write_compcars(tmp_path)
    known = {"all": {"photos": 8 - difference, "make": 3, "model": 4}}
    assert len(read_compcars(tmp_path, known=known)) == 8
    assert f"8 photos instead of {8 - difference}" in caplog.text and "taken as it is" in caplog.text


@pytest.mark.parametrize("wrong", [{"photos": 9 + A_FEW}, {"photos": 9, "make": 4}, {"model": 5}])
def test_many_photos_or_a_class_more_or_fewer_are_an_error(tmp_path, wrong):
    layouts.write_compcars(tmp_path)
    with pytest.raises(InputError, match=r"instead of .*data\.allow_missing=true"):
        read_compcars(tmp_path, known={"all": {"photos": 8, "make": 3, "model": 4, **wrong}})


def test_a_photo_on_both_lists_is_an_error(tmp_path):
    base = layouts.write_compcars(tmp_path)
    with (base / "train_test_split/classification/test.txt").open("a") as stream:
        stream.write(layouts.COMPCARS_TRAIN[0] + "\r\n")
    with pytest.raises(InputError, match=r"test.txt, line 3: 1/10/2012/3ac218c0c6c303.jpg is listed before"):
        read_compcars(tmp_path, known=None)


def test_a_line_of_a_list_that_is_no_path(tmp_path):
    base = layouts.write_compcars(tmp_path)
    (base / "train_test_split/classification/train.txt").write_text("1/3/2012/3ac218c0c6c301.jpg\n\nAudi A4\n")
    with pytest.raises(InputError, match=r"train.txt, line 3: 'Audi A4' is not make/model/year/photo.jpg"):
        read_compcars(tmp_path, known=None)


def test_photos_at_another_depth_are_counted(tmp_path, caplog):
    base = layouts.write_compcars(tmp_path)
    layouts.write_photo(base / "image/1/3/stray.jpg")
    (base / "image/1/3/2012/Thumbs.db").write_bytes(b"")
    assert len(read_compcars(tmp_path, known=None)) == 8
    assert "1 photos are not at image/make/model/year/" in caplog.text
    assert "image/1/3/stray.jpg" in caplog.text
    assert "Thumbs.db" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("attributes.txt", b"header\n1 2 3\n", "six numbers"),
        ("attributes.txt", b"header\n1 2 3 4 5 six\n", "six"),
        ("car_type.mat", b"MATLAB 5.0 MAT-file, cut short", "cannot be read as a Matlab file"),
        ("make_model_name.mat", b"", "cannot be read as a Matlab file"),
    ],
)
def test_damaged_misc_files_are_named(tmp_path, file, content, message):
    base = layouts.write_compcars(tmp_path)
    (base / "misc" / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_compcars(tmp_path, known=None)
    assert str(base / "misc" / file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_root_says_where_to_get_the_data(tmp_path):
    for root in (None, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"^data.root: (null|.*/absent) does not exist.*mmlab.ie.cuhk.edu.hk"):
            read_compcars(root)
    with pytest.raises(InputError, match=r"has a folder image.*comp_cars"):
        read_compcars(tmp_path)
    (tmp_path / "image").mkdir()
    with pytest.raises(InputError, match=r"holds no photos.*comp_cars"):
        read_compcars(tmp_path)
    with pytest.raises(InputError, match="'some' is not one of all, listed, verification"):
        read_compcars(tmp_path, photos="some")


def test_a_complete_copy_is_read_without_a_warning(tmp_path, caplog):
    layouts.write_compcars(tmp_path)
    caplog.set_level(logging.WARNING)
    read_compcars(tmp_path, known=None)
    assert caplog.text == ""
