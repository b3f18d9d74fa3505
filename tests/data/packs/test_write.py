"""Packs: what is in them, in which form, how packing resumes after any end, and carvision.pack as people run it."""

import json
import logging
import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvision.data.images import BLANK, open_image
from carvision.data.packs import write
from carvision.data.packs.index import read_packed
from carvision.data.packs.write import verify_pack
from carvision.data.readers.folder import read_folder
from carvision.data.splits import stratified_split
from carvision.data.table import BOX, LOCATION, SOURCE, Table
from carvision.errors import InputError
from carvision.files import locks
from tests import forked
from tests.data.layouts import write_class_folders, write_photo
from tests.data.packs.small import NUM, damage, form, pack_small, photos_of, write_photos
from tests.data.test_decode import turned


@pytest.fixture
def table(tmp_path) -> Table:
    return write_photos(tmp_path / "photos")


def assert_same_table(packed: Table, table: Table) -> None:
    """Compare all but the location of the photos."""
    assert (packed.name, packed.labels, packed.finest) == (table.name, table.labels, table.finest)
    pd.testing.assert_frame_equal(packed.rows.drop(columns=[*LOCATION, SOURCE]), table.rows)


def test_a_pack_is_the_same_table_with_the_same_bytes(table, tmp_path):
    for name in ("Bl\udcfcten/K\udce4fer.jpg", "\u65e5\u672c/1.jpg"):
        write_photo(tmp_path / "class folders" / name)
    for i, original in enumerate((table, read_folder(tmp_path / "class folders"))):
        pack_small(original, tmp_path / f"pack {i}")
        packed = read_packed(tmp_path / f"pack {i}")
        assert_same_table(packed, original)
        for row in range(len(original)):
            content = Path(original.photo(row)).read_bytes()
            assert packed.photo(row).read() == packed.packed.read(row) == content
        assert packed.heads == original.heads and verify_pack(tmp_path / f"pack {i}", 0) == {}
    assert packed.rows["path"].tolist() == ["Bl\\xfcten/K\\xe4fer.jpg", "\u65e5\u672c/1.jpg"]


def test_shards_are_tar_files_of_photos_and_json(table, tmp_path):
    pack_small(table, tmp_path / "pack")
    shards = sorted((tmp_path / "pack").glob("*.tar"))
    assert {shard.name.split("-")[0] for shard in shards} == {"train", "test", "unsplit"}
    seen = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            for photo, about in zip(names[::2], names[1::2], strict=True):  # side by side, as WebDataset has them
                assert photo[:8] == about[:8]
                row = int(about.removesuffix(".json"))
                content, about_photo = tar.extractfile(photo).read(), json.load(tar.extractfile(about))
                assert content == (table.root / table.rows["path"][row]).read_bytes()
                assert photo[8:] == (".png" if row % 5 == 0 else ".jpg")
                assert about_photo["path"] == table.rows["path"][row]
                assert (about_photo["split"] or "unsplit") == shard.name.split("-")[0]
                code, label = table.rows["model"][row], table.labels["model"]
                wanted = None if code < 0 else {"code": code, "id": label.ids[code], "name": label.names[code]}
                assert about_photo["labels"]["model"] == wanted and ("box" in about_photo) == (row != 5)
                assert (about_photo["labels"]["speed"] is None) == (row % 4 == 0)
                seen.append(row)
    assert sorted(seen) == list(range(NUM))


@pytest.mark.parametrize("photos", ["original", "shrunk", "decoded"])
def test_a_pack_is_split_as_its_source(photos, table, tmp_path):
    packed = pack_small(table, tmp_path / "pack", form(photos))
    for keep_groups in (True, False):
        ours, theirs = (stratified_split(t, (0.5, 0.3, 0.2), 3, keep_groups).rows["split"] for t in (packed, table))
        assert ours.equals(theirs)
    assert ours[1] == ours[2]  # equal bytes, other groups


def test_the_same_photos_make_the_same_bytes_with_any_number_of_threads(table, tmp_path):
    one, other = (pack_small(table, tmp_path / name, form("shrunk"), n) for name, n in (("a", 0), ("b", 2)))
    assert one.shards.all == other.shards.all
    assert (tmp_path / "a" / "table.parquet").read_bytes() == (tmp_path / "b" / "table.parquet").read_bytes()


