"""Oxford 102's own; what all readers share: test_readers.py; the download: tests/files/test_download.py."""

import json

import pytest
import scipy.io

from carvision.data.readers.oxford102 import NAMES, read_oxford102
from carvision.errors import InputError
from tests.data import layouts


def test_the_original_layout_and_lists_that_do_not_fit_the_labels(tmp_path):
    layouts.write_oxford102(tmp_path)
    table = read_oxford102(tmp_path, known=None)
    assert table.rows["path"].tolist() == [f"jpg/image_{number:05d}.jpg" for number in range(1, 11)]
    assert table.rows["split"].tolist() == ["test"] * 4 + ["train"] * 3 + ["val"] * 3
    assert table.rows["class"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [[11]], "valid": [[1]], "tstid": [[2]]})
    with pytest.raises(InputError, match=r"setid.mat: photo 11 is beyond the 10"):
        read_oxford102(tmp_path, known=None)


def test_the_folder_layout_with_names_of_its_own_and_a_class_beyond_the_102(tmp_path):
    layouts.write_oxford102_folders(tmp_path, {"2": "second", "102": "last", "1": "first"})
    assert read_oxford102(tmp_path, known=None).labels["class"].names == ("first", "second", "last")
    (tmp_path / "cat_to_name.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"cat_to_name.json is not a JSON object"):
        read_oxford102(tmp_path, known=None)
    (tmp_path / "cat_to_name.json").unlink()
    layouts.write_photo(tmp_path / "train" / "rose" / "x.jpg")
    with pytest.raises(InputError, match=r"class 'rose' .*is not one of 1 to 102"):
        read_oxford102(tmp_path, known=None)


def test_real_photos():
    root = layouts.real_data("oxford102")
    table = read_oxford102(root)  # asserts the known counts
    assert table.labels["class"].ids == tuple(map(str, range(1, 103)))
    assert table.labels["class"].names[table.rows["class"].iloc[0]] == "passion flower"  # label 77
    names = json.loads((root / "cat_to_name.json").read_text())
    assert [names[str(i)] for i in range(1, 103)] == NAMES
