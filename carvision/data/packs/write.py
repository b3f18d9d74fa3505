"""Pack a Table's photos into shards by several processes, resume after any interruption, and verify a pack."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carvision.config.validators import mapping_of, whole
from carvision.data.images import BadImage, none_usable, read_file
from carvision.data.inspection import in_processes
from carvision.data.packs.index import INDEX, STATE, TABLE, with_places, write_index
from carvision.data.packs.read import PackedPhoto, Place, Shard, Shards, look_at_shard
from carvision.data.packs.shard import BLOCK, NO_BOX, Form, Original, Part, encode, read_part, short_digest, write_shard
from carvision.data.table import BOX, PLACE, SOURCE, SPLITS, UNKNOWN, Classes, Table
from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, own_folder, write_csv, write_json
from carvision.files.folders import LOCK
from carvision.files.locks import lock_folder
from carvision.files.progress import show_bar

log = logging.getLogger(__name__)


# Shards compared with what is known of them: sizes, hashes, and the checksum of every photo.


def verify_pack(folder: Path, num_workers: int) -> dict[str, str]:
    """{name: problem} of the shards that are damaged. Raises InputError where pack.json or table.parquet is."""
    # Only now: pandas, which worker processes need not import
    from carvision.data.packs.index import TABLE, read_index, shards_of, table_of
    from carvision.data.table import PLACE

    table = table_of(read_index(folder), (folder / TABLE).read_bytes(), folder)
    shards = {shard.name: (shard.bytes, shard.sha256) for shard in shards_of(table).all}
    of_shard = dict(iter(table.rows.groupby(PLACE[0])))
    photos = (of_shard[i][["path", *PLACE[1:]]].itertuples(index=False, name=None) for i in range(len(shards)))
    return look_at_shards(folder, shards, map(list, photos), num_workers)


def look_at_shards(
    folder: Path, shards: Mapping[str, tuple[int, str]], photos: Iterable[list[Place]], num_workers: int
) -> dict[str, str]:
    """{name: problem} of the shards that are damaged. shards: of each its bytes and SHA-256; photos: of each, too."""
    tasks = ((folder / name, *known, places) for (name, known), places in zip(shards.items(), photos, strict=True))
    found = {}
    with (
        show_bar("verifying shards", len(shards)) as advance,
        contextlib.closing(in_processes(look_at_shard, tasks, min(num_workers, len(shards)))) as results,
    ):
        for name, problem in zip(shards, results, strict=True):
            found |= {name: problem} if problem else {}
            advance(1)
    return found


# A Table's photos into a pack: planned, written by several processes, gone on with after any end, and verified.

BAD = "bad_images.csv"
NO_SPLIT = "unsplit"  # of photos that the data set's own split leaves out
SAMPLE = 32  # photos that are encoded to know how large the pack will be
BESIDE = 3 * BLOCK  # bytes of a photo in a shard, about, besides its own: two headers, and the labels


@dataclass(frozen=True)
class Plan:
    """rows: of each shard, the rows of its photos. sizes: bytes of each photo's file. mean: bytes a photo will take."""

    names: list[str]
    rows: list[np.ndarray]
    sizes: np.ndarray
    mean: float


