import logging
import shutil

import numpy as np
import pytest
import scipy.io

from carvision.data import compcars_surveillance
from carvision.data.compcars_surveillance import KNOWN, read_compcars_surveillance
from carvision.errors import InputError
from tests.data import layouts


def facts(table) -> dict:
    """path -> (split, id and name of the model, name of the make)."""
    models, makes = table.labels["model"], table.labels["make"]
    return {
        row["path"]: (row["split"], models.ids[row["model"]], models.names[row["model"]], makes.names[row["make"]])
        for _, row in table.rows.iterrows()
    }


@pytest.mark.parametrize("nesting", ["", "sv_data", "data/sv_data", "data/data/sv_data"])
def test_every_nesting_of_the_root_is_read(tmp_path, caplog, nesting):
    base = layouts.write_compcars_surveillance(tmp_path, nesting)
    caplog.set_level(logging.WARNING)
    table = read_compcars_surveillance(tmp_path, known=None)
    assert caplog.text == ""
    assert table.root == base
    assert all((table.root / path).is_file() for path in table.rows["path"])
    assert facts(table) == {
        "image/1/431e8997607101.jpg": ("train", "1", "Ford Kuga", "Ford"),
        "image/2/431e8997607102.jpg": ("train", "2", "Audi Q5", "Audi"),
        "image/2/431e8997607103.jpg": ("train", "2", "Audi Q5", "Audi"),
        "image/4/431e8997607104.jpg": ("train", "4", "Audi A1", "Audi"),
        "image/2/431e8997607105.jpg": ("test", "2", "Audi Q5", "Audi"),
        "image/1/431e8997607106.jpg": ("test", "1", "Ford Kuga", "Ford"),
    }
    assert table.finest == "model"
    assert table.labels["model"].parent == "make"
    assert table.labels["make"].ids == ("Audi", "Ford")
    assert table.labels["model"].parent_codes == (1, 0, 0)
    assert not table.has_boxes


def test_the_surveillance_photos_are_found_beside_the_others(tmp_path):
    layouts.write_compcars(tmp_path, "data")
    base = layouts.write_compcars_surveillance(tmp_path, "data/sv_data")
    assert read_compcars_surveillance(tmp_path, known=None).root == base


def test_without_the_table_of_names_there_are_ids(tmp_path, caplog):
    base = layouts.write_compcars_surveillance(tmp_path)
    (base / "sv_make_model_name.mat").unlink()
    table = read_compcars_surveillance(tmp_path, known=None)
    assert set(table.labels) == {"model"}
    assert table.labels["model"].names == ("1", "2", "4")
    assert f"{base / 'sv_make_model_name.mat'} does not exist" in caplog.text


@pytest.mark.parametrize(
    "line", ["431e8997607115.jpg", "x/1.jpg", "1/2/1.jpg", "1/1.jpg 3", "1/", "/1.jpg", "-1/1.jpg"]
)
def test_a_line_that_is_no_photo_is_named(tmp_path, line):
    base = layouts.write_compcars_surveillance(tmp_path)
    (base / "test_surveillance.txt").write_text(f"2/431e8997607105.jpg\r\n\r\n{line}\r\n")
    with pytest.raises(InputError) as raised:
        read_compcars_surveillance(tmp_path, known=None)
    assert str(raised.value) == f"{base / 'test_surveillance.txt'}, line 3: {line!r} is not model/photo.jpg"


def test_a_photo_that_is_listed_twice(tmp_path):
    base = layouts.write_compcars_surveillance(tmp_path)
    (base / "test_surveillance.txt").write_text("2/431e8997607105.jpg\n2/431e8997607103.jpg\n")
    with pytest.raises(InputError, match=r"test_surveillance.txt, line 2: 2/431e8997607103.jpg is listed before"):
        read_compcars_surveillance(tmp_path, known=None)


def test_absent_photos_are_counted(tmp_path, caplog):
    base = layouts.write_compcars_surveillance(tmp_path)
    (base / "image/4/431e8997607104.jpg").unlink()
    (base / "image/2/431e8997607105.jpg").unlink()
    with pytest.raises(InputError, match=r"2 of 6 listed photos are not there .*431e8997607104.jpg.*allow_missing"):
        read_compcars_surveillance(tmp_path, known=None)
    table = read_compcars_surveillance(tmp_path, known=None, allow_missing=True)
    assert len(table) == 4
    assert table.labels["model"].names == ("Ford Kuga", "Audi Q5")
    assert "2 of 6 listed photos" in caplog.text
    shutil.rmtree(base / "image")
    with pytest.raises(InputError, match="none of the 6 listed photos is there"):
        read_compcars_surveillance(tmp_path, known=None, allow_missing=True)


