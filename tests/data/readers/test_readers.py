"""The contract of all readers, and Oxford 102's own; what only another reader does is tested in its own file."""

import json
import re

import numpy as np
import pytest
import scipy.io

from carvision.config.compose import conf_dir
from carvision.data.build import build_table
from carvision.data.readers.oxford102 import NAMES, read_oxford102
from carvision.data.table import Classes, validate
from carvision.errors import InputError
from tests.data import layouts
from tests.data.layouts import READERS, Layout, write_photo
from tests.small_runs import config

COUNTED = {name: layout for name, layout in READERS.items() if layout.counts}
LISTED = {name: layout for name, layout in READERS.items() if layout.absent}
NESTED = [(layout, nesting) for layout in READERS.values() for nesting in layout.nestings]
OF_SETS = {layout.data: layout for layout in reversed(READERS.values())}  # the first layout of each data set
OF_SETS["compcars"] = READERS["compcars_listed"]  # data.split.kind=auto takes the official lists


def each(layouts: dict[str, Layout]):
    return pytest.mark.parametrize("layout", layouts.values(), ids=layouts)


def read(layout: Layout, root, **kwargs):
    """Read without asserting the counts of the real data set, unless they are given."""
    return layout.read(root, **({"known": None} if layout.counts_message else {}) | kwargs)


def assert_complete(table, layout: Layout, base) -> None:
    assert (table.name, table.root) == ("some" if layout.data == "packed" else layout.data, base)  # its source's name
    assert table.rows["split"].value_counts().to_dict() == layout.splits
    classes = table.labels[table.finest]
    assert (classes.ids, classes.names) == (layout.ids, layout.names)
    assert tuple(table.labels[classes.parent].ids[code] for code in classes.parent_codes) == layout.parents
    assert validate(table) is table and table.rows["path"].is_unique
    for name, label in table.class_labels.items():
        assert isinstance(label, Classes) and table.rows[name].dtype == np.int32
        assert set(table.rows[name]) - {-1} == set(range(len(label)))
    if layout.data != "packed":
        assert all((base / path).is_file() for path in table.rows["path"])


def test_every_data_set_has_a_layout_here():
    assert OF_SETS.keys() | {"demo"} == {file.stem for file in (conf_dir() / "data").glob("*.yaml")}


@each(READERS)
def test_a_complete_copy_is_read_without_a_warning(layout, tmp_path, caplog):
    caplog.set_level("WARNING")
    base = layout.write(tmp_path)
    assert_complete(read(layout, base), layout, base)
    assert caplog.text == "" or layout is READERS["compcars_verification"]  # whose lists share photos: test_compcars.py


@pytest.mark.parametrize(("layout", "nesting"), NESTED)
def test_the_root_may_lie_above_the_data(layout, nesting, tmp_path):
    base = layout.write(tmp_path, nesting)
    assert_complete(read(layout, tmp_path), layout, base)


@each(OF_SETS)
def test_data_sets_are_selected_by_name(layout, tmp_path):
    base = layout.write(tmp_path)
    root = base if layout.data in ("packed", "manifest") else tmp_path
    cfg = config(f"data={layout.data}", f"data.root={root}", "data.allow_missing=true", *layout.overrides)
    assert_complete(build_table(cfg["data"], annotations=True), layout, base)


@each(LISTED)
def test_an_absent_photo_is_an_error_unless_it_may_be_missing(layout, tmp_path, caplog):
    base = layout.write(tmp_path)
    (base / layout.absent).unlink()
    absent = rf"1 (of \d+ listed photos|photos of the official lists) are not there.*{re.escape(layout.absent)}\)"
    with pytest.raises(InputError, match=rf"{absent}.*data.allow_missing=true"):
        read(layout, tmp_path)
    caplog.clear()
    table = read(layout, tmp_path, allow_missing=True)
    assert layout.absent in caplog.text and "are not there" in caplog.text
    assert len(table) == sum(layout.splits.values()) - 1 and layout.absent not in table.rows["path"].tolist()
    assert table.labels[table.finest].ids == layout.ids_without_it
    for photo in base.rglob("*.jpg"):
        photo.unlink()
    with pytest.raises(InputError, match=r"none of the \d+ listed photos is there|holds no photos"):
        read(layout, tmp_path, allow_missing=True)


@each(COUNTED)
def test_the_counts_of_the_real_data_set_are_asserted(layout, tmp_path, caplog):
    layout.write(tmp_path)
    with pytest.raises(InputError, match=rf"{layout.counts_message}.*data.allow_missing=true"):
        layout.read(tmp_path)
    assert layout.counts_message not in caplog.text
    num = sum(layout.splits.values())
    assert len(layout.read(tmp_path, allow_missing=True)) == num and layout.counts_message in caplog.text
    caplog.clear()
    assert len(layout.read(tmp_path, known=layout.counts)) == num and "instead of" not in caplog.text


@each(READERS)
def test_a_wrong_root_says_where_to_get_the_data(layout, tmp_path):
    write_photo(tmp_path / "photo.jpg")
    for root, problem in (
        (None, "null does not exist"), (tmp_path / "absent", ".*/absent does not exist"),
        (tmp_path / "photo.jpg", ".*/photo.jpg is no folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"^data.root: {problem}.*{layout.where}") as error:
            read(layout, root)
        assert "\n" not in str(error.value)
    for folder, problem in layout.empty.items():
        (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
        where = "" if layout.data == "manifest" else f".*{layout.where}"
        with pytest.raises(InputError, match=problem + where):
            read(layout, tmp_path / "root")


def test_oxford102_in_the_original_layout_and_lists_that_do_not_fit_the_labels(tmp_path):
    layouts.write_oxford102(tmp_path)
    table = read_oxford102(tmp_path, known=None)
    assert table.rows["path"].tolist() == [f"jpg/image_{number:05d}.jpg" for number in range(1, 11)]
    assert table.rows["split"].tolist() == ["test"] * 4 + ["train"] * 3 + ["val"] * 3
    assert table.rows["class"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [[11]], "valid": [[1]], "tstid": [[2]]})
    with pytest.raises(InputError, match=r"setid.mat: photo 11 is beyond the 10"):
        read_oxford102(tmp_path, known=None)


def test_oxford102_in_folders_with_a_class_beyond_the_102(tmp_path):
    layouts.write_oxford102_folders(tmp_path)
    write_photo(tmp_path / "train" / "rose" / "x.jpg")
    with pytest.raises(InputError, match=r"class 'rose' .*is not one of 1 to 102"):
        read_oxford102(tmp_path, known=None)


def test_oxford102_as_it_is():
    root = layouts.real_data("oxford102")
    table = read_oxford102(root)  # asserts the known counts
    assert table.labels["class"].ids == tuple(map(str, range(1, 103)))
    assert table.labels["class"].names[table.rows["class"].iloc[0]] == "passion flower"  # label 77
    assert json.loads((root / "cat_to_name.json").read_text()) == NAMES
