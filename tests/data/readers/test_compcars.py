"""CompCars: web-nature photos, surveillance photos, photos of parts. What all readers share: test_readers.py."""

import numpy as np
import pytest
import scipy.io

from carvision.data.build import build_split, build_table, read_table
from carvision.data.readers import compcars
from carvision.data.readers.compcars import read_compcars
from carvision.data.readers.compcars_other import read_compcars_parts, read_compcars_surveillance
from carvision.data.table import BOX, UNKNOWN, Number
from carvision.errors import InputError
from tests import small_runs
from tests.data import layouts

COUNTS = {"photos": 8, "make": 3, "model": 4}


@pytest.fixture
def base(tmp_path):
    return layouts.write_compcars(tmp_path)


def by_name(table):
    """Rows by the last two of a photo's 14 digits."""
    return table.rows.set_index(table.rows["path"].str[-6:-4])


def test_the_columns_of_web_nature_photos(base):
    table = read_compcars(base, known=None)
    rows, labels = by_name(table), table.labels
    assert table.rows["path"].tolist() == sorted(table.rows["path"])
    split, group = (rows[name].sort_index().tolist() for name in ("split", "group"))
    assert split == ["train", "test", "train", "test", "", "train", "", ""]
    known = ["1/3/2012", "1/3/2012", "1/10/2012", "1/10/2013", "1/10/2013"]
    assert group == [*known, "", "", "12/4/2014"]  # the year of 06 and 07 is unknown
    assert labels["make"].ids == ("1", "2", "12") and labels["make"].names == ("Audi", "Benz", "Audi")  # two classes
    # Attributes follow from the model; 0 is unknown
    assert labels["speed"] == Number("km/h") and labels["displacement"] == Number("l")
    assert rows["speed"].dtype == np.float32
    np.testing.assert_equal(rows.loc[["01", "03", "06", "08"], "speed"].to_numpy(), [235, 180, np.nan, np.nan])
    np.testing.assert_allclose(rows.loc[["01", "06", "08"], "displacement"], [1.8, 1.6, np.nan], rtol=1e-6)
    assert [labels[name].ids for name in ("doors", "seats", "type")] == [("2", "4", "5"), ("5",), ("3", "4", "12")]
    assert rows.loc[["01", "03", "06", "08"], "doors"].tolist() == [2, 1, 0, UNKNOWN]
    assert rows.loc["06", "seats"] == UNKNOWN
    assert labels["type"].names == ("sedan", "hatchback", "convertible")
    assert rows.loc[["01", "08"], "type"].tolist() == [1, UNKNOWN]
    assert labels["viewpoint"].names == ("front", "rear", "side", "front-side", "rear-side")
    assert rows.loc[["01", "02", "03", "04"], "viewpoint"].tolist() == [0, 3, UNKNOWN, 4]
    assert rows.loc["01", BOX].tolist() == [0, 1, 16, 12]  # on disk 1 2 16 12
    assert rows.loc["04", BOX].tolist() == [8, 8, 3, 2]  # x1 > x2 is kept: decoding and the check decide
    assert rows[BOX].dtypes.eq(np.float32).all()


def test_with_test_as_train_photos_only_in_the_verification_list_validate(base, tmp_path):
    pairs = base / "train_test_split/verification"
    own, tested = "12/4/2014/3ac218c0c6c308.jpg", "1/3/2012/3ac218c0c6c30a.jpg"
    for path in (own, tested):
        layouts.write_photo(base / "image" / path)
    (pairs / "verification_train.txt").write_text("\n".join([layouts.COMPCARS_TRAIN[0], own, tested]) + "\n")
    (pairs / "verification_pairs_hard.txt").write_text(f"{tested} {layouts.COMPCARS_TEST[0]} 0\n")
    options = [f"data.root={tmp_path}", "data.allow_missing=true", "data.split.test_as_train=true"]
    data = small_runs.config("data=compcars", *options)["data"]
    divided = build_split(read_table(data, annotations=False), data["split"]).rows.set_index("path")["split"]
    lists = [*layouts.COMPCARS_TRAIN, *layouts.COMPCARS_TEST]
    assert divided.to_dict() == {f"image/{path}": "train" for path in lists} | {f"image/{own}": "val"}
    data["split"]["test_as_train"] = False
    assert set(read_table(data, annotations=False).rows["split"]) == {"train", "test"}


def test_verification_lists_with_photos_on_both_sides_damaged_or_absent(base, caplog):
    hard = base / "train_test_split/verification/verification_pairs_hard.txt"
    (base / "image/2/11/unknown/3ac218c0c6c306.jpg").unlink()
    assert len(read_compcars(base, photos="verification")) == 3  # a few absent photos are tolerated
    assert "2 of the 3 photos of" in caplog.text and "also occur in the pair lists" in caplog.text
    hard.write_text("1/3/2012/a.jpg 1/3/2012/b.jpg\n")
    with pytest.raises(InputError, match=r"hard.txt, line 1: '1/3/2012/a.jpg 1/3/2012/b.jpg' is not make.* label"):
        read_compcars(base, photos="verification", known=None)


def test_an_unreadable_label_file_is_counted_and_named(base, caplog):
    file = base / "label/1/3/2012/3ac218c0c6c301.txt"
    for content in ("", "1\n1\n1 2 3\n", "one\n1\n1 2 3 4\n", "7\n1\n1 2 3 4\n", None):
        file.unlink() if content is None else file.write_text(content)
        rows = by_name(read_compcars(base, known=None))
        assert f"1 of 8 label files are absent or not viewpoint, 1, x1 y1 x2 y2 (first: {file})" in caplog.text
        assert rows.loc["01", "viewpoint"] == UNKNOWN and rows.loc["01", BOX].isna().all()
        assert rows.loc["02", BOX].tolist() == [2, 3, 10, 9]
        caplog.clear()


