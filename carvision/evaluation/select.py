"""Select the photos of an evaluation, by overrides in training's grammar, and match their classes with the model's."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from carvision.config.compose import as_input_errors, checked, compose_alone
from carvision.config.overrides import parse_overrides
from carvision.config.schema import ALLOWED
from carvision.data.build import OWN_SPLIT, DataConfig, build_split, build_table, folds_of, has_own_split
from carvision.data.paths import nfc
from carvision.data.splits import splits_in
from carvision.data.table import SPLITS, UNKNOWN, Classes, LabelDescription, Table
from carvision.errors import InputError, suggest
from carvision.evaluation.predict import ReadingConfig
from carvision.inference.description import ModelDescription

if TYPE_CHECKING:
    from carvision.config.overrides import Override

log = logging.getLogger(__name__)

MODEL_KEYS = ("data.image_px", "data.resize")  # stored with the weights
# Keys that affect neither the selection of photos nor how they are read
NEUTRAL = {
    "data.root", "data.names", "data.cache", "data.cache_gb", "data.batch_size", "data.num_workers", "data.download",
    "data.on_bad_image",
}  # fmt: skip


class ChosenData(DataConfig, ReadingConfig):
    """The checked group data, with the keys that are read here."""


@dataclass(frozen=True)
class DataChoice:
    """The photos to read.

    is_run_data: the run was trained on these data, and they are split as for it. as_in_training: and they are read as
    in training. root_given: data.root was given. Raises InputError for a batch size that only training can find.
    """

    data: ChosenData
    is_run_data: bool = False
    as_in_training: bool = False
    root_given: bool = False

    def __post_init__(self):
        if self.data["batch_size"] == "auto":
            raise InputError("data.batch_size: auto is for training; give a number, such as data.batch_size=64")


def compose_data(about: ModelDescription, overrides: list[str]) -> DataChoice:
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
            config = cast(DictConfig, OmegaConf.merge(config, {"data": own}))
        OmegaConf.set_struct(config, True)
        for override in parsed:
            if override not in chosen:
                _check_key(config, override)
                OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add())
        if chosen and not any(override.key_or_group == "data.crop_to_box" for override in parsed):
            config.data.crop_to_box = bool(own.get("crop_to_box"))
        data = OmegaConf.to_container(config.data, resolve=True)
    data = cast(ChosenData, checked({"data": data})["data"])
    keys = {override.key_or_group for override in parsed}
    same_split = not chosen and not any(key.startswith("data.split") for key in keys)
    return DataChoice(data, same_split, same_split and keys <= NEUTRAL, "data.root" in keys)


def _parse(overrides: list[str]) -> "list[Override]":
    """Parse overrides of data. Raises InputError for other keys, for those of the weights, and for several values."""
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


def _check_key(config: DictConfig, given: "Override") -> None:
    key = given.key_or_group
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    # not `in parent`, which is false for a key whose value is mandatory
    if not isinstance(parent, DictConfig) or not (given.is_add() or key.rpartition(".")[2] in list(parent)):
        known = [name for name in ALLOWED if name.startswith("data.") and name not in MODEL_KEYS]
        raise InputError(f"{key}: there is no such key{suggest(key, known)}")


def read_photos(chosen: DataChoice, heads: list[str], split: str, splits_file: Path) -> tuple[Table, bool | None]:
    """Return the table, and whether its split is the run's (False: photos of it are missing, None: it is another).

    The table is split if it has a split of its own or `split`, which may be "all", requires one. splits_file: path of
    the run's splits.csv; it may be missing.
    """
    data, split_config = chosen.data, chosen.data["split"]
    table = build_table(data, annotations=data["crop_to_box"] or "viewpoint" in heads)
    if data["crop_to_box"] and not table.has_boxes:
        log.warning("%s: data.crop_to_box, and the photos have no boxes: whole photos are used", table.name)
    if chosen.is_run_data and splits_file.is_file():
        run_split = _apply_run_split(table, splits_file)
        if run_split is not None:
            return run_split
    is_unmoved_run_data = chosen.is_run_data and not chosen.root_given
    splits_merged = split_config["val_as_test"] or split_config.get("test_as_train", False)
    has_official_split = split_config["kind"] in OWN_SPLIT and not split_config["file"] and not splits_merged
    if not is_unmoved_run_data and (
        split == "all" or (split == "test" and has_official_split and (table.rows["split"] == "test").any())
    ):
        return table, None  # the data set's own test split; it need not have others
    if split == "test" and not chosen.is_run_data and split_config["kind"] == "auto" and not has_own_split(table):
        raise InputError(f"--split: {table.name} under {table.root} comes without a split of its own; add --split all")
    if split_config["kind"] == "kfold" and split_config["fold"] == "all" and not split_config["file"]:
        raise InputError(
            "data.split.fold: all, and without the run's splits.csv the fold is not known; give the folder "
            "of the run, data.split.file=<its splits.csv>, or data.split.fold=<i>"
        )
    return split_data(table, data), True if is_unmoved_run_data else None


def split_data(table: Table, data: ChosenData) -> Table:
    """Split the table as the data group says; of several folds, by the first."""
    return build_split(table, data["split"], folds_of(data["split"])[0])


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


@dataclass(frozen=True)
class Matched:
    """A data set's labels in terms of a model's classes.

    targets {head: int64 (N,) codes of the model, UNKNOWN if it lacks the class; float32 (N,) for a number}. judged:
    bool (N,), photos with a known target of at least one head. unmatched: one row per class that only one side has:
    head, only_in ("data" or "model"), id, name, photos. notes: lines that report what could not be matched.
    """

    targets: dict[str, Tensor]
    judged: np.ndarray
    unmatched: pd.DataFrame
    notes: list[str]


def match_classes(
    table: Table, labels: dict[str, LabelDescription], by: str = "id", renamed: dict[str, str] | None = None
) -> Matched:
    """Match the table's classes with the model's.

    labels: of the model, as in model.json. by: "id" or "name" (case-insensitive). renamed: {head: the data's label it
    is compared with}, if that has another name. Raises InputError if no head has a label, or no class matches.
    """
    names = {head: (renamed or {}).get(head, head) for head in labels}
    _check_names(names, renamed or {}, table, labels)
    targets, notes, unmatched_rows = {}, [], []
    for head, described in labels.items():
        label = table.labels.get(names[head])
        has_classes = "ids" in described
        if isinstance(label, Classes) != has_classes or label is None:
            targets[head] = torch.full((len(table),), UNKNOWN if has_classes else torch.nan)
            notes.append(f"{head}: the data have no such label, so this head is not judged")
            continue
        values = table.rows[names[head]].to_numpy()
        if not isinstance(label, Classes):
            targets[head] = torch.from_numpy(values.astype(np.float32))
            continue
        codes = _codes(head, label, described, by)
        targets[head] = torch.from_numpy(np.append(codes, UNKNOWN)[values])  # UNKNOWN = -1 indexes the appended value
        counts = np.bincount(values[values != UNKNOWN], minlength=len(label))
        notes += _match_notes(head, label, described, codes, counts, by)
        unmatched_rows += [
            (head, "data", label.ids[i], label.names[i], counts[i]) for i in np.flatnonzero(codes == UNKNOWN)
        ]
        missing = np.setdiff1d(np.arange(len(described["ids"])), codes)
        unmatched_rows += [(head, "model", described["ids"][i], described["names"][i], 0) for i in missing]
    known = [~values.isnan() if values.is_floating_point() else values != UNKNOWN for values in targets.values()]
    judged = torch.stack(known).any(0).numpy()
    if not judged.any():
        raise InputError(
            f"{table.name}: no photo has a label that the model knows ({'; '.join(notes)}); carvision "
            "retrieve measures its embeddings on classes that it has never seen"
        )
    unmatched = pd.DataFrame(unmatched_rows, columns=["head", "only_in", "id", "name", "photos"])
    return Matched(targets, judged, unmatched, notes)


def _check_names(
    names: dict[str, str], renamed: dict[str, str], table: Table, labels: dict[str, LabelDescription]
) -> None:
    for head, label in renamed.items():
        if head not in labels:
            raise InputError(
                f"--label: {head!r} is not a head of the model{suggest(head, labels)}; it has {', '.join(labels)}"
            )
        if label not in table.labels:
            raise InputError(f"--label: {label!r} is not a label of {table.name}; it has {', '.join(table.labels)}")
    if not set(names.values()) & set(table.labels):
        raise InputError(
            f"{table.name} has the labels {', '.join(table.labels)} and the model the heads {', '.join(labels)}; say "
            f"what belongs together with --label {next(iter(table.labels))}={next(iter(labels))}"
        )


def _codes(head: str, label: Classes, described: LabelDescription, by: str) -> np.ndarray:
    """Return the model's code of each class of the data, UNKNOWN if it has none."""
    sides = [list(map(nfc, side)) for side in (described["ids"], label.ids)]
    if by == "name":
        sides = [[nfc(name).casefold() for name in side] for side in (described["names"], label.names)]
    repeated = sorted(value for side in sides for value, count in Counter(side).items() if count > 1)
    if repeated:  # ids never repeat
        raise InputError(f"--match name: the name {repeated[0]!r} of {head} stands for several classes; match by id")
    index_of = {value: i for i, value in enumerate(sides[0])}
    return np.array([index_of.get(value, UNKNOWN) for value in sides[1]], np.int64)


