"""Arrays on disk: numpy reads and maps them; written atomically, also by several processes; damage is found."""

import numpy as np
import pytest

from carvision.files.arrays import ArrayWriter, read_array


def write(file, rows: np.ndarray, note: dict | None = None, num_blocks: int = 2) -> None:
    with ArrayWriter(file, str(rows.dtype), rows.nbytes + 1000) as new:  # more than it takes
        for block in np.array_split(rows, num_blocks):
            new.append(block)
        new.finish(note)


@pytest.mark.parametrize(("shape", "dtype"), [((123_456, 2), "float32"), ((7, 2), "float64"), ((9, 4, 3), "float16")])
def test_arrays_are_read_as_written_and_by_numpy(shape, dtype, tmp_path):
    rows = np.random.default_rng(0).normal(size=shape).astype(dtype)
    file, note = tmp_path / "new" / "a.npy", {"bad": {"1": "is no photo: déjà vu"}}
    for written in (None, note):
        write(file, rows, written)
        assert [*file.parent.iterdir()] == [file]
        for mode in (None, "r"):
            found = np.load(file, mmap_mode=mode, allow_pickle=False)
            assert found.dtype == dtype and np.array_equal(found, rows)
    found, about = read_array(file)
    assert isinstance(found, np.memmap) and np.array_equal(found, rows) and about == note


def test_every_damage_is_found(tmp_path):
    file = tmp_path / "a.npy"
    write(file, np.ones((3, 2), np.float32), {"2": "is empty"})
    content = file.read_bytes()
    in_header = content.index(b"<f4") + 1, content.index(b"(3, 2)") + 1
    for index in (0, 9, *in_header, 128, len(content) - 12, -1, None):
        damaged = bytearray(content[:-3] if index is None else content)
        damaged[index or 0] ^= index is not None
        file.write_bytes(damaged)
        with pytest.raises((OSError, ValueError, EOFError)):
            read_array(file)


def test_an_error_leaves_the_file_as_it_was_and_writers_do_not_disturb_each_other(tmp_path):
    file, rows = tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(3, 2)
    with ArrayWriter(file, "float32") as first, ArrayWriter(file, "float32") as second:
        first.append(rows)
        second.append(rows[:2])
        first.finish({})
        taken, _ = read_array(file)
        second.append(rows[2:] + 1)
        second.finish({})
        assert np.array_equal(taken, rows) and np.array_equal(read_array(file)[0][2:], rows[2:] + 1)
    with pytest.raises(ZeroDivisionError), ArrayWriter(file, "float32", 100) as third:
        third.append(rows / (1 // 0))
    assert [*tmp_path.iterdir()] == [file] and len(np.load(file)) == 3
