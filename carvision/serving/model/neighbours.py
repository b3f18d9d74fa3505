"""The photos of `carvision embed RUN` that are nearest to one: found by their embeddings, shown small."""

import functools
import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from carvision.data.decode import to_rgb, upright_turn
from carvision.data.images import BadImage, open_image
from carvision.errors import InputError
from carvision.files.folders import MARK

if TYPE_CHECKING:  # it imports pandas, as all that reads the index does: only when it is asked for
    from carvision.data.table import Table

SIDE_PX = 320  # the longer one of a photo that is shown
QUALITY = 85  # of its JPEG


class Loaded(NamedTuple):
    """The photos to search. rows: int (G,), of table. unit: float32 (G, D), of length 1. about: embeddings.json."""

    table: "Table"
    rows: np.ndarray
    unit: np.ndarray
    about: dict


class Neighbour(NamedTuple):
    """A photo of the index. row: of index.csv, from 0. similarity: the cosine."""

    row: int
    similarity: float


class NeighbourIndex:
    """Searches the training photos among a run's newest embeddings; all of them, if none is a training photo.

    run: its folder. Read when it is first asked for, by any thread.
    """

    def __init__(self, run: Path):
        self.run = run
        self.lock = threading.Lock()
        self.loaded: Loaded | None = None

    @functools.cached_property
    def folder(self) -> Path | None:
        """The run's newest complete folder of embeddings."""
        return newest_embeddings(self.run)

    def load(self) -> Loaded:
        """Return the photos to search. Raises InputError if there are none, or they can't be read."""
        from carvision.embedding.store import read_embeddings

        with self.lock:
            if self.loaded is None:
                if self.folder is None:
                    raise InputError("the run has no embeddings")
                saved, about = read_embeddings(self.folder)
                splits = saved.table.rows["split"].to_numpy()
                rows = np.flatnonzero(splits == "train")
                rows = rows if len(rows) else np.arange(len(splits))
                values = np.asarray(saved.values[rows], np.float32)
                unit = values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-30)
                self.loaded = Loaded(saved.table, rows, unit, about)
        return self.loaded

    def search(self, embedding: np.ndarray, num: int) -> list[Neighbour]:
        """Return the nearest photos, the nearest first; of equal ones the lower row. embedding: float32 (D,)."""
        _, rows, unit, _ = self.load()
        if embedding.shape != unit.shape[1:]:
            raise InputError("the run's embeddings are of another network")
        similarities = unit @ (embedding / max(float(np.linalg.norm(embedding)), 1e-30))
        if num < len(rows):
            floor = np.partition(similarities, -num)[-num]
            near = np.flatnonzero(similarities >= floor)
        else:
            near = np.arange(len(rows))
        near = near[np.argsort(-similarities[near], kind="stable")][:num]
        return [Neighbour(int(rows[i]), float(similarities[i])) for i in near]

    def classes(self, row: int) -> dict[str, dict[str, str]]:
        """Return {head: {"id", "name"}} of a photo, for the labels that are known."""
        from carvision.data.table import UNKNOWN

        table = self.load().table
        codes = {name: int(table.rows[name].iloc[row]) for name in table.class_labels}
        return {
            name: {"id": table.class_labels[name].ids[code], "name": table.class_labels[name].names[code]}
            for name, code in codes.items()
            if code != UNKNOWN
        }

    def photo(self, row: int) -> bytes | None:
        """Return a photo as a JPEG of at most SIDE_PX; None if the index has no such row, or the photo is gone."""
        table = self.load().table
        if not 0 <= row < len(table) or not isinstance(table.root, Path):
            return None
        try:
            with open_image(table.photo(row)) as image:
                turn = upright_turn(image)
                image.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
                whole = to_rgb(image)
        except (BadImage, OSError, ValueError):
            return None
        whole = whole if turn is None else whole.transpose(turn)
        whole.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        written = io.BytesIO()
        whole.save(written, "JPEG", quality=QUALITY)
        return written.getvalue()


def newest_embeddings(run: Path) -> Path | None:
    """Return the run's newest complete folder of embeddings."""
    from carvision.embedding.store import ABOUT

    try:
        folders = [file.parent for file in (run / "embeddings").glob(f"*/{ABOUT}")]
    except OSError:
        return None
    complete = [folder for folder in folders if not (folder / MARK).exists()]
    return max(complete, key=lambda folder: ((folder / ABOUT).stat().st_mtime, folder.name), default=None)
