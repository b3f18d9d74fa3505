"""Pack a Table's photos into shards with several threads, resume after any interruption, and verify a pack."""

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carvision.config.validators import mapping_of, whole
from carvision.data.images import BadImage, none_usable, read_file
from carvision.data.packs.index import INDEX, NO_SPLIT, STATE, TABLE, read_index, shards_of, write_index
from carvision.data.packs.read import PackedPhoto, Shard, ShardEntry, Shards, find_damage
from carvision.data.packs.shard import (
    BLOCK,
    NO_BOX,
    PackOptions,
    ShardRecord,
    encode,
    encode_photo,
    read_record,
    short_digest,
    write_shard,
)
from carvision.data.table import BOX, LOCATION, SOURCE, SPLITS, UNKNOWN, Classes, Table
from carvision.data.threads import InThreads
from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, create_folder, write_csv, write_json
from carvision.files.folders import LOCK
from carvision.files.locks import lock_folder
from carvision.files.progress import show_bar

log = logging.getLogger(__name__)

BAD = "bad_images.csv"
PLAN = "plan.json"
NUM_SAMPLES = 32  # photos that are encoded to estimate the size of the pack
OVERHEAD = 3 * BLOCK  # approximate bytes of a photo in a shard besides its own: two headers, and the labels


@dataclass(frozen=True)
class Plan:
    """The distribution of photos over shards.

    names: of the shards. rows: of each shard, int (photos in it,). sizes: bytes of each photo's file, int64 (photos,).
    mean: bytes that a photo takes in a shard, estimated.
    """

    names: list[str]
    rows: list[np.ndarray]
    sizes: np.ndarray
    mean: float

    def source(self, shard: int) -> int:
        """Return a digest of the sizes of a shard's original files."""
        return short_digest(self.sizes[self.rows[shard]].tobytes())


def pack(table: Table, options: PackOptions, shard_mb: float, folder: Path, num_workers: int) -> Table:
    """Write the photos and the table into the folder, or complete what an earlier, equal call has written there.

    Return the table of the pack, without unreadable photos if options.on_bad_image is skip. The shards of a split hold
    random photos of it, in the order of a hash of their paths, so that a window of shards shows all classes. Raises
    InputError if another process packs there, the folder holds something else, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _earlier_plan(folder)  # refuses a folder of something else, before a lock is written there
        with lock_folder(folder, f"out: another process is packing into {folder} now; wait for it, or give another"):
            return _pack(table, options, shard_mb, folder, num_workers)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space is left on its disk" if full else f"can't be written ({error.strerror or error})"
        raise InputError(f"out: {folder}: {what}; fix that, and run the same command again") from None


def _pack(table: Table, options: PackOptions, shard_mb: float, folder: Path, num_workers: int) -> Table:
    wanted = {**options._asdict(), "shard_mb": shard_mb, "num_photos": len(table), "table": digest_of(table)}
    unused = {"original": ("short_side_px", "jpeg_quality"), "decoded": ("jpeg_quality",)}
    for key in ("on_bad_image", *unused.get(options.photos, ())):
        del wanted[key]
    create_folder(folder / STATE)
    earlier = _earlier_plan(folder)
    changed = [f"{key}={earlier.get(key)} became {value}" for key, value in wanted.items() if earlier.get(key) != value]
    if earlier and changed:
        if changed[-1].startswith("table="):
            changed[-1] = "the photos, their labels or splits are others"
        raise InputError(
            f"out: {folder} holds another pack, or its beginning: {'; '.join(changed)}. Give the same values to "
            "complete it, or another folder"
        )
    plan = _plan(table, options, shard_mb, earlier.get("num_shards"))
    if not earlier:
        num_shards = Counter(name.rpartition("-")[0] for name in plan.names)
        write_json(folder / STATE / PLAN, {**wanted, "num_shards": num_shards})
    records = _intact_records(table, plan, options, folder, num_workers)
    missing = [i for i in range(len(plan.names)) if i not in records]
    _require_space(folder, plan, missing)
    if missing:
        (folder / INDEX).unlink(missing_ok=True)  # the pack is incomplete now
    if records:
        log.info("%d of %d shards are complete", len(records), len(plan.names))
    tasks = ((*photo, options) for i in missing for photo in _photos(table, plan.rows[i]))
    with (
        show_bar("packing photos", sum(len(plan.rows[i]) for i in missing)) as advance,
        contextlib.closing(InThreads(encode, tasks, num_workers)) as encoded,
    ):
        for i in missing:
            name, number = plan.names[i], len(plan.rows[i])
            photos = itertools.islice(encoded, number)
            records[i] = write_shard(folder / name, _record_file(folder, name), photos, options, plan.source(i))
            advance(number)
    if damaged := _damaged(folder, plan, {i: records[i] for i in missing}, table, num_workers):
        name, problem = next(iter(damaged.items()))
        raise InputError(
            f"out: {len(damaged)} shards are damaged just after they were written (first: {name}: {problem}); the "
            f"disk of {folder} or the memory fails"
        )
    return _finish(table, plan, [records[i] for i in range(len(plan.names))], folder, wanted)


def digest_of(table: Table) -> str:
    """Return a digest of the photos' paths, labels and splits, which does not depend on the table's root."""
    columns = ["path", "split", *table.labels, *(BOX if table.has_boxes else [])]
    columns += ["group"] if "group" in table.rows else []
    digest = sha256(json.dumps([[name, repr(label)] for name, label in table.labels.items()]).encode())
    for name in columns:
        digest.update(table.rows[name].to_csv(index=False).encode())
    return digest.hexdigest()


def _earlier_plan(folder: Path) -> dict:
    """Return the plan of an earlier start, {} if there is none. Raises InputError if the folder holds anything else."""
    file = folder / STATE / PLAN
    if not file.is_file():
        inside = {path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *(folder / STATE).glob("*"))}
        if foreign := inside - {LOCK, STATE, f"{STATE}/{PLAN}{PARTIAL}"}:
            raise InputError(f"out: {folder} holds something else ({min(foreign)}); give a new folder")
        return {}
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if mapping_of(whole(1))(earlier["num_shards"]) or not earlier["num_shards"].keys() <= {*SPLITS, NO_SPLIT}:
            raise ValueError("num_shards are not numbers of shards by split")
        return earlier
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"out: {file} is damaged ({one_line(error)}); give another folder") from None


def _plan(table: Table, options: PackOptions, shard_mb: float, num_shards: dict[str, int] | None) -> Plan:
    """Distribute the photos over shards. num_shards: of each split, as an earlier start has determined it."""
    sizes = np.fromiter((_size(table.photo(row)) for row in range(len(table))), np.int64, len(table))
    split = table.rows["split"].replace("", NO_SPLIT).to_numpy()
    order = np.argsort([sha256(path.encode()).digest() for path in table.rows["path"]], kind="stable")
    as_files = options.photos == "original"
    mean = OVERHEAD + (sizes.mean() if as_files else _mean_bytes(table, options, order[:NUM_SAMPLES]))
    if num_shards is None:
        counts = {name: (split == name).sum() for name in (*SPLITS, NO_SPLIT)}
        num_shards = {name: max(1, round(n * mean / (shard_mb * 1e6))) for name, n in counts.items() if n}
    names, rows = [], []
    for name, number in num_shards.items():
        of_split = order[split[order] == name]
        rows += np.array_split(of_split, min(number, len(of_split)))
        names += [f"{name}-{i:05d}.tar" for i in range(len(rows) - len(names))]
    return Plan(names, rows, sizes, mean)


def _size(photo: str | PackedPhoto) -> int:
    """Return the photo's size in bytes; -1 for an unreadable file, which is reported when it is packed."""
    if isinstance(photo, PackedPhoto):
        return photo.length
    try:
        return os.stat(photo).st_size  # noqa: PTH116  for a million photos, building Path objects would take seconds
    except OSError:
        return -1


