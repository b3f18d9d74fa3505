"""Find a run's own photos, and count which predicted photos runs were trained on."""

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from carvision.data.demo import demo_folder
from carvision.data.fetching import is_url
from carvision.data.split_files import read_splits
from carvision.description import read_json
from carvision.errors import InputError
from carvision.inference.inputs import Photo

# ruff: noqa: PTH100, PTH110  Path.exists raises for names that are too long, and Path.resolve follows links

NUM_CHECKED = 100  # photos of a list, to find out what its paths are relative to


def root_of_list(listed: Path, photos: Iterable[Photo], config: dict) -> Path | None:
    """Return the folder that a list's relative paths start from when --root is not given; None: the current folder.

    For a run's splits.csv it is that run's data root, unless its photos have been moved to the current folder. For any
    other list it is the current folder or, if none of its photos exists there, the data root of the predicting run.

    photos: of the list, with relative files. config: of the predicting run. Raises InputError if a run's own photos are
    not where it found them.
    """
    owner, paths = _config_beside(listed) if listed.name == "splits.csv" else None, []
    for photo in islice(photos, NUM_CHECKED):
        if owner is None and os.path.exists(photo.file):
            return None
        paths += [] if Path(photo.file).is_absolute() else [photo.file]
    if not paths:
        return None
    roots = data_roots(config if owner is None else owner)
    found = next((root for root in roots if any(os.path.exists(root / path) for path in paths)), None)
    if found is None and owner is not None and not any(map(os.path.exists, paths)):
        if owner.get("data", {}).get("name") == "packed":
            raise InputError(
                f"--list: the photos of {listed} are in a pack, not in files of their own; python -m "
                "carvision.evaluate reads them"
            )
        where = f"not in {roots[0]}, the data root of that run" if roots else "in a folder that model.json doesn't name"
        raise InputError(f"--root: the photos of {listed} are {where}; give the folder that its paths are relative to")
    return found


def data_roots(config: dict) -> list[Path]:
    """Return the folders that the paths of a run's splits.csv may be relative to. CompCars' are below data.root."""
    data = config.get("data", {})
    root = data.get("root")
    if data.get("name") == "demo" and root is None:
        root = demo_folder(images_per_model=data.get("images_per_model", 0))
    if not isinstance(root, str | Path) or is_url(root):
        return []
    root = Path(root).expanduser()
    return [root, root / "data", root / "data" / "data"]


def _config_beside(listed: Path) -> dict | None:
    """Return the config of the finished run whose folder holds the list, or None."""
    described = None
    with suppress(InputError):  # missing, or not a run's
        described = read_json(listed.with_name("model.json"))
    config = described.get("config") if isinstance(described, dict) else None
    return config if isinstance(config, dict) and isinstance(config.get("data"), dict) else None


class SeenPhotos:
    """Counts photos that runs were trained on or chose their weights by, matched by their paths within the data set.

    runs: their folders. roots: folders that paths may be relative to, besides what the photos were given by.
    """

    def __init__(self, runs: list[Path], roots: Iterable[Path]):
        self.splits: dict[str, dict[str, str]] = {}
        for run in runs:
            with suppress(InputError):  # missing, or not a run's
                self.splits[run.resolve().name] = read_splits(run / "splits.csv").to_dict()
        self.counts = {run: {"train": 0, "val": 0} for run in self.splits}
        both = [resolve(root) for root in roots for resolve in (os.path.abspath, os.path.realpath)]
        self.roots = [f"{root}{os.sep}" for root in dict.fromkeys(both)]
        self.num_photos = 0

    def add(self, photo: Photo) -> None:
        self.num_photos += 1
        if not self.splits:
            return
        files = dict.fromkeys((os.path.abspath(photo.file), os.path.realpath(photo.file)))
        below = (file[len(root) :] for file in files for root in self.roots if file.startswith(root))
        paths = [photo.path, *(path.replace(os.sep, "/") for path in below)]
        for run, splits in self.splits.items():
            split = next((splits[path] for path in paths if path in splits), None)
            if split in self.counts[run]:
                self.counts[run][split] += 1

    def lines(self) -> list[str]:
        """Return one warning for each run that has seen any of the photos."""
        return [
            f"{run} was trained on {counts['train']:,} of these {self.num_photos:,} photos, and its weights were "
            f"chosen by {counts['val']:,} (matched by path): not all are photos that it has never seen"
            for run, counts in self.counts.items()
            if any(counts.values())
        ]
