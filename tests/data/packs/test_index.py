"""Packs as they are read: photos and their order are those of the files, and damage is named."""

import functools
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carvision.augment.mixing import Mix
from carvision.augment.pipeline import Augment
from carvision.data.build import build_table
from carvision.data.health import scan_photos
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.packs.index import read_packed
from carvision.data.packs.read import windowed_order
from carvision.data.packs.write import verify_pack
from carvision.data.table import LOCATION, Table
from carvision.errors import InputError
from carvision.reports.augment_sheet import plot_augmented
from carvision.reports.health import plot_samples
from tests.data.packs.small import NUM, change_index, form, pack_small, photos_of, write_photos


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Table:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def folder(source, tmp_path):
    pack_small(source, tmp_path / "pack")
    return tmp_path / "pack"


def damage(folder, photo) -> None:
    """Flip a bit of the photo's bytes in its shard."""
    file = folder / photo.shards.all[photo.shard].name
    content = bytearray(file.read_bytes())
    content[photo.offset + photo.length // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("crop_to_box", [False, True])
def test_items_are_those_of_the_folder(crop_to_box, source, folder):
    keys = [(row, epoch) for row in range(NUM) for epoch in (-1, 0, 3)]
    ours, theirs = (photos_of(table, crop_to_box)[keys] for table in (read_packed(folder), source))
    assert ours["bad"] == theirs["bad"] == []
    assert ours["images"].equal(theirs["images"]) and ours["draws"].equal(theirs["draws"])
    assert all(np.array_equal(ours["targets"][k], theirs["targets"][k], equal_nan=True) for k in theirs["targets"])


def test_a_damaged_photo_is_named_with_its_shard_wherever_it_is_met(folder):
    table = read_packed(folder)
    before = photos_of(table)
    assert before[[(7, 0)]]["bad"] == []
    damage(folder, table.photo(7))
    name = table.shards.all[table.photo(7).shard].name
    assert not any("damaged in" in reason for _, reason in before[[(7, 1)]]["bad"])  # compared only once
    ((row, reason),) = photos_of(table)[[(6, 0), (7, 0), (8, 0)]]["bad"]
    assert row == 7 and reason.startswith(f"damaged in {name}; the command that packed it writes")
    scan = scan_photos(table, False, 0)
    assert scan["detail"].str.startswith(f"damaged in {name}").tolist() == [i == 7 for i in range(NUM)]
    photos = (table.rows["_shard"] == table.photo(7).shard).sum()
    path = table.rows["path"][7]
    assert verify_pack(folder, 0) == {name: f"1 of its {photos} photos are damaged (first: {path})"}


def test_damage_beside_the_photos_is_found_too(folder):
    file = folder / "train-00000.tar"
    content = bytearray(file.read_bytes())
    content[5] ^= 1  # of the first member's name
    file.write_bytes(content)
    assert verify_pack(folder, 0) == {file.name: "its bytes differ from those that were packed, though not in a photo"}


@pytest.mark.parametrize(("keep", "what"), [(-700, "has .* bytes instead of"), (None, "is missing")])
def test_an_incomplete_shard_is_named_before_training(keep, what, source, folder):
    file = folder / "train-00001.tar"
    content = file.read_bytes()
    file.write_bytes(content[:keep]) if keep else file.unlink()
    with pytest.raises(InputError, match=rf"1 of the \d+ shards of {folder} are damaged .*train-00001.tar {what}"):
        read_packed(folder)
    assert set(verify_pack(folder, 0)) == {file.name}
    partial = read_packed(folder, allow_missing=True)
    assert 0 < NUM - len(partial) < 12
    assert file.name not in {partial.shards.all[shard].name for shard in partial.rows["_shard"]}
    pack_small(source, folder)
    assert file.read_bytes() == content and len(read_packed(folder)) == NUM


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", True, "is not what carvision.pack writes"),
        ("format", 2**70, "has format"),
        ("format", 2, "format 2, and this carvision reads 1"),
        ("table.sha256", "0" * 64, "table.parquet of .* is damaged, or belongs to another pack.json"),
        ("name", ["a"], "name is not non-empty text"),
        ("photos", {"train": -1}, "photos is not"),
        ("photos", {"train": 10**7}, "more than the shards have room for"),
        ("photos", {"train": float("nan")}, "photos is not"),
        ("table.bytes", 10**12, "one whose bytes is a whole number from 1 to"),
        ("table.bytes", True, "one whose bytes is"),
        ("table.sha256", "../../x", "one whose sha256 is a SHA-256"),
        ("table.sha256", "a" * 63 + "\u0660", "one whose sha256 is a SHA-256"),
        ("shards.0.name", "../x.tar", "a name such as train-00000.tar"),
        ("shards.0.name", "/etc/train-00000.tar", "a name such as train-00000.tar"),
        ("shards.0.name", "train-00000.tar\n", "a name such as train-00000.tar"),
        ("shards.0.name", "a\0b", "a name such as train-00000.tar"),
        ("shards.0.name", "", "a name such as train-00000.tar"),
        ("shards.0.name", "train-00001.tar", "a name is there twice"),
        ("shards.0.bytes", -1, "one whose bytes is"),
        ("shards.0.bytes", 2.5, "one whose bytes is"),
        ("shards.0.sha256", 7, "one whose sha256 is"),
        ("shards.0.more", 7, "a mapping with the keys name, bytes, sha256"),
        ("shards.0", [], "a mapping with the keys name, bytes, sha256"),
        ("shards", {}, "shards is not a list"),
        ("heads", ["other"], "'other' is not one of its labels"),
        ("finest", "other", "'other' is not one of its labels"),
        ("labels.model.ids", ["7", "7", "9"], "not one name for each of its different ids"),
        ("labels.model.names", ["a"], "not one name for each of its different ids"),
        ("labels.model.parent", "other", "the parent of 'model', is none"),
        ("labels.model.parent_codes", [0, 0, 9], "parent_codes"),
        ("labels.make.parent", "make", "is above itself"),
        ("labels.path", {"unit": ""}, "'path' can't be one"),
        ("labels.model", {"unit": 3}, "labels is not"),
    ],
)
def test_an_index_is_checked_before_anything_is_read_by_it(folder, key, value, message):
    index = json.loads((folder / "pack.json").read_text())
    *above, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    functools.reduce(lambda inner, part: inner[part], above, index)[last] = value
    if key == "labels.make.parent":
        index["labels"]["make"]["parent_codes"] = [0, 1]
    (folder / "pack.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as error:
        read_packed(folder)
    text = str(error.value)
    assert re.search(message, text) and text.startswith("data.root: ") and "\n" not in text and len(text) < 800


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, "7", '{"format": 1}', '"' + "a" * 17_000_000, "[" + "0," * 1_100_000]
)
def test_json_that_is_no_index_is_refused(folder, content):
    (folder / "pack.json").write_text(content)
    with pytest.raises(InputError, match=r"data.root: .*pack.json") as error:
        read_packed(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("_shard", 10**6), ("_shard", -1), ("_offset", -1), ("_offset", 2**62), ("_length", 2**62), ("_length", 0),
        ("_crc32", -5), ("_offset", 0.5), ("path", 3), ("model", 0.5), ("model", 3), ("_length", None),
    ],
)  # fmt: skip
def test_photos_outside_their_shards_and_columns_of_other_types_are_refused(folder, column, value):
    rows = pd.read_parquet(folder / "table.parquet").astype({column: object})
    rows.loc[3, column] = value
    rows = rows.astype({"path": str}) if column != "path" else rows.assign(path=range(len(rows)))
    (folder / "table.parquet").write_bytes(rows.infer_objects().to_parquet())
    change_index(folder)
    with pytest.raises(InputError) as error:
        read_packed(folder)
    assert "\n" not in str(error.value)
    (folder / "table.parquet").write_bytes(rows[:5].drop(columns=column).to_parquet())
    change_index(folder)
    with pytest.raises(InputError, match="not the same number of photos"):
        read_packed(folder)


