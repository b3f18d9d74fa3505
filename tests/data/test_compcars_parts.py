import logging

import pytest

from carvision.allowed import ALLOWED
from carvision.data.compcars_parts import KNOWN, PARTS, read_compcars_parts
from carvision.errors import InputError
from tests.data import layouts


def facts(table) -> dict:
    """path -> (split, name of the make, of the model, of the part, group)."""
    labels = [table.labels[name] for name in ("make", "model", "part")]
    return {
        row["path"]: (
            row["split"],
            *(label.names[row[name]] for name, label in zip(("make", "model", "part"), labels, strict=True)),
            row["group"],
        )
        for _, row in table.rows.iterrows()
    }


@pytest.mark.parametrize("nesting", ["", "data", "data/data"])
def test_every_nesting_of_the_root_is_read(tmp_path, caplog, nesting):
    base = layouts.write_compcars_parts(tmp_path, nesting)
    caplog.set_level(logging.WARNING)
    table = read_compcars_parts(tmp_path, known=None)
    assert caplog.text == ""
    assert table.root == base
    assert all((table.root / path).is_file() for path in table.rows["path"])
    assert facts(table) == {
        "part/1/2/2012/1/5ac218c0c6c301.jpg": ("train", "Audi", "A4L", "headlight", "1/2/2012"),
        "part/1/2/2012/3/5ac218c0c6c301.jpg": ("test", "Audi", "A4L", "fog_light", "1/2/2012"),
        "part/1/2/2013/1/5ac218c0c6c302.jpg": ("test", "Audi", "A4L", "headlight", "1/2/2013"),
        "part/2/4/2014/8/5ac218c0c6c305.jpg": ("", "Benz", "GLK", "gear_lever", "2/4/2014"),
        "part/2/4/unknown/1/5ac218c0c6c303.jpg": ("train", "Benz", "GLK", "headlight", ""),
        "part/2/4/unknown/8/5ac218c0c6c304.jpg": ("train", "Benz", "GLK", "gear_lever", ""),
    }
    assert table.finest == "model"
    assert table.labels["model"].ids == ("2", "4")
    assert table.labels["model"].parent == "make"
    assert table.labels["model"].parent_codes == (0, 1)
    assert table.labels["part"].ids == ("1", "3", "8")


@pytest.mark.parametrize("part", ["headlight", 1, "1"])
def test_one_part(tmp_path, part):
    layouts.write_compcars_parts(tmp_path)
    table = read_compcars_parts(tmp_path, part, known=None)
    assert sorted(table.rows["path"].str[-6:-4]) == ["01", "02", "03"]
    assert table.labels["part"].names == ("headlight",)
    gears = read_compcars_parts(tmp_path, "gear_lever", known=None)
    assert gears.labels["model"].names == ("GLK",)
    assert gears.rows["model"].tolist() == [0, 0]
    with pytest.raises(InputError, match="no photos"):
        read_compcars_parts(tmp_path, "console", known=None)


def test_the_configuration_knows_the_same_parts():
    allowed = ALLOWED["data.part"]
    assert all(allowed(part) is None for part in ("all", *PARTS.values(), *map(int, PARTS)))
    assert allowed("bonnet") and allowed(0) and allowed(9)
    with pytest.raises(InputError, match=r"data.part: 'head_light' is not one of all, .*; nearest: headlight"):
        read_compcars_parts(None, "head_light")


@pytest.mark.parametrize(
    "line",
    [
        "1/2/2012/1/5ac218c0c6c301.jpg",
        "part/1/2/2012/1/5ac218c0c6c301.jpg",
        "1/2/2012/5ac218c0c6c301.jpg",
        "part/1/2/2012/5ac218c0c6c301.jpg",
    ],
)
def test_lines_with_and_without_folders_that_can_be_told(tmp_path, line):
    base = layouts.write_compcars_parts(tmp_path)
    for split, text in (("train", line), ("test", "")):
        (base / f"train_test_split/part/{split}_part_1.txt").write_text(text)
    table = read_compcars_parts(tmp_path, 1, known=None)
    assert table.rows.loc[table.rows["split"] == "train", "path"].tolist() == ["part/1/2/2012/1/5ac218c0c6c301.jpg"]
    assert (table.rows["split"] == "").sum() == 2