def _match_notes(
    head: str, label: Classes, described: LabelDescription, codes: np.ndarray, counts: np.ndarray, by: str
) -> list[str]:
    """Return lines about the classes of a head that don't match. counts: int (C,), photos of the data's classes."""
    same = codes != UNKNOWN
    num_model = len(described["ids"])
    if not same.any():
        return [
            f"{head}: none of the data's {len(label)} classes is one of the model's {num_model} by {by} (first: "
            f"{label.ids[0]!r} {label.names[0]!r} against {described['ids'][0]!r} {described['names'][0]!r}), so this "
            f"head is not judged; --match {'name' if by == 'id' else 'id'} may help"
        ]
    notes = []
    if not same.all():
        notes.append(
            f"{head}: {(~same).sum():,} of the data's {len(label):,} classes are unknown to the model; their "
            f"{counts[~same].sum():,} photos are not judged"
        )
    if same.sum() < num_model:
        notes.append(f"{head}: {num_model - same.sum():,} of the model's {num_model:,} classes are not among the data")
    if by == "id":
        pairs = [(label.names[i], described["names"][codes[i]], label.ids[i]) for i in np.flatnonzero(same)]
        differ = [pair for pair in pairs if nfc(pair[0]).casefold() != nfc(pair[1]).casefold()]
        if differ:
            ours, theirs, id_ = differ[0]
            notes.append(
                f"{head}: {len(differ):,} of {len(pairs):,} classes that match by id have other names (first: id {id_} "
                f"is {ours!r} in the data, {theirs!r} in the model); if they are not the same, use --match name"
            )
    return notes