def test_classes_can_be_selected_and_only_shuffle_works_with_a_window(folder):
    data = {
        "name": "packed", "root": str(folder), "allow_missing": False, "classes": ["8"], "min_images_per_class": 1,
        "shuffle_shards": None, "cache": None, "cache_gb": None, "sampler": "balanced",
    }  # fmt: skip
    table = build_table(data, annotations=True)
    assert table.labels["model"].ids == ("8",) and photos_of(table)[[(0, 0)]]["bad"] == []
    for sampler in ("balanced", "per_class"):
        with pytest.raises(InputError, match=rf"data.sampler: {sampler} needs random access"):
            build_table({**data, "shuffle_shards": 2, "sampler": sampler}, annotations=True)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_with_a_window_of_shards_each_photo_comes_once_in_an_order_of_seed_and_epoch(world_size, folder):
    packed = photos_of(read_packed(folder, window=2)).packed
    orders = [
        TrainSampler(np.zeros(NUM), 4, seed=1, rank=r, world_size=world_size, packed=packed) for r in range(world_size)
    ]
    shares = [[row for batch in order for row, _ in batch] for order in orders]
    assert len({len(share) for share in shares}) == 1
    together = [row for rows in zip(*shares, strict=True) for row in rows]
    assert sorted(together[:NUM]) == list(range(NUM))
    again = TrainSampler(np.zeros(NUM), 4, seed=1, world_size=world_size, packed=packed)
    assert np.array_equal(orders[0].rows(0), again.rows(0))
    assert not np.array_equal(orders[0].rows(0), orders[0].rows(1))
    orders[0].start = 1  # as a run that resumes inside an epoch
    assert [row for batch in orders[0] for row, _ in batch] == shares[0][4:]


