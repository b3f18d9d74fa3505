"""carvision pack data=... out=...: photos packed into shards. See --help and conf/pack.yaml."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carvision.config.compose import plain_config, run_command
from carvision.errors import InputError
from carvision.system.machine import num_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig


def pack_command(cfg: "DictConfig") -> None:
    """Pack a data set, or verify a pack."""
    from omegaconf import OmegaConf, open_dict

    heads = tuple(OmegaConf.select(cfg, "model.heads") or ())  # those that the choice of data sets for training
    with open_dict(cfg):
        cfg.pop("model", None)
        cfg.pop("trainer", None)  # data=demo sets it
        if cfg.verify is not None:
            cfg.pop("data")  # its root need not be given
    config = plain_config(cfg)
    num_workers = num_cores() if config["num_workers"] is None else config["num_workers"]
    if config["verify"] is not None:
        _verify(Path(config["verify"]), num_workers)
        return
    if config["out"] is None:
        raise InputError("out: must be given; add out=<folder>")
    if config["data"]["split"]["kind"] == "kfold":
        raise InputError("data.split.kind: kfold is for training: pack without it, and train with data=packed and it")
    _pack(config, heads, num_workers)


def _pack(config: dict, heads: tuple[str, ...], num_workers: int) -> None:
    # Imported here, as a wrong value is reported without pandas
    from carvision.data.build import OWN_SPLIT, build_split, build_table, download
    from carvision.data.packs.index import shards_of
    from carvision.data.packs.shard import PackOptions
    from carvision.data.packs.write import pack
    from carvision.files.log import start_log

    start_log(None)
    data = config["data"]
    download(data)
    table = build_table(data, annotations=True)
    if data["split"]["kind"] not in OWN_SPLIT or data["split"]["file"]:
        table = build_split(table, data["split"])
    options = PackOptions(
        config["photos"],
        config["short_side_px"] or round(data["image_px"] * 8 / 7),
        config["jpeg_quality"],
        data["crop_to_box"] and table.has_boxes,
        data["on_bad_image"],
    )
    folder = Path(config["out"])
    packed = pack(replace(table, heads=heads or table.heads), options, config["shard_mb"], folder, num_workers)
    shards = shards_of(packed).all
    total_mb = sum(shard.bytes for shard in shards) / 1e6
    print(f"{len(packed):,} photos, {total_mb:,.1f} MB; shards: {len(shards)}; train with data=packed")
    print(f"pack: {folder}")


def _verify(folder: Path, num_workers: int) -> None:
    from carvision.data.packs.write import verify_pack

    problems = verify_pack(folder, num_workers)
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    if problems:
        print(f"{len(problems)} shards are damaged; the command that packed them writes them again", file=sys.stderr)
    print(f"verify: {folder}" if problems else f"All shards are whole.\nverify: {folder}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    run_command(pack_command, "pack")