@pytest.mark.parametrize(
    "line",
    [
        "1/2/2012/3/5ac218c0c6c301.jpg",  # of another part
        "1/2/5ac218c0c6c301.jpg",
        "image/1/2/2012/1/5ac218c0c6c301.jpg",
        "1/2/2012/1/5ac218c0c6c301.jpg 1",
        "Audi/A4L/2012/1/5ac218c0c6c301.jpg",
        "1/2/2012/1/1/5ac218c0c6c301.jpg",
    ],
)
def test_any_other_line_is_named(tmp_path, line):
    base = layouts.write_compcars_parts(tmp_path)
    file = base / "train_test_split/part/test_part_1.txt"
    file.write_text(f"1/2/2013/1/5ac218c0c6c302.jpg\n\n{line}\n")
    with pytest.raises(InputError) as raised:
        read_compcars_parts(tmp_path, known=None)
    assert str(raised.value) == f"{file}, line 3: {line!r} is not make/model/year/1/photo.jpg"


def test_a_photo_on_both_lists_in_two_spellings(tmp_path):
    base = layouts.write_compcars_parts(tmp_path)
    (base / "train_test_split/part/test_part_1.txt").write_text("part/1/2/2012/5ac218c0c6c301.jpg\n")
    with pytest.raises(InputError, match=r"test_part_1.txt, line 1: part/1/2/2012/5ac218c0c6c301.jpg is listed before"):
        read_compcars_parts(tmp_path, known=None)


def test_absent_lists_are_told_and_done_without(tmp_path, caplog):
    base = layouts.write_compcars_parts(tmp_path)
    lists = base / "train_test_split/part"
    (lists / "test_part_1.txt").unlink()
    (lists / "train_part_5.txt").unlink()
    table = read_compcars_parts(tmp_path, known=None)
    assert table.rows["split"].value_counts().to_dict() == {"train": 3, "": 2, "test": 1}
    assert f"2 lists do not exist (first: {lists / 'test_part_1.txt'})" in caplog.text
    for file in lists.iterdir():
        file.unlink()
    assert set(read_compcars_parts(tmp_path, known=None).rows["split"]) == {""}


def test_absent_photos_and_names(tmp_path, caplog):
    base = layouts.write_compcars_parts(tmp_path)
    (base / "misc/make_model_name.mat").unlink()
    (base / "part/1/2/2013/1/5ac218c0c6c302.jpg").unlink()
    with pytest.raises(InputError, match=r"1 photos of the official lists are not there .*c302.jpg.*allow_missing"):
        read_compcars_parts(tmp_path, known=None)
    table = read_compcars_parts(tmp_path, known=None, allow_missing=True)
    assert len(table) == 5
    assert table.labels["make"].names == ("1", "2")
    assert "make_model_name.mat does not exist" in caplog.text
    assert len(read_compcars_parts(tmp_path, known={"photos": 5, "part": 3})) == 5  # a few are absent from every copy


def test_known_counts_are_those_of_all_parts(tmp_path, caplog):
    layouts.write_compcars_parts(tmp_path)
    for part in ("all", 3):
        with pytest.raises(InputError, match="6 photos instead of 27,618, 3 part classes instead of 8"):
            read_compcars_parts(tmp_path, part)
    assert len(read_compcars_parts(tmp_path, 3, allow_missing=True)) == 1
    assert "6 photos instead of 27,618" in caplog.text
    assert KNOWN["part"] == len(PARTS)


def test_photos_at_another_place_are_counted(tmp_path, caplog):
    base = layouts.write_compcars_parts(tmp_path)
    for odd in ("1/2/2012/stray.jpg", "1/2/2012/9/stray.jpg", "1/2/2012/1/deep/stray.jpg"):
        layouts.write_photo(base / "part" / odd)
    assert len(read_compcars_parts(tmp_path, known=None)) == 6
    assert "3 photos are not at part/make/model/year/<1 to 8>/ and are left out" in caplog.text
    assert "part/1/2/2012/1/deep/stray.jpg" in caplog.text


def test_a_wrong_root_says_where_to_get_the_data(tmp_path):
    for root in (None, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"^data.root: (null|.*/absent) does not exist.*mmlab.ie.cuhk.edu.hk"):
            read_compcars_parts(root)
    with pytest.raises(InputError, match=r"has a folder part.*comp_cars"):
        read_compcars_parts(tmp_path)
    (tmp_path / "part").mkdir()
    with pytest.raises(InputError, match=r"part holds no photos.*comp_cars"):
        read_compcars_parts(tmp_path)
