"""A folder of embeddings: what is written can be read, by numpy too; damaged files are errors of one line."""

import json

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.embedding.store import ABOUT, INDEX, VALUES, read_embeddings, write_index, write_values
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
    assert write_values(tmp_path / VALUES, iter([values[:3], values[3:]])) == (4, 5)
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


@pytest.mark.parametrize(("dtype", "num"), [("float32", 123_456), ("float16", 123_456), ("float32", 0)])
def test_numpy_reads_and_maps_the_values(tmp_path, dtype, num):
    values = np.arange(num * 2, dtype=np.float32).reshape(num, 2) % 100
    write_values(tmp_path / VALUES, iter(np.array_split(values, max(1, num // 1000))), dtype)
    found = np.load(tmp_path / VALUES, mmap_mode="r" if num else None, allow_pickle=False)  # nothing can't be mapped
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("name", [VALUES, INDEX, ABOUT])
def test_damaged_files_are_one_line(written, name):
    folder, _ = written
    whole = (folder / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2], None):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*compute them again[^\n]*$"):
            read_embeddings(folder)


def test_files_that_do_not_fit_together_are_refused(written):
    folder, values = written
    with pytest.raises(ZeroDivisionError):  # an error while writing leaves the file as it was
        write_values(folder / VALUES, (values[:1] / (1 // i) for i in (1, 0)))
    np.testing.assert_array_equal(np.load(folder / VALUES), values)
    write_values(folder / VALUES, iter([values[:3]]))
    with pytest.raises(InputError, match=r"shape \(3, 5\).*4 lines"):
        read_embeddings(folder)
    about = json.loads((folder / ABOUT).read_text())
    about["labels"]["model"]["ids"][0] = "77"
    (folder / ABOUT).write_text(json.dumps(about))
    with pytest.raises(InputError, match="compute them again"):
        read_embeddings(folder)