def test_shrunk_photos_have_the_short_side_and_boxes_in_their_pixels(table, tmp_path):
    red_above_blue = Image.new("RGB", (60, 120), "red")
    red_above_blue.paste("blue", (0, 60, 60, 120))
    (table.root / "turned.jpg").write_bytes(turned(red_above_blue, 6, "JPEG"))
    rows = pd.concat([table.rows, table.rows.iloc[[1]].assign(path="turned.jpg")], ignore_index=True)
    rows.loc[NUM, BOX] = [10, 20, 40, 100]  # of the upright photo, 60 x 120
    packed = pack_small(replace(table, rows=rows), tmp_path / "pack", form("shrunk", 24))
    for row in (0, 1, 39, NUM):
        with open_image(packed.photo(row)) as image, open_image(table.root / rows["path"][row]) as original:
            width, height = original.size if row < NUM else (60, 120)
            assert image.format == "JPEG" and min(image.size) == 24
            assert image.size == (round(24 * width / min(width, height)), round(24 * height / min(width, height)))
            scale = np.tile(np.array(image.size) / (width, height), 2)
        expected = rows.loc[row, BOX].to_numpy(np.float32) * scale
        assert packed.rows.loc[row, BOX].to_numpy(np.float32) == pytest.approx(expected, rel=1e-5)
    assert packed.rows.loc[5, BOX].isna().all()
    with open_image(packed.photo(NUM)) as image:
        red = np.asarray(image).astype(int)[:12]  # the upper half of the upright photo
        assert (red[..., 0] > 200).mean() > 0.9 and (red[..., 2] < 60).mean() > 0.9


def test_decoded_photos_are_pixels_behind_a_short_header(table, tmp_path):
    packed = pack_small(table, tmp_path / "pack", form("decoded", 100))
    for row in (0, 1):
        with Image.open(table.root / table.rows["path"][row]) as image:
            pixels = np.asarray(image.convert("RGB"))
        head = f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode()
        assert packed.packed.read(row) == head + pixels.tobytes()
    keys = [(row, epoch) for row in range(0, NUM, 5) for epoch in (-1, 0)]  # PNG: the same decoder
    assert photos_of(packed)[keys]["images"].equal(photos_of(table)[keys]["images"])


@pytest.mark.parametrize("how", ["skip", "blank"])
def test_unreadable_photos_are_treated_as_on_bad_image_says(how, table, tmp_path):
    bad, folder = table.rows["path"][7], tmp_path / "pack"
    (table.root / bad).write_bytes((table.root / bad).read_bytes()[:-400])
    with pytest.raises(InputError, match=r"é7.JPEG: can't be decoded .*truncated.*data.on_bad_image=skip"):
        pack_small(table, folder)
    with pytest.raises(InputError, match=r"the pack in .* is not finished"):
        read_packed(folder)
    packed = pack_small(table, folder, form(on_bad_image=how))  # resumes
    assert pd.read_csv(folder / "bad_images.csv")["path"].tolist() == [bad]
    if how == "skip":
        assert_same_table(packed, table.select(np.arange(NUM) != 7))
    else:
        with open_image(packed.photo(7)) as image:
            assert (np.asarray(image) == BLANK).all()
        assert packed.rows.loc[7, BOX].isna().all() and packed.rows["path"].equals(table.rows["path"])


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def times(folder) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*.tar"))}


def test_complete_shards_are_kept_and_others_and_changed_photos_packed_again(table, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("carvision"), "propagate", True)  # which a run in this process turns off
    folder = tmp_path / "pack"
    first = pack_small(table, folder)
    content = contents(folder)
    before = times(folder)
    names = list(before)
    damage(folder / names[1], first.rows["_offset"][first.rows["_shard"] == 1].iloc[0] + 50)
    (folder / names[2]).unlink()
    (folder / "packing" / names[3].replace(".tar", ".json")).write_text('{"bytes"')
    (folder / f"{names[4]}.partial").write_bytes(b"written before a kill")
    (folder / "pack.json").unlink()
    pack_small(table, folder)
    assert contents(folder) == content
    assert [name for name, when in times(folder).items() if when != before[name]] == names[1:4]
    assert f"{names[1]} is packed again: 1 of its" in caplog.text
    before = times(folder)
    Image.new("RGB", (50, 50), "red").save(table.root / table.rows["path"][1])
    packed = pack_small(table, folder)
    changed = [name for name, when in times(folder).items() if when != before[name]]
    assert changed == [packed.shards.all[packed.rows["_shard"][1]].name]
    assert read_packed(folder).photo(1).read() == (table.root / table.rows["path"][1]).read_bytes()


