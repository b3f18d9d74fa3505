"""Write and read a pack's index: the Table of the packed data set, and what is needed to trust its files.

pack.json               classes of the labels, size and SHA-256 of every file, how it was packed; written last
table.parquet           a row per photo: path, labels, split, box, group; shard, offset, length and checksum
train-00000.tar ...     the photos, and their labels once more for other programs; also val, test, unsplit
packing/                what carvision.pack needs to resume or to repair a pack; not needed for reading it
"""

import hashlib
import io
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow.compute
import pyarrow.parquet

from carvision.config import validators as allow
from carvision.config.validators import MAX_JSON_BYTES, check_parent, parse_json
from carvision.data.packs.read import Shard, Shards
from carvision.data.packs.remote import NUM_AHEAD, Cache, fetch, fetch_text, is_url
from carvision.data.readers.disk import existing_root
from carvision.data.table import BOX, LOCATION, SOURCE, SPLITS, Classes, Number, Table, validate
from carvision.errors import InputError, one_line
from carvision.files.atomic import atomic_file, write_json
from carvision.files.folders import cache_folder

log = logging.getLogger(__name__)

INDEX, TABLE = "pack.json", "table.parquet"
STATE = "packing"
NO_SPLIT = "unsplit"  # photos that the data set's own split leaves out
FORMAT = 1
HINT = "Give the folder that carvision pack has written, or a URL of it"

# What pack.json may hold. Behind a URL it may come from anybody, and it decides what is read, and written where.
_sha256 = allow.matching("[0-9a-f]{64}", "a SHA-256 as 64 hexadecimal digits")
_shard_name = allow.matching(r"[a-z]{1,20}-\d{5,9}\.tar", "a name such as train-00000.tar")
_texts, _any_text = allow.list_of(allow.text), allow.matching("(?s).*", "a text")
_parent = {"parent": allow.optional(allow.text), "parent_codes": allow.list_of(allow.whole(0))}
_classes = allow.record(ids=_texts, names=allow.list_of(_any_text), **_parent)
FIELDS: dict[str, allow.Check] = {
    "name": allow.text,
    "photos": allow.mapping_of(allow.whole(1, 2**40)),
    "finest": allow.text,
    "heads": _texts,
    "labels": allow.mapping_of(allow.either(_classes, allow.record(unit=_any_text))),
    "table": allow.record(bytes=allow.whole(1, 2**31), sha256=_sha256),
    "shards": allow.list_of(allow.record(name=_shard_name, bytes=allow.whole(1, 2**40), sha256=_sha256)),
}
# Bytes per photo in table.parquet: the four of the checksum can't be compressed, and the path is the longest text
MIN_ROW_BYTES, MAX_ROW_BYTES = 4, 5000
MIN_PHOTO_BYTES = 2 * 512  # in a shard: the headers of its two members


def write_index(table: Table, packed: dict[str, Any]) -> None:
    """Write table.parquet and then pack.json into the folder table.shards.root.

    packed: the options that the photos were packed with.
    """
    shards = shards_of(table)
    folder = Path(shards.root)
    with atomic_file(folder / TABLE) as partial:
        table.rows.to_parquet(partial, index=False)
    content = (folder / TABLE).read_bytes()
    counts = table.rows["split"].replace("", NO_SPLIT).value_counts()
    index = {
        "format": FORMAT,
        "name": table.name,
        "photos": {name: int(counts[name]) for name in sorted(counts.index)},
        "finest": table.finest,
        "heads": list(table.heads),
        "labels": {name: asdict(label) for name, label in table.labels.items()},
        "table": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "shards": [asdict(shard) for shard in shards.all],
        "packed": packed,
    }
    write_json(folder / INDEX, index)


def read_packed(
    root: Path | str | None,
    *,
    allow_missing: bool = False,
    window: int | None = None,
    cache: Path | None = None,
    cache_gb: float | None = None,
) -> Table:
    """Return the Table as it was packed: the same rows, labels, classes, boxes, groups and splits.

    root: a folder or a URL. A shard of a folder that is missing or has another size is an error; with allow_missing its
    photos are left out with a warning. window: see Shards. cache, cache_gb: for a URL, where its shards are fetched to
    (by default cache_folder()/packs), and the most of them that is kept.
    """
    if is_url(root):
        return _read_remote(str(root).rstrip("/"), window, cache or cache_folder() / "packs", cache_gb)
    folder = existing_root(root, HINT)
    table = read_index(folder, window)
    shards = shards_of(table).all
    files = (folder / shard.name for shard in shards)
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    damaged = [i for i, shard in enumerate(shards) if sizes[i] != shard.bytes]
    if not damaged:
        return table
    first, size = shards[damaged[0]], sizes[damaged[0]]
    what = "is missing" if size < 0 else f"has {size:,} bytes instead of {first.bytes:,}"
    text = f"data.root: {len(damaged)} of the {len(shards)} shards of {folder} are damaged ({first.name} {what})"
    lost = table.rows[LOCATION[0]].isin(damaged)
    if not allow_missing or lost.all():
        raise InputError(
            f"{text}. The command that packed them writes such shards again; data.allow_missing=true continues "
            f"without their {lost.sum():,} photos"
        )
    log.warning("%s; continuing without their %s photos", text, f"{lost.sum():,}")
    return table.select(~lost).without_empty_classes()