def test_known_counts_are_asserted(tmp_path, caplog):
    layouts.write_compcars_surveillance(tmp_path)
    wanted = (
        "4 train photos instead of 31,148, 2 test photos instead of 13,333, 2 make classes instead of 68, "
        "3 model classes instead of 281"
    )
    with pytest.raises(InputError, match=wanted):
        read_compcars_surveillance(tmp_path)
    assert len(read_compcars_surveillance(tmp_path, allow_missing=True)) == 6
    assert wanted in caplog.text
    assert read_compcars_surveillance(tmp_path, known={"train": 4, "test": 2, "make": 2, "model": 3}).name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (layouts.SURVEILLANCE_NAMES[:3], "has no make and model for 4, which the lists have"),
        ([*layouts.SURVEILLANCE_NAMES[:3], ("Audi", "", 19)], "has no make and model for 4"),
        ([*layouts.SURVEILLANCE_NAMES[:3], ("", "A1", 19)], "has no make and model for 4"),
    ],
)
def test_a_model_without_a_name_is_told(tmp_path, monkeypatch, names, message):
    monkeypatch.setattr(layouts, "SURVEILLANCE_NAMES", names)
    layouts.write_compcars_surveillance(tmp_path)
    with pytest.raises(InputError, match=message):
        read_compcars_surveillance(tmp_path, known=None)


def test_a_damaged_table_of_names_is_told(tmp_path):
    file = layouts.write_compcars_surveillance(tmp_path) / "sv_make_model_name.mat"
    scipy.io.savemat(file, {"sv_make_model_name": layouts.cells(["Audi"] * 4)})
    with pytest.raises(InputError, match=r"its cell has the shape \(4, 1\), not \(281, 3\); get it again"):
        read_compcars_surveillance(tmp_path, known=None)
    file.write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    with pytest.raises(InputError, match="cannot be read as a Matlab file"):
        read_compcars_surveillance(tmp_path, known=None)


def test_a_wrong_root_says_where_to_get_the_data(tmp_path):
    for root in (None, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"^data.root: (null|.*/absent) does not exist.*mmlab.ie.cuhk.edu.hk"):
            read_compcars_surveillance(root)
    with pytest.raises(InputError, match=r"has train_surveillance.txt.*comp_cars"):
        read_compcars_surveillance(tmp_path)
    base = layouts.write_compcars_surveillance(tmp_path)
    (base / "test_surveillance.txt").unlink()
    with pytest.raises(InputError, match=r"test_surveillance.txt does not exist.*comp_cars"):
        read_compcars_surveillance(tmp_path, known=None)
    for split in ("train", "test"):
        (base / f"{split}_surveillance.txt").write_text("\n")
    with pytest.raises(InputError, match=r"name no photos.*comp_cars"):
        read_compcars_surveillance(tmp_path, known=None)


def test_the_real_lists(monkeypatch):
    """Without the photos, which may not be passed on."""
    monkeypatch.setattr(compcars_surveillance, "without_missing_files", lambda table, allow_missing: table)
    table = read_compcars_surveillance(layouts.real_data("compcars_lists"))  # asserts KNOWN
    model, make = table.labels["model"], table.labels["make"]
    assert table.rows["split"].value_counts().to_dict() == {"train": 31_148, "test": 13_333}
    assert len(table) == KNOWN["train"] + KNOWN["test"]
    assert model.ids == tuple(map(str, range(1, 282)))
    assert (model.names[0], model.names[1], model.names[280]) == ("Besturn X80", "Hafei Lubao", "Venucia R50")
    assert len(set(model.names)) == 281
    assert make.names[model.parent_codes[2]] == "Audi"
    assert "Hyundai" in make.names  # in the file with a space after it
    assert table.rows["path"][0] == "image/1/431e8997607115.jpg"
    both = table.rows.groupby("split")["model"].nunique()
    assert both.tolist() == [281, 281]
    assert np.bincount(table.rows["model"]).min() > 0