def _mean_bytes(table: Table, options: PackOptions, rows: np.ndarray) -> float:
    """Return the mean size of these photos as they will be packed, without unreadable ones."""
    boxes, lengths = _boxes(table), []
    for row in rows:
        with contextlib.suppress(BadImage):
            lengths.append(len(encode_photo(read_file(table.photo(row)), boxes[row], options)[0]))
    return float(np.mean(lengths)) if lengths else 1e5


def _intact_records(
    table: Table, plan: Plan, options: PackOptions, folder: Path, num_workers: int
) -> dict[int, ShardRecord]:
    """Return the records of the shards that an earlier start has written and that are still valid; log the others."""
    records = {}
    for i, name in enumerate(plan.names):
        record = read_record(_record_file(folder, name))
        if record is None:
            continue
        if record.source != plan.source(i):
            log.warning("%s is packed again, as some of its photos' files have changed", name)
        elif not record.bad or record.on_bad_image == options.on_bad_image:
            records[i] = record
    for name, problem in _damaged(folder, plan, records, table, num_workers).items():
        log.warning("%s is packed again: %s", name, problem)
        del records[plan.names.index(name)]
    return records


def _damaged(
    folder: Path, plan: Plan, records: dict[int, ShardRecord], table: Table, num_workers: int
) -> dict[str, str]:
    """Return {name: problem} of the damaged ones of these shards."""
    paths = table.rows["path"].to_numpy(dtype=object)
    shards = [Shard(plan.names[i], record.bytes, record.sha256) for i, record in records.items()]
    entries = ([(paths[p.row], p.offset, p.length, p.crc32) for p in record.photos] for record in records.values())
    return _find_damage(folder, shards, entries, num_workers)


