"""Shards compared with what is known of them: sizes, hashes, and the checksum of every photo."""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from carvision.data.worker_pool import in_processes

Place = tuple[str, int, int, int]  # of a photo: its path, and offset, length and crc32 of its bytes in the shard


def verify_pack(folder: Path, num_workers: int) -> dict[str, str]:
    """{name: problem} of the shards that are damaged. Raises InputError where pack.json or table.parquet is."""
    from carvision.data.packed import TABLE, read_index, table_of  # pandas, which worker processes need not import
    from carvision.data.table import PLACE

    table = table_of(read_index(folder), (folder / TABLE).read_bytes(), str(folder))
    shards = {shard.name: (shard.bytes, shard.sha256) for shard in table.shards.all}
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
        progress("verifying shards", len(shards)) as advance,
        contextlib.closing(in_processes(look_at_shard, tasks, min(num_workers, len(shards)))) as results,
    ):
        for name, problem in zip(shards, results, strict=True):
            found |= {name: problem} if problem else {}
            advance(1)
    return found


def look_at_shard(file: Path, num_bytes: int, sha256: str, photos: list[Place]) -> str:
    """What is wrong with a shard, in a few words, or ""."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size != num_bytes:
                return f"it has {size:,} bytes instead of {num_bytes:,}"
            damaged = [path for path, *place in photos if not _is_sound(opened, *place)]
            if damaged:
                return f"{len(damaged)} of its {len(photos)} photos are damaged (first: {damaged[0]})"
            opened.seek(0)
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            return "" if found == sha256 else "its bytes are others than were packed, though not those of photos"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it can't be read ({error.strerror})"


def _is_sound(opened, offset: int, length: int, crc32: int) -> bool:
    opened.seek(offset)
    return zlib.crc32(opened.read(length)) == crc32


@contextlib.contextmanager
def progress(what: str, total: int):
    """A bar on standard error; gives a function that takes how many more are done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    if not total:
        yield lambda num: None
        return
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda num: progress.advance(bar, num)