def pack(table: Table, form: Form, shard_mb: float, folder: Path, num_workers: int) -> Table:
    """Write the photos and the table into the folder, or go on with what an earlier start has written there of the
    same. Returns the table of the pack, without photos that can't be read where form.on_bad_image says skip.

    The shards of a split hold random photos of it, in the order of a hash of their paths, so that a window of shards
    shows all classes. Raises InputError where another process packs there, or the folder holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_strange(folder)
        lock = lock_folder(folder, f"out: another process is packing into {folder} now; wait for it, or give another")
        with contextlib.closing(lock) if lock else contextlib.nullcontext():
            return _pack(table, form, shard_mb, folder, num_workers)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space is left on its disk" if full else f"can't be written ({error.strerror or error})"
        raise InputError(f"out: {folder}: {what}; mend that, and the same command goes on") from None


def _pack(table: Table, form: Form, shard_mb: float, folder: Path, num_workers: int) -> Table:
    wanted = {**form._asdict(), "shard_mb": shard_mb, "num_photos": len(table), "table": digest_of(table)}
    unused = {"original": ("short_side_px", "jpeg_quality"), "decoded": ("jpeg_quality",)}
    for key in ("on_bad_image", *unused.get(form.photos, ())):
        del wanted[key]
    begun = _begin(folder, wanted)
    plan = _plan(table, form, shard_mb, begun.get("num_shards"))
    if not begun:
        num_shards = Counter(name.rpartition("-")[0] for name in plan.names)
        write_json(folder / STATE / "plan.json", {**wanted, "num_shards": num_shards})
    parts = _sound_parts(table, plan, form, folder, num_workers)
    missing = [i for i in range(len(plan.names)) if i not in parts]
    _require_space(folder, plan, missing)
    if missing:
        (folder / INDEX).unlink(missing_ok=True)  # it is not whole any more
    if parts:
        log.info("%d of %d shards are there and whole", len(parts), len(plan.names))
    tasks = (
        (folder / name, _part_file(folder, name), _originals(table, plan.rows[i]), form, _source(plan, i))
        for i, name in ((i, plan.names[i]) for i in missing)
    )
    with (
        show_bar("packing photos", sum(len(plan.rows[i]) for i in missing)) as advance,
        contextlib.closing(in_processes(write_shard, tasks, min(num_workers, len(missing)), ahead=2)) as results,
    ):
        for i, part in zip(missing, results, strict=True):
            parts[i] = part
            advance(len(plan.rows[i]))
    problems = _look(folder, plan, {i: parts[i] for i in missing}, table, num_workers)
    if problems:
        name, problem = next(iter(problems.items()))
        raise InputError(
            f"out: {len(problems)} shards are damaged just after they were written (first: {name}: {problem}); the "
            f"disk of {folder} or the memory fails"
        )
    return _finish(table, plan, parts, folder, wanted)


def digest_of(table: Table) -> str:
    """Of the photos, labels and splits, not of where they lie."""
    columns = ["path", "split", *table.labels, *(BOX if table.has_boxes else [])]
    columns += ["group"] if "group" in table.rows else []
    digest = sha256(json.dumps([[name, repr(label)] for name, label in table.labels.items()]).encode())
    for name in columns:
        digest.update(table.rows[name].to_csv(index=False).encode())
    return digest.hexdigest()


def _begin(folder: Path, wanted: dict) -> dict:
    """The plan of an earlier start, {} if there is none. Raises InputError where the folder holds another pack, or
    something else."""
    plan = own_folder(folder / STATE) / "plan.json"
    if plan.is_file():
        earlier = _read_plan(plan)
        changed = [
            f"{key}={earlier.get(key)} became {value}" for key, value in wanted.items() if earlier.get(key) != value
        ]
        if changed and changed[-1].startswith("table="):
            changed[-1] = "the photos, their labels or splits are others"
        if changed:
            raise InputError(
                f"out: {folder} holds another pack, or its beginning: {'; '.join(changed)}. Give the same values to "
                "go on with it, or another folder"
            )
        return earlier
    return {}


def _read_plan(plan: Path) -> dict:
    """Read the plan of an earlier start. Raises InputError where it is not what this command writes."""
    try:
        earlier = json.loads(plan.read_text(encoding="utf-8"))
        if mapping_of(whole(1))(earlier["num_shards"]) or not earlier["num_shards"].keys() <= {*SPLITS, NO_SPLIT}:
            raise ValueError("num_shards are not numbers of shards by split")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"out: {plan} is damaged ({one_line(error)}); give another folder") from None
    return earlier


def _refuse_strange(folder: Path) -> None:
    """Raise InputError where the folder holds something else than a pack, or its beginning."""
    state = folder / STATE
    if (state / "plan.json").is_file():
        _read_plan(state / "plan.json")
        return
    inside = [path for path in state.iterdir() if path.name != f"plan.json{PARTIAL}"] if state.is_dir() else []
    beside = [path for path in folder.iterdir() if path.name not in (LOCK, STATE)]
    strange = sorted(path.relative_to(folder).as_posix() for path in (*beside, *inside))
    if strange:
        raise InputError(f"out: {folder} holds something else ({strange[0]}); give a new folder")


def _plan(table: Table, form: Form, shard_mb: float, num_shards: dict[str, int] | None) -> Plan:
    """num_shards: of each split, as an earlier start has found it."""
    sizes = np.fromiter((_size(table.photo(row)) for row in range(len(table))), np.int64, len(table))
    split = table.rows["split"].replace("", NO_SPLIT).to_numpy()
    order = np.argsort([sha256(path.encode()).digest() for path in table.rows["path"]], kind="stable")
    mean = BESIDE + (sizes.mean() if form.photos == "original" else _mean_bytes(table, form, order[:SAMPLE]))
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
    """Bytes; -1 of a file that can't be read, which whoever packs it will find out."""
    if isinstance(photo, PackedPhoto):
        return photo.length
    try:
        return os.stat(photo).st_size  # noqa: PTH116  of a million photos, building Path objects would take seconds
    except OSError:
        return -1


def _mean_bytes(table: Table, form: Form, rows: np.ndarray) -> float:
    """Of these photos as they will be packed; those that can't be read are left out."""
    lengths = []
    for row in rows:
        with contextlib.suppress(BadImage):
            lengths.append(len(encode(read_file(table.photo(row)), _boxes(table)[row], form)[0]))
    return float(np.mean(lengths)) if lengths else 1e5


