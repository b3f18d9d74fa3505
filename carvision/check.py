"""carvision check data=...: the health of a data set. See --help and conf/check.yaml."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from carvision.config.compose import plain_config, run_command
from carvision.errors import InputError
from carvision.system.machine import num_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from carvision.data.build import DataConfig
    from carvision.data.table import Table

log = logging.getLogger(__name__)


def check(cfg: "DictConfig") -> None:
    """Examine a data set; the exit status is 1 if it is incomplete or has photos that can't be used."""
    from omegaconf import open_dict

    with open_dict(cfg):
        cfg.pop("model", None)  # the heads that a choice of data sets for training
    config = plain_config(cfg)
    # Imported here, as a wrong value is reported without pandas and matplotlib
    from carvision.data.health import scan_photos
    from carvision.files.folders import refuse_foreign_folder
    from carvision.files.log import start_log
    from carvision.reports.health import choose_classes, is_health, print_health, write_health

    start_log(None)
    data = config["data"]
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config["out"]) if config["out"] else Path("checks") / data["name"] / stamp
    refuse_foreign_folder(folder, "out", is_health)
    table, complete = _read(data)
    num_workers = num_cores() if config["num_workers"] is None else config["num_workers"]
    chosen = choose_classes(table, config["show"])
    if table.has_boxes and not data["crop_to_box"]:
        log.info("%s: boxes are not checked, as training ignores them without data.crop_to_box=true", table.name)
    scan = scan_photos(table, data["crop_to_box"] and table.has_boxes, num_workers)
    health = write_health(table, scan, folder, chosen, config["num_per_class"])
    unusable = print_health(health)
    print(f"check: {folder}")
    sys.exit(0 if complete and not unusable else 1)


def _read(data: "DataConfig") -> "tuple[Table, bool]":
    """Return the table of all photos that exist, and whether training would take them; what is missing, or what
    training would refuse, is logged.

    The split is the data set's own, or the one that data.split asks for.
    """
    from carvision.data.build import OWN_SPLIT, build_split, build_table, download, folds_of, has_own_split

    download(data)
    complete = True
    try:
        table = build_table(data, annotations=True)
    except InputError as error:
        if data["allow_missing"]:
            raise
        table = build_table({**data, "allow_missing": True}, annotations=True)
        log.error("incomplete: %s", error)
        complete = False
    try:
        split = build_split(table, data["split"], folds_of(data["split"])[0])
    except InputError as error:
        log.error("training would refuse these photos: %s", error)
        return table, False
    # All photos are examined, also those that the data set's own split leaves out
    keeps_own = data["split"]["kind"] in OWN_SPLIT and not data["split"]["file"] and has_own_split(table)
    return table if keeps_own else split, complete


if __name__ == "__main__":
    run_command(check, "check")
