"""From the `data` group of the configuration to a Table with its split. Imports no torch."""

from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

from carvision.data.compcars import read_compcars
from carvision.data.compcars_parts import read_compcars_parts
from carvision.data.compcars_surveillance import read_compcars_surveillance
from carvision.data.demo import demo_folder, write_demo
from carvision.data.folder import read_folder
from carvision.data.labels import one_against_rest, with_names
from carvision.data.manifest import read_manifest
from carvision.data.oxford102 import download_oxford102, read_oxford102
from carvision.data.packed import read_packed
from carvision.data.splits import file_split, kfold_split, official_split, stratified_split, unseen_classes_split
from carvision.data.stanford_cars import read_stanford_cars
from carvision.data.table import Table
from carvision.errors import InputError


class SplitConfig(TypedDict):
    """The checked group data.split. Configurations of earlier versions lack keys that came later."""

    kind: str
    file: str | None
    fractions: list[float]
    val_fraction: float
    val_as_test: bool
    test_as_train: NotRequired[bool]
    train_classes: int | float
    num_folds: int
    fold: int | str  # a number, or "all"
    keep_groups: bool
    seed: int


class DataConfig(TypedDict):
    """What is read here of the checked group data: the keys of every data set, then those of some."""

    name: str
    root: str | None
    allow_missing: bool
    min_images_per_class: int
    classes: list[str | int] | None
    sampler: str
    split: SplitConfig
    names: NotRequired[str | None]
    one_against_rest: NotRequired[str | int | None]
    images_per_model: NotRequired[int]  # demo
    part: NotRequired[str | int]  # compcars_parts
    download: NotRequired[bool]  # oxford102
    file: NotRequired[str]  # manifest, as the next three
    labels: NotRequired[list[str]]
    numbers: NotRequired[list[str]]
    parents: NotRequired[dict[str, str] | None]
    shuffle_shards: NotRequired[int | None]  # packed, as the next two
    cache: NotRequired[str | None]
    cache_gb: NotRequired[float | None]


def build_table(data: DataConfig, annotations: bool) -> Table:
    """The photos that `data` (the checked group of conf/data) chooses, with the data set's own split.

    annotations: whether CompCars' boxes and viewpoints are wanted, which lie in a file for each photo.
    """
    table = read_table(data, annotations)
    if data.get("names"):
        file, root = Path(data["names"]), data["root"]
        table = with_names(table, file if file.is_file() or not root else Path(root) / file)
    if data["classes"]:
        table = table.only_classes(data["classes"])
    if data["min_images_per_class"] > 1:
        table = table.without_sparse_classes(data["min_images_per_class"])
    if data.get("one_against_rest") is not None:
        table = one_against_rest(table, str(data["one_against_rest"]))
    return table


def read_table(data: DataConfig, annotations: bool) -> Table:
    root = Path(data["root"]) if data["root"] else None
    allow_missing = data["allow_missing"]
    match data["name"]:
        case "demo":
            folder = root or demo_folder(images_per_model=data["images_per_model"])
            write_demo(folder, data["images_per_model"])
            return replace(read_compcars(folder, known=None), name="demo")
        case "compcars":
            split = data["split"]
            official = "parts_1_and_2" if split.get("test_as_train") else "listed"
            photos = official if split["kind"] == "official" and not split["file"] else "all"
            return read_compcars(root, allow_missing=allow_missing, photos=photos, annotations=annotations)
        case "compcars_surveillance":
            return read_compcars_surveillance(root, allow_missing=allow_missing)
        case "compcars_parts":
            return read_compcars_parts(root, data["part"], allow_missing=allow_missing)
        case "stanford_cars":
            return read_stanford_cars(root, allow_missing=allow_missing)
        case "oxford102":
            return read_oxford102(root, allow_missing=allow_missing)
        case "folder":
            return read_folder(root, allow_missing=allow_missing)
        case "manifest":
            labels, numbers, parents = data["labels"], data["numbers"], data["parents"] or {}
            return read_manifest(
                root, data["file"], labels, parents=parents, numbers=numbers, allow_missing=allow_missing
            )
        case "packed":
            window, cache, sampler = data["shuffle_shards"], data["cache"], data["sampler"]
            if window is not None and sampler != "shuffle":
                raise InputError(
                    f"data.sampler: {sampler} draws from all photos at any time; take shuffle, or shuffle_shards=null"
                )
            cache = Path(cache) if cache else None
            return read_packed(
                data["root"], allow_missing=allow_missing, window=window, cache=cache, cache_gb=data["cache_gb"]
            )
    raise InputError(f"data.name: {data['name']!r} has no reader")


def download(data: DataConfig) -> None:
    """Fetch the data set into data.root, where data.download asks for it."""
    if data.get("download"):
        download_oxford102(data["root"])


def build_split(table: Table, split: SplitConfig, fold: int | None = None) -> Table:
    """The table divided as `split` (data.split) says; fold: which of the k, for kfold."""
    if split["file"]:
        return file_split(table, Path(split["file"]))
    val_fraction, seed, keep_groups = split["val_fraction"], split["seed"], split["keep_groups"]
    match split["kind"]:
        case "stratified":
            train, val, test = split["fractions"]
            return stratified_split(table, (train, val, test), seed, keep_groups)
        case "kfold":
            assert fold is not None  # of folds_of()
            return kfold_split(table, split["num_folds"], fold, val_fraction, seed, keep_groups)
        case "unseen_classes":
            return unseen_classes_split(table, split["train_classes"], val_fraction, seed, keep_groups)
        case _:
            test_as_train = split.get("test_as_train", False)  # runs of earlier versions lack it
            return official_split(table, val_fraction, seed, keep_groups, split["val_as_test"], test_as_train)


def folds_of(split: SplitConfig) -> list[int | None]:
    """The folds to train: [None] without k-fold."""
    if split["kind"] != "kfold" or split["file"]:
        return [None]
    fold = split["fold"]
    return [*range(split["num_folds"])] if isinstance(fold, str) else [fold]