def _sound_parts(table: Table, plan: Plan, form: Form, folder: Path, num_workers: int) -> dict[int, Part]:
    """What is known of the shards that an earlier start has written, and that are still as they were then. The others
    are told."""
    parts = {}
    for i, name in enumerate(plan.names):
        part = read_part(_part_file(folder, name))
        if part is None:
            continue
        if part.source != _source(plan, i):
            log.warning("%s is packed again, as some of its photos' files have changed", name)
        elif not part.bad or part.on_bad_image == form.on_bad_image:
            parts[i] = part
    for name, problem in _look(folder, plan, parts, table, num_workers).items():
        log.warning("%s is packed again: %s", name, problem)
        del parts[plan.names.index(name)]
    return parts


def _look(folder: Path, plan: Plan, parts: dict[int, Part], table: Table, num_workers: int) -> dict[str, str]:
    """{name: problem} of the shards that are damaged."""
    paths = table.rows["path"].to_numpy(dtype=object)
    shards = {plan.names[i]: (part.bytes, part.sha256) for i, part in parts.items()}
    photos = ([(paths[p.row], p.offset, p.length, p.crc32) for p in part.photos] for part in parts.values())
    return look_at_shards(folder, shards, photos, num_workers)


def _require_space(folder: Path, plan: Plan, missing: list[int]) -> None:
    needed_mb = sum(len(plan.rows[i]) for i in missing) * plan.mean / 1e6
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < 1.02 * needed_mb:
        raise InputError(
            f"out: {folder} has {free_mb:,.0f} MB free, and the shards to be written need about {needed_mb:,.0f} MB; "
            "free some, choose another disk with out=, or pack with photos=shrunk"
        )


def _originals(table: Table, rows: np.ndarray) -> list[Original]:
    boxes = _boxes(table)
    about: dict[str, list[Any]] = {name: [None] * len(rows) for name in table.labels}
    for name, label in table.labels.items():
        for i, value in enumerate(table.rows[name].to_numpy()[rows].tolist()):
            if not isinstance(label, Classes):
                about[name][i] = None if value != value else value  # NaN is no JSON
            elif value != UNKNOWN:
                about[name][i] = {"code": value, "id": label.ids[value], "name": label.names[value]}
    of_photos = zip(
        rows.tolist(), table.rows["path"].to_numpy()[rows], table.rows["split"].to_numpy()[rows], strict=True
    )
    return [
        Original(row, table.photo(row), tuple(boxes[row].tolist()), {
            "path": path, "split": split, "labels": {name: values[i] for name, values in about.items()},
        })
        for i, (row, path, split) in enumerate(of_photos)
    ]  # fmt: skip


def _boxes(table: Table) -> np.ndarray:
    return table.rows[BOX].to_numpy(np.float32) if table.has_boxes else np.full((len(table), 4), NO_BOX, np.float32)


def _source(plan: Plan, shard: int) -> int:
    return short_digest(plan.sizes[plan.rows[shard]].tobytes())


def _part_file(folder: Path, name: str) -> Path:
    return folder / STATE / name.replace(".tar", ".json")


def _finish(table: Table, plan: Plan, parts: dict[int, Part], folder: Path, wanted: dict) -> Table:
    """Counts what was packed, and writes the index."""
    ordered = [parts[i] for i in range(len(plan.names))]
    photos = pd.DataFrame(
        [
            [p.row, i, p.offset, p.length, p.crc32, p.source, *p.box]
            for i, part in enumerate(ordered)
            for p in part.photos
        ],
        columns=["row", *PLACE, SOURCE, *BOX],
    ).sort_values("row", ignore_index=True)
    bad = {row: reason for part in ordered for row, reason in part.bad.items()}
    for split, of_split in table.rows.groupby("split"):
        if set(of_split.index) <= set(bad):
            first = of_split.index[0]
            raise none_usable(str(split) or NO_SPLIT, len(of_split), of_split["path"].iloc[0], bad[first])
    rows = photos["row"].to_numpy()
    left_out = np.setdiff1d(np.arange(len(table)), rows)
    if len(np.unique(rows)) != len(rows) or not set(left_out.tolist()) <= set(bad):
        raise InputError(f"out: {folder / STATE} does not fit the photos; give a new folder")
    if not table.has_boxes:
        photos = photos.drop(columns=BOX)
    shards = tuple(Shard(name, part.bytes, part.sha256) for name, part in zip(plan.names, ordered, strict=True))
    packed = with_places(table, photos, Shards(str(folder), str(folder), shards))
    paths = table.rows["path"]
    if bad:
        listed = pd.DataFrame({"path": paths.iloc[np.array(list(bad))], "reason": list(bad.values())})
        write_csv(folder / BAD, listed)
        log.warning(
            "%d photos can't be read (%d of them left out; first: %s: %s); all are in %s",
            len(bad), len(left_out), paths.iloc[min(bad)], bad[min(bad)], folder / BAD,
        )  # fmt: skip
    for name in (*plan.names, TABLE, INDEX, BAD):
        (folder / f"{name}{PARTIAL}").unlink(missing_ok=True)
    write_index(packed, wanted)
    return packed