def _read_remote(url: str, window: int | None, folder: Path, cache_gb: float | None) -> Table:
    cache = Cache(folder, None if cache_gb is None else round(cache_gb * 1e9))
    index = parse_index(fetch_text(f"{url}/{INDEX}", MAX_JSON_BYTES), f"{url}/{INDEX}")
    content = fetch(url, TABLE, index["table"]["bytes"], index["table"]["sha256"], cache).read_bytes()
    table = parse_table(index, content, url, window, cache)
    shards = shards_of(table).all
    needed = sum(shard.bytes for shard in shards)
    if window is not None:
        needed = min(needed, (window + NUM_AHEAD + 1) * max(shard.bytes for shard in shards))
    if cache_gb is not None and cache_gb * 1e9 < needed:
        raise InputError(
            f"data.cache_gb: {cache_gb:g} is less than the {needed / 1e9:.3g} GB needed at a time; give more, or a "
            f"smaller data.shuffle_shards ({'all are shuffled' if window is None else window} now)"
        )
    num_cached = sum(cache.file(shard.name, shard.sha256).exists() for shard in shards)
    log.info("%s: %d of %d shards are in %s, the others are fetched as needed", url, num_cached, len(shards), folder)
    if window is None and num_cached < len(shards):
        log.info("the first batches need nearly all of them; with data.shuffle_shards=8 training starts with the first")
    return table


def read_index(folder: Path, window: int | None = None) -> Table:
    """Read the Table from pack.json and table.parquet, without looking at the shards. Raises InputError."""
    file = folder / INDEX
    if not file.is_file() and (folder / STATE).is_dir():
        raise InputError(f"data.root: the pack in {folder} is not finished; run the command that started it again")
    if not file.is_file() or not (folder / TABLE).is_file():
        raise InputError(f"data.root: {folder} is no pack, as it has no {INDEX} with {TABLE}. {HINT}")
    with file.open("rb") as opened:
        index = parse_index(opened.read(MAX_JSON_BYTES + 1), str(file))
    return parse_table(index, (folder / TABLE).read_bytes(), folder, window)


def parse_index(content: bytes, name: str) -> dict[str, Any]:
    """Parse and check pack.json: files have plain names, numbers are in range, classes are consistent.

    name: of the file, for errors. Raises InputError.
    """
    try:
        index = parse_json(content, name)
        problem = _problem_of(index)
        if not problem:
            return cast(dict, index)
    except InputError as error:
        problem = str(error).removeprefix(f"{name}: ")
    problem = one_line(problem, 300)
    raise InputError(f"data.root: {name} is not what carvision.pack writes ({problem}); pack or copy it again")


def _problem_of(index: object) -> str | None:
    """Return the first error in a pack.json, or None."""
    if not isinstance(index, dict):
        return "no mapping"
    if index.get("format") != FORMAT:
        return f"format {index.get('format')}, and this carvision reads {FORMAT}: update it"
    for key, check in FIELDS.items():
        if wrong := check(index.get(key)):
            return f"{key} is not {wrong}"
    labels, shards = index["labels"], index["shards"]
    if odd := index["photos"].keys() - {*SPLITS, NO_SPLIT}:
        return f"photos: {min(odd)!r} is no split"
    if len({shard["name"] for shard in shards}) < len(shards):
        return "shards: a name is there twice"
    if MIN_PHOTO_BYTES * sum(index["photos"].values()) > sum(shard["bytes"] for shard in shards):
        return f"photos: {sum(index['photos'].values()):,} are more than the shards have room for"
    if odd := next((name for name in (index["finest"], *index["heads"]) if name not in labels), None):
        return f"{odd!r} is not one of its labels"
    for name, label in labels.items():
        if name in ("path", "split", "group", *BOX, *LOCATION, SOURCE):  # columns that are not labels
            return f"labels: {name!r} can't be one"
        if "unit" in label:
            continue
        if not len(set(label["ids"])) == len(label["ids"]) == len(label["names"]):
            return f"labels: {name!r} has not one name for each of its different ids"
        if label["parent"] is not None and label["parent"] not in labels:
            return f"labels: {label['parent']!r}, the parent of {name!r}, is none"
        check_parent(name, label, labels)
    return None


