"""Packs as they are read: photos and their order are those of the files, and damage is named."""

import functools
import json

import numpy as np
import pandas as pd
import pytest

from carvision.data.health import scan_photos
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.packs.index import read_packed
from carvision.data.packs.read import windowed_order
from carvision.data.packs.write import verify_pack
from carvision.data.table import LOCATION, Table
from carvision.errors import InputError
from tests.data.packs.small import NUM, change_index, damage, pack_small, photos_of, write_photos


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Table:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def folder(source, tmp_path):
    pack_small(source, tmp_path / "pack")
    return tmp_path / "pack"


def test_a_damaged_photo_is_named_with_its_shard_wherever_it_is_met(folder):
    table = read_packed(folder)
    before = photos_of(table)
    assert before[[(7, 0)]]["reasons"] == [None]
    photo = table.photo(7)
    name = table.shards.all[photo.shard].name
    damage(folder / name, photo.offset + photo.length // 2)
    assert "damaged in" not in (before[[(7, 1)]]["reasons"][0] or "")  # compared only once
    _, reason, _ = photos_of(table)[[(6, 0), (7, 0), (8, 0)]]["reasons"]
    assert reason.startswith(f"damaged in {name}; the command that packed it writes")
    scan = scan_photos(table, False, 0)
    assert scan["detail"].str.startswith(f"damaged in {name}").tolist() == [i == 7 for i in range(NUM)]
    photos = (table.rows["_shard"] == photo.shard).sum()
    assert verify_pack(folder, 0) == {name: f"1 of its {photos} photos are damaged (first: {table.rows['path'][7]})"}
    damage(folder / name, photo.offset + photo.length // 2)
    damage(folder / name, 5)  # of the first member's name
    assert verify_pack(folder, 0) == {name: "its bytes differ from those that were packed, though not in a photo"}


@pytest.mark.parametrize(("keep", "what"), [(-700, "has .* bytes instead of"), (None, "is missing")])
def test_an_incomplete_shard_is_named_before_training(keep, what, folder):
    file = folder / "train-00001.tar"
    content = file.read_bytes()
    file.write_bytes(content[:keep]) if keep else file.unlink()
    with pytest.raises(InputError, match=rf"1 of the \d+ shards of {folder} are damaged .*train-00001.tar {what}"):
        read_packed(folder)
    assert set(verify_pack(folder, 0)) == {file.name}
    partial = read_packed(folder, allow_missing=True)
    assert 0 < NUM - len(partial) < 12
    assert file.name not in {partial.shards.all[shard].name for shard in partial.rows["_shard"]}


def test_an_index_is_checked_before_anything_is_read_by_it(folder):
    whole = (folder / "pack.json").read_text()
    for key, value, message in (
        ("format", 2, "format 2, and this carvision reads 1"),
        ("table.sha256", "0" * 64, "table.parquet of .* is damaged, or belongs to another pack.json"),
        ("photos", {"train": 10**7}, "more than the shards have room for"),
        ("shards.0.name", "../x.tar", "a name such as train-00000.tar"),
        ("heads", ["other"], "'other' is not one of its labels"),
        ("labels.model.ids", ["7", "7", "9"], "not one name for each of its different ids"),
        ("labels.model.parent_codes", [0, 0, 9], "parent_codes"),
    ):
        index = json.loads(whole)
        *above, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
        functools.reduce(lambda inner, part: inner[part], above, index)[last] = value
        (folder / "pack.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=f"^data.root: .*{message}") as error:
            read_packed(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 800
    for content in ("{", "7", '{"format": 1}'):
        (folder / "pack.json").write_text(content)
        with pytest.raises(InputError, match=r"data.root: .*pack.json"):
            read_packed(folder)


@pytest.mark.parametrize("column, value", [("_shard", -1), ("_offset", 2**62), ("_crc32", 0.5), ("path", 3)])
def test_photos_outside_their_shards_and_columns_of_other_types_are_refused(folder, column, value):
    rows = pd.read_parquet(folder / "table.parquet").astype({column: object})
    rows.loc[3, column] = value
    rows = rows.astype({"path": str}) if column != "path" else rows.assign(path=range(len(rows)))
    (folder / "table.parquet").write_bytes(rows.infer_objects().to_parquet())
    change_index(folder)
    with pytest.raises(InputError) as error:
        read_packed(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_with_a_window_of_shards_each_photo_comes_once_in_an_order_of_seed_and_epoch(world_size, folder):
    packed = photos_of(read_packed(folder, window=2)).packed
    options = {"seed": 1, "world_size": world_size, "packed": packed}
    orders = [TrainSampler(np.zeros(NUM), 4, rank=rank, **options) for rank in range(world_size)]
    shares = [[row for batch in order for row, _ in batch] for order in orders]
    assert len({len(share) for share in shares}) == 1
    together = [row for rows in zip(*shares, strict=True) for row in rows]
    assert sorted(together[:NUM]) == list(range(NUM))
    assert np.array_equal(orders[0].rows(0), TrainSampler(np.zeros(NUM), 4, **options).rows(0))
    assert not np.array_equal(orders[0].rows(0), orders[0].rows(1))
    orders[0].start = 1  # as a run that resumes inside an epoch
    assert [row for batch in orders[0] for row, _ in batch] == shares[0][4:]
    orders = [TableSampler(NUM, 4, rank, world_size, packed.shard_by_shard()) for rank in range(world_size)]
    shares = [[row for batch in order for row, _ in batch if row >= 0] for order in orders]
    assert sorted(np.concatenate(shares)) == list(range(NUM))  # validation reads shard by shard
    assert all((np.diff(packed.shard[share]) >= 0).all() for share in shares)


@pytest.mark.parametrize("window", [1, 3, 10])
def test_about_as_many_shards_as_the_window_are_open_at_a_time(window):
    shard = np.repeat(np.arange(5, 45), 100)  # 40 shards of 100 photos
    order = windowed_order(shard, window, np.random.default_rng((0, 0)))
    assert sorted(order) == list(range(len(shard)))
    positions = [np.flatnonzero(shard[order] == number) for number in range(5, 45)]
    first, last = (np.array([function(each) for each in positions]) for function in (min, max))
    open_at = [((first <= moment) & (last >= moment)).sum() for moment in range(0, len(shard), 50)]
    assert max(open_at) <= window + 1 and np.median(open_at) >= window
    assert not np.array_equal(np.argsort(first), np.arange(40))  # shards are shuffled, and photos of each spread
    assert np.mean([np.diff(each).max() for each in positions]) < 12 * window


def test_a_table_that_unpacks_to_gigabytes_is_refused(folder):
    shards = json.loads((folder / "pack.json").read_text())["shards"]
    rows = pd.read_parquet(folder / "table.parquet")
    many = pd.concat([rows] * 3_000, ignore_index=True).assign(path="a.jpg", **dict.fromkeys(LOCATION, 0))
    for table, words in (
        (rows.assign(path="a" * 10_000), "a path of more than 5,000 bytes"),
        (many, "bytes that unpack to"),
    ):
        table.to_parquet(folder / "table.parquet", compression="zstd", index=False)
        change_index(folder, photos={"train": len(table)}, shards=[shard | {"bytes": 2**30} for shard in shards])
        with pytest.raises(InputError, match=words):
            read_packed(folder)
