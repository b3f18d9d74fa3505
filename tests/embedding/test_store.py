"""A folder of embeddings: what is written can be read, by numpy too; damaged files are errors of one line."""

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.embedding.store import ABOUT, INDEX, VALUES, read_embeddings, write_index
from carvision.errors import InputError


def made_table(root) -> Table:
    rows = pd.DataFrame({"path": ["a/1.jpg", "a/2, then.jpg", "b/ü.jpg", "b/4.jpg"]})
    rows["split"], rows["group"] = ["train", "test", "", "test"], ["x", "", "y", "y"]
    rows["make"], rows["model"] = np.array([[0, 0, 1, UNKNOWN], [0, 1, 2, UNKNOWN]], np.int32)
    rows["speed"] = np.array([200, np.nan, 180.5, np.nan], np.float32)
    rows[BOX] = np.array([[1, 1, 9, 9], [np.nan] * 4, [0, 0, 8, 8], [3, 3, 7.5, 7]], np.float32)
    model = Classes(("1", "2", "30"), ("A4", "A6", "X5"), "make", (0, 0, 1))
    labels = {"make": Classes(("7", "12"), ("Audi", "Audi")), "model": model, "speed": Number("km/h")}
    return Table("made", root, rows, labels, "model")


@pytest.fixture
def written(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.save(tmp_path / VALUES, values)
    write_index(tmp_path, made_table(tmp_path), {"layer": "pooled"})
    return tmp_path, values


def test_embeddings_and_table_are_read_as_written(written):
    folder, values = written
    found, about = read_embeddings(folder)
    assert isinstance(found.values, np.memmap)
    np.testing.assert_array_equal(found.values, values)
    assert about["layer"] == "pooled"
    expected = made_table(folder)
    assert (found.table.labels, found.table.finest, found.table.root) == (expected.labels, "model", folder)
    pd.testing.assert_frame_equal(found.table.rows[list(expected.rows)], expected.rows, check_dtype=False)
    some = found.select(np.array([False, True, False, True]))
    np.testing.assert_array_equal(some.values, values[[1, 3]])
    assert some.table.rows["path"].tolist() == ["a/2, then.jpg", "b/4.jpg"]


@pytest.mark.parametrize("name", [VALUES, INDEX, ABOUT])
def test_damaged_files_and_those_that_do_not_fit_together_are_one_line(written, name):
    folder, values = written
    whole = (folder / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*compute them again[^\n]*$"):
            read_embeddings(folder)
    (folder / name).write_bytes(whole)
    np.save(folder / VALUES, values[:3])
    with pytest.raises(InputError, match=r"shape \(3, 5\).*4 lines"):
        read_embeddings(folder)
