"""Choose the photos to evaluate: the run's own, or those that overrides in training's grammar name."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from carvision.allowed import ALLOWED
from carvision.config import as_input_errors, checked, compose_alone
from carvision.data.build import build_split, build_table, folds_of
from carvision.data.split_files import splits_in
from carvision.data.table import SPLITS, Table
from carvision.errors import InputError, nearest
from carvision.overrides import parse_overrides

log = logging.getLogger(__name__)

MODEL_KEYS = ("data.image_px", "data.resize")  # stored with the weights
# Keys that affect neither the selection of photos nor how they are read.
NEUTRAL = {
    "data.root",
    "data.names",
    "data.cache",
    "data.cache_gb",
    "data.batch_size",
    "data.num_workers",
    "data.download",
    "data.on_bad_image",
}


@dataclass(frozen=True)
class DataChoice:
    """The photos to read. data: the checked group. is_run_data: the run was trained on these data, with the run's
    split. as_in_training: and they are read as in training. root_given: data.root was given."""

    data: dict
    is_run_data: bool
    as_in_training: bool
    root_given: bool


def compose_data(about: dict, overrides: list[str]) -> DataChoice:
    """Compose the `data` group for an evaluation from overrides such as data=folder data.root=photos; no other group.

    about: the run's model.json. A group that is chosen anew starts from its own defaults, else the run's values apply;
    crop_to_box is the run's either way. Raises InputError for overrides that don't apply here.
    """
    parsed = _parse(overrides)
    chosen = [override for override in parsed if override.key_or_group == "data"]
    own = about.get("config", {}).get("data", {})
    if not chosen and not own.get("name"):
        raise InputError("data: the model does not say what it was trained on; add data=folder data.root=<photos>")
    if "${" in json.dumps(own):  # resolving it would reveal this machine's environment
        raise InputError("data: model.json has a value with ${, which a run never writes; it was changed by hand")
    name = chosen[-1].value() if chosen else own["name"]
    with as_input_errors():
        config = OmegaConf.create({"data": compose_alone("train", [f"data={name}"]).data})
        if not chosen:
            config = OmegaConf.merge(config, {"data": own})
        OmegaConf.set_struct(config, True)
        for override in parsed:
            if override not in chosen:
                _check_key(config, override)
                OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add())
        if chosen and not any(override.key_or_group == "data.crop_to_box" for override in parsed):
            config.data.crop_to_box = bool(own.get("crop_to_box"))
        data = OmegaConf.to_container(config.data, resolve=True)
    data = checked({"data": data})["data"]
    if data["batch_size"] == "auto":
        raise InputError("data.batch_size: auto is for training; give a number, such as data.batch_size=64")
    keys = {override.key_or_group for override in parsed}
    same_split = not chosen and not any(key.startswith("data.split") for key in keys)
    return DataChoice(data, same_split, same_split and keys <= NEUTRAL, "data.root" in keys)


def _parse(overrides: list[str]) -> list[Override]:
    with as_input_errors():
        parsed = parse_overrides(overrides)
    for override in parsed:
        key = override.key_or_group
        if key in MODEL_KEYS:
            raise InputError(f"{key}: belongs to the trained weights, and is stored with them; leave it out")
        if key != "data" and not key.startswith("data."):
            raise InputError(f"{key}: this command takes data=<choice> and data.<key>=<value>; the rest is the run's")
        if override.is_sweep_override() or override.is_delete():
            raise InputError(f"{override.input_line}: this command takes one value for a key, as in data.root=photos")
    return parsed


def _check_key(config: DictConfig, given: Override) -> None:
    key = given.key_or_group
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    # not `in parent`, which is false for a key whose value is mandatory
    if not isinstance(parent, DictConfig) or not (given.is_add() or key.rpartition(".")[2] in list(parent)):
        known = [name for name in ALLOWED if name.startswith("data.") and name not in MODEL_KEYS]
        raise InputError(f"{key}: there is no such key{nearest(key, known)}")


def read_photos(chosen: DataChoice, heads: list[str], split: str, splits_file: Path) -> tuple[Table, bool | None]:
    """Return the table, and whether its split is the run's (False: photos of it are missing, None: it is another).

    The table is split if it has a split of its own or `split`, which may be "all", requires one. splits_file: path of
    the run's splits.csv; it may be missing.
    """
    data = chosen.data
    table = build_table(data, annotations=data["crop_to_box"] or "viewpoint" in heads)
    if data["crop_to_box"] and not table.has_boxes:
        log.warning(
            "%s: the network was trained on the boxes of its photos, and these have none: whole photos are used",
            table.name,
        )
    if chosen.is_run_data and splits_file.is_file():
        run_split = _apply_run_split(table, splits_file)
        if run_split is not None:
            return run_split
    is_unmoved_run_data = chosen.is_run_data and not chosen.root_given
    split_config = data["split"]
    splits_merged = split_config["val_as_test"] or split_config.get("test_as_train", False)
    has_official_split = split_config["kind"] == "official" and not split_config["file"] and not splits_merged
    if not is_unmoved_run_data and (
        split == "all" or (split == "test" and has_official_split and (table.rows["split"] == "test").any())
    ):
        return table, None  # the data set's own test split; it need not have others
    if data["split"]["kind"] == "kfold" and data["split"]["fold"] == "all" and not data["split"]["file"]:
        raise InputError(
            "data.split.fold: all, and without the run's splits.csv the fold is not known; give the folder "
            "of the run, data.split.file=<its splits.csv>, or data.split.fold=<i>"
        )
    split_table = build_split(table, data["split"], folds_of(data["split"])[0])
    return split_table, True if is_unmoved_run_data else None


def select_split(table: Table, split: str) -> Table:
    """Return the photos of a split, or all of them. Raises InputError if there are none."""
    part = table if split == "all" else table.of_split(split)
    if not len(part):
        counts = table.rows["split"].value_counts()
        available = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS if name in counts) or "none in any split"
        raise InputError(f"--split: {table.name} has no {split} photos ({available}); choose another, or --split all")
    return part


def _apply_run_split(table: Table, file: Path) -> tuple[Table, bool] | None:
    """Apply the split of the run's splits.csv; return the table and whether all listed photos are present.

    Returns None if the file lists none of the table's photos.
    """
    splits, absent = splits_in(file, table)
    num_here = int((splits != "").sum())
    if not num_here:
        log.warning("%s: no photo of %s is among the data, which are split anew", table.name, file)
        return None
    if absent:
        log.warning(
            "%s: %s of the %s photos of %s are not among the data, and are left out (first: %s)",
            table.name, f"{len(absent):,}", f"{len(absent) + num_here:,}", file, absent[0],
        )  # fmt: skip
    return table.with_split(splits), not absent


def notes_on_seen_photos(table: Table, split: str, splits_files: list[Path]) -> list[str]:
    """Return one line for each run that was trained on some of these photos, or chose its weights by them.

    Photos are matched by their paths within the data set; runs without a splits.csv are skipped.
    """
    notes = []
    for file in (file for file in splits_files if file.is_file()):
        run_splits, _ = splits_in(file, table)
        num_train, num_val = ((run_splits == part).sum() for part in ("train", "val"))
        if num_train or (num_val and split != "val"):
            notes.append(
                f"{file.parent.name} was trained on {num_train:,} of these {len(table):,} photos, and its weights were "
                f"chosen by {num_val:,} (matched by path): the metrics are not of photos that it has never seen"
            )
    return notes