def test_foreign_files_other_options_or_photos_and_two_commands_are_refused(table, tmp_path, monkeypatch):
    folder = tmp_path / "pack"
    (folder / "packing").mkdir(parents=True)
    (folder / "packing" / "notes.json").write_text("mine")
    with pytest.raises(InputError, match=r"pack holds something else \(packing/notes\.json\); give a new folder"):
        pack_small(table, folder)
    (folder / "packing" / "notes.json").unlink()
    pack_small(table, folder)
    (folder / "pack.json").unlink()
    (folder / "film.mkv.partial").write_text("mine")
    pack_small(table, folder)
    assert (folder / "pack.json").is_file() and (folder / "film.mkv.partial").read_text() == "mine"
    pack_small(table, folder, form(short_side_px=99))  # which does not apply to original photos
    with pytest.raises(InputError, match=r"holds another pack.*photos=original became shrunk"):
        pack_small(table, folder, form("shrunk"))
    split = table.rows["split"].to_numpy().copy()
    split[4] = "val"
    with pytest.raises(InputError, match="the photos, their labels or splits are others"):
        pack_small(table.with_split(split), folder)
    monkeypatch.setattr(locks.fcntl, "lockf", Mock(side_effect=BlockingIOError))
    with pytest.raises(InputError, match="another process is packing into"):
        pack_small(table, folder)


def test_a_disk_that_is_too_small_or_becomes_full(table, tmp_path, monkeypatch):
    folder = tmp_path / "pack"
    monkeypatch.setattr(write.shutil, "disk_usage", lambda folder: Mock(free=50_000))
    with pytest.raises(InputError, match=r"0 MB free, and the shards .* need about 0 MB"):
        pack_small(table, folder)
    assert not list(folder.glob("*.tar"))
    monkeypatch.undo()
    results = iter([write.write_shard] * 3)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(write, "write_shard", lambda *arguments: next(results, full)(*arguments))
    with pytest.raises(InputError, match="no space is left on its disk; fix that, and run the same command again"):
        pack_small(table, folder)
    monkeypatch.undo()
    before = times(folder)
    assert_same_table(pack_small(table, folder), table)
    assert len(before) == 3 and before.items() <= times(folder).items()


@pytest.mark.slow
def test_after_a_kill_the_same_command_keeps_complete_shards_and_writes_the_others(run_forked, tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 150, "ash": 150})
    command = ["carvision.pack", "data=folder", "data.root=photos", "shard_mb=0.01", "num_workers=1"]
    run_forked(*command, "out=whole", check=0)
    pack, whole = tmp_path / "pack", tmp_path / "whole"
    killed = forked.start(*command, "out=pack", cwd=tmp_path, out=tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list(pack.glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    kept = {file: file.stat().st_mtime_ns for file in (pack / "packing").glob("unsplit*.json")}
    assert len(kept) < len(list(whole.glob("*.tar"))) and not (pack / "pack.json").exists()
    assert f"{len(kept)} of " in run_forked(*command, "out=pack", check=0).stderr
    assert contents(pack) == contents(whole)
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())


def test_verify_names_the_damaged_shard(run_forked, tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    overrides = ["data=folder", "data.root=photos", "data.split.kind=stratified", "shard_mb=0.01", "num_workers=0"]
    done = run_forked("carvision.pack", *overrides, "out=pack", check=0)
    assert done.stdout.startswith("24 photos, ") and done.stdout.splitlines()[-1] == "pack: pack"
    verify = ["carvision.pack", "verify=pack", "num_workers=0"]
    assert run_forked(*verify, check=0).stdout.startswith("All shards are whole")
    shard = tmp_path / "pack" / "val-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    done = run_forked(*verify, check=1)
    assert done.stdout.startswith(f"val-00000.tar: it has {shard.stat().st_size:,} bytes instead of")