def _require_space(folder: Path, plan: Plan, missing: list[int]) -> None:
    needed_mb = sum(len(plan.rows[i]) for i in missing) * plan.mean / 1e6
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < 1.02 * needed_mb:
        raise InputError(
            f"out: {folder} has {free_mb:,.0f} MB free, and the shards to be written need about {needed_mb:,.0f} MB; "
            "free some, choose another disk with out=, or pack with photos=shrunk"
        )


def _photos(table: Table, rows: np.ndarray) -> list[tuple]:
    """Return the arguments of `encode` for these rows, without the options."""
    labels: dict[str, list[Any]] = {name: [None] * len(rows) for name in table.labels}
    for name, label in table.labels.items():
        for i, value in enumerate(table.rows[name].to_numpy()[rows].tolist()):
            if not isinstance(label, Classes):
                labels[name][i] = None if value != value else value  # JSON has no NaN
            elif value != UNKNOWN:
                labels[name][i] = {"code": value, "id": label.ids[value], "name": label.names[value]}
    paths, splits, boxes = table.rows["path"].to_numpy(), table.rows["split"].to_numpy(), _boxes(table)
    return [
        (row, table.photo(row), tuple(boxes[row].tolist()), {
            "path": paths[row], "split": splits[row], "labels": {name: values[i] for name, values in labels.items()},
        })
        for i, row in enumerate(rows.tolist())
    ]  # fmt: skip


def _boxes(table: Table) -> np.ndarray:
    return table.rows[BOX].to_numpy(np.float32) if table.has_boxes else np.full((len(table), 4), NO_BOX, np.float32)


def _record_file(folder: Path, name: str) -> Path:
    return folder / STATE / name.replace(".tar", ".json")


def _finish(table: Table, plan: Plan, records: list[ShardRecord], folder: Path, wanted: dict) -> Table:
    """Check that every photo is packed or reported as bad, write the index, and return the pack's table."""
    photos = pd.DataFrame(
        [(p.row, i, p.offset, p.length, p.crc32, p.source, *p.box) for i, r in enumerate(records) for p in r.photos],
        columns=["row", *LOCATION, SOURCE, *BOX],
    ).sort_values("row", ignore_index=True)
    bad = {row: reason for record in records for row, reason in record.bad.items()}
    for split, of_split in table.rows.groupby("split"):
        if set(of_split.index) <= set(bad):
            first = of_split.index[0]
            raise none_usable(str(split) or NO_SPLIT, len(of_split), of_split["path"].iloc[0], bad[first])
    left_out = set(table.rows.index) - set(photos["row"])
    if photos["row"].duplicated().any() or not left_out <= set(bad):
        raise InputError(f"out: {folder / STATE} does not fit the photos; give a new folder")
    rows = table.rows.iloc[photos["row"]].reset_index(drop=True)
    rows[[*LOCATION, SOURCE]] = photos[[*LOCATION, SOURCE]]
    if table.has_boxes:
        rows[BOX] = photos[BOX].astype(np.float32)
    if bad:
        paths, first = table.rows["path"], min(bad)
        write_csv(folder / BAD, pd.DataFrame({"path": paths.iloc[np.array(list(bad))], "reason": list(bad.values())}))
        log.warning(
            "%d photos can't be read (%d of them left out; first: %s: %s); all are in %s",
            len(bad), len(left_out), paths.iloc[first], bad[first], folder / BAD,
        )  # fmt: skip
    for name in (*plan.names, TABLE, INDEX, BAD):
        (folder / f"{name}{PARTIAL}").unlink(missing_ok=True)
    shards = tuple(Shard(name, record.bytes, record.sha256) for name, record in zip(plan.names, records, strict=True))
    packed = replace(table, root=folder, rows=rows, shards=Shards(str(folder), shards))
    write_index(packed, wanted)
    return packed


def verify_pack(folder: Path, num_workers: int) -> dict[str, str]:
    """Read a pack, and return {name: problem} of its damaged shards. num_workers: threads; 0: this one.

    Raises InputError if pack.json or table.parquet is damaged.
    """
    table = read_index(folder)
    shards = shards_of(table).all
    of_shard = dict(iter(table.rows.groupby(LOCATION[0])))
    entries = (of_shard[i][["path", *LOCATION[1:]]].itertuples(index=False, name=None) for i in range(len(shards)))
    return _find_damage(folder, shards, map(list, entries), num_workers)


def _find_damage(
    folder: Path, shards: Sequence[Shard], entries: Iterable[list[ShardEntry]], num_workers: int
) -> dict[str, str]:
    """Return {name: problem} of the damaged shards. entries: of each shard, in the same order."""
    tasks = ((folder, shard, inside) for shard, inside in zip(shards, entries, strict=True))
    found = {}
    with (
        show_bar("verifying shards", len(shards)) as advance,
        contextlib.closing(InThreads(find_damage, tasks, min(num_workers, len(shards)))) as results,
    ):
        for shard, problem in zip(shards, results, strict=True):
            found |= {shard.name: problem} if problem else {}
            advance(1)
    return found