@pytest.mark.parametrize("window", [1, 3, 10])
def test_about_as_many_shards_as_the_window_are_open_at_a_time(window):
    shard = np.repeat(np.arange(5, 45), 100)  # 40 shards of 100 photos
    order = windowed_order(shard, window, np.random.default_rng((0, 0)))
    assert sorted(order) == list(range(len(shard)))
    positions = [np.flatnonzero(shard[order] == number) for number in range(5, 45)]
    first, last = (np.array([function(each) for each in positions]) for function in (min, max))
    open_at = [((first <= moment) & (last >= moment)).sum() for moment in range(0, len(shard), 50)]
    assert max(open_at) <= window + 1
    assert np.median(open_at) >= window
    assert not np.array_equal(np.argsort(first), np.arange(40))  # shards are shuffled
    assert np.mean([np.diff(each).max() for each in positions]) < 12 * window  # photos are spread over the window,
    assert any((np.diff(order[each]) < 0).any() for each in positions)  # and shuffled


def test_validation_reads_shard_by_shard_if_there_is_a_window(folder):
    packed = photos_of(read_packed(folder, window=2)).packed
    orders = [TableSampler(NUM, 4, rank, 2, packed.shard_by_shard()) for rank in range(2)]
    rows = [[row for batch in order for row, _ in batch if row >= 0] for order in orders]
    assert sorted(rows[0] + rows[1]) == list(range(NUM))
    assert all((np.diff(packed.shard[share]) >= 0).all() for share in rows)


def test_decoded_photos_give_the_pictures_of_the_originals(source, tmp_path):
    decoded = pack_small(source, tmp_path / "pack", form("decoded", 1000))
    keys = [(row, epoch) for row in range(0, NUM, 5) for epoch in (-1, 0)]  # PNG: the same decoder
    assert photos_of(decoded)[keys]["images"].equal(photos_of(source)[keys]["images"])


def test_reports_show_packed_photos_as_they_show_files(source, folder, tmp_path):
    augment = Augment([], {}), Mix(0, 0, 0)
    for name, table in (("theirs", source), ("ours", read_packed(folder))):
        plot_samples(table, "model", [0, 1, 2], tmp_path / f"{name}_samples.png", num_per_class=3)
        sheet = tmp_path / f"{name}_sheet.png"
        plot_augmented(photos_of(table), table, *augment, "none", sheet, num_photos=3, num_versions=2)
    for what in ("samples", "sheet"):
        assert (tmp_path / f"ours_{what}.png").read_bytes() == (tmp_path / f"theirs_{what}.png").read_bytes()


def test_a_table_that_unpacks_to_gigabytes_is_refused(folder):
    shards = json.loads((folder / "pack.json").read_text())["shards"]
    rows = pd.read_parquet(folder / "table.parquet")
    long = rows.assign(path="a" * 10_000)
    text = pa.array(["x" * 3_000_000]).dictionary_encode()
    one = pa.Table.from_pandas(rows, preserve_index=False)
    indices = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), text.dictionary)
    repeated = one.set_column(one.column_names.index("path"), "path", indices.cast(pa.string()))
    nested = one.set_column(one.column_names.index("path"), "path", pa.array([["a"]] * len(rows)))
    many = pd.concat([rows] * 3_000, ignore_index=True).assign(path="a.jpg", **dict.fromkeys(LOCATION, 0))
    for table, count, words in (
        (pa.Table.from_pandas(long, preserve_index=False), len(rows), "a path of more than 5,000 bytes"),
        (repeated, len(rows), "a path of more than 5,000 bytes"),
        (nested, len(rows), "the column path holds values of another kind"),
        (pa.Table.from_pandas(many, preserve_index=False), len(many), "bytes that unpack to"),
    ):
        pq.write_table(table, folder / "table.parquet", compression="zstd")
        change_index(folder, photos={"train": count}, shards=[shard | {"bytes": 2**30} for shard in shards])
        with pytest.raises(InputError, match=words):
            read_packed(folder)
