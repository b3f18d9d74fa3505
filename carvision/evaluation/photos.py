"""Which photos an evaluation looks at: the run's own, or those that overrides in training's grammar name."""

import logging
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from carvision.allowed import ALLOWED, check_values
from carvision.config import conf_dir, one_line
from carvision.data.build import build_split, build_table, folds_of
from carvision.data.table import SPLITS, Table
from carvision.errors import InputError, nearest

log = logging.getLogger(__name__)

OF_THE_MODEL = ("data.image_px", "data.resize")  # they belong to the weights


def compose_data(about: dict, overrides: list[str]) -> tuple[dict, bool]:
    """The `data` group for an evaluation, checked, and whether it is the data that the run was trained on.

    about: the run's model.json. overrides: data=folder, data.root=photos, ...; of no other group. A group that is
    chosen anew begins from its own defaults, else the run's values hold. crop_to_box is the run's either way.
    """
    given = _parse(overrides)
    chosen = [each for each in given if each.key_or_group == "data"]
    own = about.get("config", {}).get("data", {})
    if not chosen and not own.get("name"):
        raise InputError("data: the model does not say what it was trained on; add data=folder data.root=<photos>")
    name = chosen[-1].value() if chosen else own["name"]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = OmegaConf.create({"data": compose("train", [f"data={name}"]).data})
        if not chosen:
            config = OmegaConf.merge(config, {"data": own})
        OmegaConf.set_struct(config, True)
        for each in given:
            if each not in chosen:
                _check_key(config, each)
                OmegaConf.update(config, each.key_or_group, each.value(), force_add=each.is_add())
        if chosen and not any(each.key_or_group == "data.crop_to_box" for each in given):
            config.data.crop_to_box = bool(own.get("crop_to_box"))
        data = OmegaConf.to_container(config.data, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from None
    check_values({"data": data})
    return data, not chosen


def _parse(overrides: list[str]) -> list[Override]:
    try:
        given = OverridesParser.create().parse_overrides(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from None
    for each in given:
        key = each.key_or_group
        if key in OF_THE_MODEL:
            raise InputError(f"{key}: belongs to the trained weights, and is stored with them; leave it out")
        if key != "data" and not key.startswith("data."):
            raise InputError(f"{key}: evaluate takes data=<choice> and data.<key>=<value>; the rest is the run's")
        if each.is_sweep_override() or each.is_delete():
            raise InputError(f"{each.input_line}: evaluate takes one value for a key, as in data.root=photos")
    return given


def _check_key(config: DictConfig, given: Override) -> None:
    key = given.key_or_group
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    # not `in parent`, which is false of a key that must be given
    if not isinstance(parent, DictConfig) or not (given.is_add() or key.rpartition(".")[2] in list(parent)):
        known = [name for name in ALLOWED if name.startswith("data.") and name not in OF_THE_MODEL]
        raise InputError(f"{key}: there is no such key{nearest(key, known)}")


def read_photos(data: dict, heads: list[str], split: str, splits_file: Path | None) -> tuple[Table, bool]:
    """The table, and whether its split is that of splits_file, the run's splits.csv (None: these are other data).

    It has a split where one is there or `split`, which may be "all", asks for one.
    """
    table = build_table(data, annotations=data["crop_to_box"] or "viewpoint" in heads)
    if data["crop_to_box"] and not table.has_boxes:
        log.warning(
            "%s: the network was trained on the boxes of its photos, and these have none: it looks at whole photos",
            table.name,
        )
    repeated = None if splits_file is None else _repeat(table, splits_file)
    if repeated is not None:
        return repeated, True
    return (table if split == "all" else build_split(table, data["split"], folds_of(data["split"])[0])), False


def photos_of(table: Table, split: str) -> Table:
    """Of a split, or all. Raises InputError where there are none."""
    part = table if split == "all" else table.of_split(split)
    if not len(part):
        counts = table.rows["split"].value_counts()
        there = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS if name in counts) or "none in any split"
        raise InputError(f"--split: {table.name} has no {split} photos ({there}); choose another, or --split all")
    return part


def _repeat(table: Table, file: Path) -> Table | None:
    """The table with the split of the run's splits.csv; None where that lists other photos altogether."""
    listed = pd.read_csv(file, dtype=str, keep_default_na=False).set_index("path")["split"]
    here = listed.index.isin(table.rows["path"])
    if not here.any():
        log.warning("%s: no photo of %s is among the data, which are split anew", table.name, file)
        return None
    if not here.all():
        log.warning(
            "%s: %s of the %s photos of %s are not among the data, and are left out (first: %s)",
            table.name, f"{(~here).sum():,}", f"{len(listed):,}", file, listed.index[~here][0],
        )  # fmt: skip
    return table.with_split(table.rows["path"].map(listed).fillna(""))
