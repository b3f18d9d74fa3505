import numpy as np
import pytest

from carvision.data.readers.stanford_cars import read_stanford_cars
from carvision.data.table import BOX
from carvision.errors import InputError
from tests.data import layouts
from tests.data.layouts import MAKES, STANFORD_NAMES, STANFORD_ROWS, real_data


def facts(table):
    """Return (split, file name) -> (name of the model, name of the make, box) of each photo."""
    models, makes = (np.array(table.labels[name].names)[table.rows[name]].tolist() for name in ("model", "make"))
    boxes = map(tuple, table.rows[BOX].to_numpy().tolist()) if table.has_boxes else [None] * len(table)
    keys = zip(table.rows["split"], table.rows["path"].str.rpartition("/")[2], strict=True)
    return dict(zip(keys, zip(models, makes, boxes, strict=True), strict=True))


def expected(boxes: bool = True) -> dict:
    return {
        (split, file): (STANFORD_NAMES[i - 1], MAKES[i - 1], (x1 - 1, y1 - 1, x2, y2) if boxes else None)
        for split, file, x1, y1, x2, y2, i in STANFORD_ROWS
    }


@pytest.mark.parametrize("test_labels", ["", "devkit"])
def test_the_original_layout_also_nested_and_beside_class_folders(tmp_path, test_labels):
    layouts.write_stanford_mats(tmp_path, test_labels)
    table = read_stanford_cars(tmp_path, known=None)
    assert facts(table) == expected() and table.rows["path"].iloc[0] == "cars_train/00001.jpg"
    for folder in ("cars_train", "cars_test"):  # as on Kaggle
        (tmp_path / folder).rename(tmp_path / "moved")
        (tmp_path / folder).mkdir()
        (tmp_path / "moved").rename(tmp_path / folder / folder)
    layouts.write_stanford_mirror(tmp_path)
    table = read_stanford_cars(tmp_path, known=None)
    assert facts(table) == expected() and table.rows["path"].iloc[0] == "cars_train/cars_train/00001.jpg"


@pytest.mark.parametrize("write", [lambda root: layouts.write_stanford_mats(root, None), layouts.write_stanford_kaggle])
def test_without_test_labels_the_test_photos_are_left_out(tmp_path, caplog, write):
    write(tmp_path)
    (tmp_path / "anno_test.csv").unlink(missing_ok=True)
    # The count of test photos can't be asserted then; the others are.
    table = read_stanford_cars(tmp_path, known={"train": 5, "test": 3, "model": 5})
    assert set(table.rows["split"]) == {"train"}
    assert "cars_test_annos_withlabels.mat" in caplog.text and "anno_test.csv" in caplog.text


@pytest.mark.parametrize(
    "header, photos, ram",
    [(True, "car_data/car_data", "Ram C-V"), (False, "car_data", "Ram CV"), (True, "", "Ram C_V")],
)
def test_kaggle_layout_in_both_spellings(tmp_path, header, photos, ram):
    layouts.write_stanford_kaggle(tmp_path, header, photos, ram)
    table = read_stanford_cars(tmp_path, known=None)
    assert facts(table) == expected() and table.root == tmp_path
    assert set(table.labels) == {"make", "model"}


def test_damaged_csvs_are_named(tmp_path):
    layouts.write_stanford_kaggle(tmp_path, header=False)
    (tmp_path / "names.csv").write_text("\n".join(STANFORD_NAMES[:5]))
    with pytest.raises(InputError, match=r"anno_train.csv: class 6 has no name; there are names for 1 to 5"):
        read_stanford_cars(tmp_path, known=None)
    for text in ("", "00001.jpg,1,2\n", "a,b,c,d,e,f\n00001.jpg,1,2,3,4,5\n"):
        (tmp_path / "anno_train.csv").write_text(text)
        with pytest.raises(InputError, match=r"anno_train.csv: .*image_name,x_min,y_min,x_max,y_max,label"):
            read_stanford_cars(tmp_path, known=None)


def test_real_partial_copy():
    root = real_data("stanford_cars")
    with pytest.raises(InputError, match=r"7,022 of 8,144 listed photos are not there"):
        read_stanford_cars(root)
    table = read_stanford_cars(root, allow_missing=True)
    assert (len(table), len(table.labels["model"]), len(table.labels["make"])) == (1_122, 27, 8)
    assert table.rows.iloc[0][["path", *BOX]].tolist() == ["cars_train/00001.jpg", 38, 115, 569, 375]
    assert table.labels["model"].ids[table.rows["model"][0]] == "14"