def test_files_that_only_add_labels_and_names_may_be_absent(base, caplog):
    (base / "misc/car_type.mat").unlink()
    (base / "label").rename(base / "label_of_old")
    table = read_compcars(base, known=None)
    assert table.labels["type"].names == ("3", "4", "12") and "car_type.mat" in caplog.text
    assert not table.has_boxes and "viewpoint" not in table.labels
    assert f"{base / 'label'} does not exist" in caplog.text
    for name in ("attributes.txt", "make_model_name.mat"):
        (base / "misc" / name).unlink()
    labels = read_compcars(base, known=None).labels
    assert set(labels) == {"make", "model"} and labels["make"].names == ("1", "2", "12")


def test_a_copy_may_differ_by_a_few_photos_but_not_by_many_or_a_class(base, caplog):
    assert compcars.KNOWN["listed"]["train"] + compcars.KNOWN["listed"]["test"] == 30_955  # as in the paper
    assert compcars.TOLERATED < 30_955 / 431  # a lost model folder is noticed
    for wanted in (8 - compcars.TOLERATED, 8 + compcars.TOLERATED):
        assert len(read_compcars(base, known={"all": COUNTS | {"photos": wanted}})) == 8
        assert f"8 photos instead of {wanted}" in caplog.text and "used as it is" in caplog.text
    for wrong in ({"photos": 9 + compcars.TOLERATED}, {"photos": 9, "make": 4}, {"model": 5}):
        with pytest.raises(InputError, match=r"instead of .*data\.allow_missing=true"):
            read_compcars(base, known={"all": COUNTS | wrong})


def test_damaged_files_are_named(base):
    for file, content, message in (
        ("test.txt", f"{layouts.COMPCARS_TEST[0]}\n{layouts.COMPCARS_TRAIN[0]}\r\n", "line 2: 1/10/2012/.* is listed"),
        ("train.txt", "1/3/2012/1.jpg\n\nAudi A4\n", "line 3: 'Audi A4' is not make/model/year/photo.jpg"),
        ("attributes.txt", "header\n1 2 3 4 5 six\n", "six"),
        ("car_type.mat", "MATLAB 5.0 MAT-file, cut short", "cannot be read as a Matlab file"),
    ):
        (path,) = base.rglob(file)
        whole = path.read_bytes()
        path.write_text(content)
        with pytest.raises(InputError, match=message) as error:
            read_compcars(base, known=None)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        path.write_bytes(whole)


def test_surveillance_models_are_ids_without_the_table_of_names_and_a_damaged_one_is_an_error(base, tmp_path, caplog):
    cameras = layouts.write_compcars_surveillance(tmp_path, "data/sv_data")  # beside the web-nature photos
    file = cameras / "sv_make_model_name.mat"
    file.unlink()
    table = read_compcars_surveillance(tmp_path, known=None)
    assert table.root == cameras and not table.has_boxes and f"{file} does not exist" in caplog.text
    assert set(table.labels) == {"model"} and table.labels["model"].names == ("1", "2", "4")
    assert table.rows.set_index("path")[["split", "model"]].to_dict("index") == {
        f"image/{photo}": {"split": split, "model": ["1", "2", "4"].index(photo[0])}
        for split, photos in layouts.SURVEILLANCE_PHOTOS.items() for photo in photos
    }  # fmt: skip
    scipy.io.savemat(file, {"sv_make_model_name": layouts.cells(["Audi"] * 4)})
    with pytest.raises(InputError, match=r"its cell has the shape \(4, 1\), not \(281, 3\); get it again"):
        read_compcars_surveillance(cameras, known=None)
    scipy.io.savemat(file, {"sv_make_model_name": np.full((3, 3), "Audi", object)})
    with pytest.raises(InputError, match="has no make and model for 4, which the lists have"):
        read_compcars_surveillance(cameras, known=None)


def test_parts_with_their_splits_and_groups_and_one_part(tmp_path):
    parts = layouts.write_compcars_parts(tmp_path)
    table = read_compcars_parts(parts, known=None)
    columns = [np.array(table.labels[name].names)[table.rows[name]] for name in ("make", "model", "part")]
    found = zip(table.rows["path"], table.rows["split"], *columns, table.rows["group"], strict=True)
    assert {path: tuple(map(str, rest)) for path, *rest in found} == {
        "part/1/2/2012/1/5ac218c0c6c301.jpg": ("train", "Audi", "A4L", "headlight", "1/2/2012"),
        "part/1/2/2012/3/5ac218c0c6c301.jpg": ("test", "Audi", "A4L", "fog_light", "1/2/2012"),
        "part/1/2/2013/1/5ac218c0c6c302.jpg": ("test", "Audi", "A4L", "headlight", "1/2/2013"),
        "part/2/4/2014/8/5ac218c0c6c305.jpg": ("", "Benz", "GLK", "gear_lever", "2/4/2014"),
        "part/2/4/unknown/1/5ac218c0c6c303.jpg": ("train", "Benz", "GLK", "headlight", ""),
        "part/2/4/unknown/8/5ac218c0c6c304.jpg": ("train", "Benz", "GLK", "gear_lever", ""),
    }
    assert table.labels["part"].ids == ("1", "3", "8")
    cfg = small_runs.config("data=compcars_parts", f"data.root={parts}", "data.allow_missing=true", "data.part=8")
    table = build_table(cfg["data"], annotations=True)
    assert table.labels["model"].names == ("GLK",) and table.rows["model"].tolist() == [0, 0]
    assert list(cfg["model"]["heads"]) == ["make", "model"]
