"""Run carvision.embed."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from carvision.data.table import Table
from carvision.embedding.files import VALUES, write_index, write_values
from carvision.embedding.source import Source, open_source
from carvision.evaluation.photos import select_split
from carvision.freed_memory import keep_freed_memory
from carvision.run_log import start_log

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> Path:
    """Embed the photos and return the folder written. options: of carvision.embed."""
    keep_freed_memory()
    start_log(None)
    source = open_source(options)
    table = select_split(source.read_table(options.split), options.split)
    log.info("%s: %s photos, layer %s", table.name, f"{len(table):,}", source.embedder.layer)
    readable: list[np.ndarray] = []
    with source.claim_folder(options.out, "embeddings") as folder:
        shape = write_values(folder / VALUES, _readable_rows(source, table, readable), options.dtype)
        write_index(folder, table.select(np.concatenate(readable)), {**source.about, "split": options.split})
    log.info(
        "%s embeddings, %d-dimensional, %.1f MB", f"{shape[0]:,}", shape[1], (folder / VALUES).stat().st_size / 1e6
    )
    return folder


def _readable_rows(source: Source, table: Table, readable: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the embeddings of readable photos, block by block; append each block's mask of them to `readable`."""
    for block, good in source.blocks(table):
        readable.append(good)
        yield block[good]
