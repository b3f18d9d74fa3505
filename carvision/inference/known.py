"""Find out what is known of photos before they are predicted: their true classes, from a list or from folder names;
where a run's own photos are; and which of them the run was trained on.
"""

# ruff: noqa: PTH100, PTH110  Path.exists raises for names that are too long, and Path.resolve follows links

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePath

from carvision.data.packs.remote import is_url
from carvision.data.paths import nfc, text_of_path
from carvision.data.splits import read_splits
from carvision.demo.write import demo_folder
from carvision.errors import InputError
from carvision.inference.description import read_json
from carvision.inference.sources import Photo

NUM_CHECKED = 100  # photos of a list, to find out what its paths are relative to


class TrueClasses:
    """Looks up the codes of a photo's true classes.

    class_ids, class_names: {head: list}, in the order of the codes. parents: {child: (parent, codes)}, where codes[i]
    is the parent's code of the child's class i. heads: those to look up. from_folders: also use the names of the
    folders above a photo, the nearest first. rest: {head: code} for one-against-the-rest heads; the class of everything
    else. unknown: {head: {value of the list, or folder of a photo outside all class folders: number of photos}}, for
    values that match no class or several.
    """

    def __init__(
        self, class_ids: dict, class_names: dict, parents: dict, heads: list[str], from_folders: bool,
        rest: Mapping[str, int] = {},
    ):  # fmt: skip
        self.rest = rest
        # Parents first, as they distinguish children of the same name
        self.heads = sorted(heads, key=lambda head: head in parents)
        self.from_folders = from_folders
        self.parents = {child: (parent, [int(code) for code in codes]) for child, (parent, codes) in parents.items()}
        self.unknown: dict[str, Counter[str]] = {head: Counter() for head in heads}
        self.by_id = {head: {nfc(value): code for code, value in enumerate(class_ids[head])} for head in heads}
        self.by_name: dict[str, dict[str, list[int]]] = {head: {} for head in heads}
        for head in heads:
            for code, name in enumerate(class_names[head]):
                self.by_name[head].setdefault(nfc(name), []).append(code)

    def codes(self, photo: Photo) -> dict[str, int | None]:
        """Return {head: code, or None if unknown}."""
        found: dict[str, int | None] = {}
        path = text_of_path(photo.file) if "\\" in photo.path else photo.path  # a list may use backslashes
        folders = PurePath(os.path.abspath(path)).parts[-2::-1] if self.from_folders else ()
        for head in self.heads:
            if value := photo.truth.get(head):
                found[head] = self._code(head, value, found)
            else:
                codes = (self._code(head, folder, found) for folder in folders)
                found[head] = next((code for code in codes if code is not None), None)
                value = folders[0] if folders else ""
            if found[head] is None and value:
                found[head] = self.rest.get(head)
            if found[head] is None and (value or self.from_folders):
                self.unknown[head][value] += 1
        return found

    def lines(self) -> list[str]:
        """Return one line per head that says how many photos have classes unknown to the model."""
        lines = []
        for head, counts in self.unknown.items():
            if counts:
                shown = ", ".join(repr(value) for value, _ in counts.most_common(3))
                more = f" and {len(counts) - 3:,} more" if len(counts) > 3 else ""
                what = "folders or classes" if self.from_folders else "classes"
                lines.append(
                    f"{head}: {counts.total():,} photos are of {what} unknown to the model, by id and by name "
                    f"({shown}{more}); they are not judged"
                )
        return lines

    def _code(self, head: str, value: str, found: dict[str, int | None]) -> int | None:
        """Return the class with this id, else the only class with this name; it must fit the parent already found."""
        parent, codes_of_parents = self.parents.get(head, (None, []))
        parent_code = found.get(parent)
        value = nfc(value)
        named = self.by_name[head].get(value, [])
        candidates = [self.by_id[head][value]] if value in self.by_id[head] else []
        candidates += named if len(named) == 1 or parent_code is not None else []
        if parent_code is not None:
            candidates = [code for code in candidates if codes_of_parents[code] == parent_code]
        return candidates[0] if candidates else None


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
                f"--list: the photos of {listed} are in a pack, not in files of their own; carvision "
                "evaluate reads them"
            )
        where = f"not in {roots[0]}, the data root of that run" if roots else "in a folder that model.json doesn't name"
        raise InputError(f"--root: the photos of {listed} are {where}; give the folder that its paths are relative to")
    return found


def data_roots(config: dict) -> list[Path]:
    """Return the folders that the paths of a run's splits.csv may be relative to: for CompCars, folders
    below data.root."""
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