def shards_of(table: Table) -> Shards:
    """Return the shards that hold the photos of a pack."""
    assert table.shards is not None, table.name
    return table.shards


def parse_table(
    index: dict[str, Any], content: bytes, root: Path | str, window: int | None = None, cache: Cache | None = None
) -> Table:
    """Return the Table of pack.json and the content of table.parquet. root: folder or URL of the shards.

    Raises InputError if the two are damaged or don't belong together.
    """
    if hashlib.sha256(content).hexdigest() != index["table"]["sha256"]:
        raise InputError(f"data.root: {TABLE} of {root} is damaged, or belongs to another {INDEX}; copy both again")
    try:
        rows = _read_rows(content, sum(index["photos"].values()))
        labels = {name: _label(**values) for name, values in index["labels"].items()}
        shards = tuple(Shard(**values) for values in index["shards"])
        _check_rows(rows, labels, shards)
        shards = Shards(str(root), shards, cache, window)
        return validate(Table(index["name"], root, rows, labels, index["finest"], shards, tuple(index["heads"])))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, pyarrow.ArrowException) as error:
        reason = one_line(error, 200)
        raise InputError(f"data.root: {INDEX} and {TABLE} of {root} don't fit ({reason}); pack again") from None


def _read_rows(content: bytes, num_photos: int) -> pd.DataFrame:
    """Return the rows of table.parquet. Raises ValueError if few bytes would unpack to gigabytes, or to long texts."""
    file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    metadata, schema = file.metadata, file.schema_arrow
    if metadata.num_rows != num_photos:
        raise ValueError("they have not the same number of photos")
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    max_rows = 1024 + len(content) / MIN_ROW_BYTES
    if num_photos > max_rows or unpacked > MAX_ROW_BYTES * (num_photos + 1024):
        raise ValueError(f"{len(content):,} bytes that unpack to {num_photos:,} photos of {unpacked:,} bytes")
    if odd := next((field.name for field in schema if pyarrow.types.is_nested(field.type)), None):
        raise ValueError(f"the column {odd} holds values of another kind")
    texts = [field.name for field in schema if field.type in (pyarrow.string(), pyarrow.large_string())]
    # Each different text once, until it is known that none is long: 16 rows of one text of 100 MB are a few kB
    table = pyarrow.parquet.read_table(io.BytesIO(content), read_dictionary=texts)
    compute: Any = pyarrow.compute  # which creates its functions when it is imported
    for name in texts:
        lengths = [compute.binary_length(chunk.dictionary) for chunk in table[name].chunks]
        if any((compute.max(each).as_py() or 0) > MAX_ROW_BYTES for each in lengths):
            raise ValueError(f"a {name} of more than {MAX_ROW_BYTES:,} bytes")
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pyarrow.string()))
    return table.to_pandas()


def _check_rows(rows: pd.DataFrame, labels: dict[str, Classes | Number], shards: tuple[Shard, ...]) -> None:
    """Raise ValueError if a column is of another type, or a photo does not lie within its shard."""
    kinds = {name: "i" if isinstance(label, Classes) else "f" for name, label in labels.items()}
    kinds |= dict.fromkeys((*LOCATION, SOURCE), "i") | {name: "f" for name in BOX if name in rows}
    odd = next((name for name, kind in kinds.items() if rows[name].dtype.kind != kind), None)
    if odd or not all(isinstance(value, str) for name in ("path", "split") for value in rows[name]):
        raise ValueError(f"the column {odd or 'path or split'} holds values of another kind")
    shard, offset, length, crc32 = (rows[name].to_numpy(np.int64) for name in LOCATION)
    good = (shard >= 0) & (shard < len(shards)) & (offset >= 0) & (length > 0) & (crc32 >= 0) & (crc32 < 2**32)
    good[good] &= offset[good] <= np.array([each.bytes for each in shards])[shard[good]] - length[good]
    if not good.all():
        raise ValueError(f"a photo does not lie within its shard: {rows['path'][~good].iloc[0]}")


def _label(unit: str | None = None, ids=(), names=(), parent: str | None = None, parent_codes=()) -> Classes | Number:
    return Classes(tuple(ids), tuple(names), parent, tuple(parent_codes)) if unit is None else Number(unit)
