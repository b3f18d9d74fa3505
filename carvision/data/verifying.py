"""Shards compared with what is known of them: sizes, hashes, and the checksum of every photo."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from carvision.data.shards import Place, look_at_shard
from carvision.data.worker_pool import in_processes


def verify_pack(folder: Path, num_workers: int) -> dict[str, str]:
    """{name: problem} of the shards that are damaged. Raises InputError where pack.json or table.parquet is."""
    # Only now: pandas, which worker processes need not import
    from carvision.data.packed import TABLE, read_index, shards_of, table_of
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
        progress("verifying shards", len(shards)) as advance,
        contextlib.closing(in_processes(look_at_shard, tasks, min(num_workers, len(shards)))) as results,
    ):
        for name, problem in zip(shards, results, strict=True):
            found |= {name: problem} if problem else {}
            advance(1)
    return found


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
