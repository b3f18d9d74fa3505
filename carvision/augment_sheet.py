"""carvision augment_sheet augment=...: photos beside their augmented versions. See --help and
conf/augment_sheet.yaml."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from carvision.config.compose import choices, plain_config, run_command
from carvision.errors import InputError
from carvision.files.folders import refuse_foreign_picture

if TYPE_CHECKING:
    from omegaconf import DictConfig


def augment_sheet(cfg: "DictConfig") -> None:
    """Draw photos beside augmented versions of them."""
    config = plain_config(cfg)
    chosen = choices()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    file = Path("augment_sheets") / f"{chosen['data']}_{chosen['augment']}_{stamp}.png"
    if config["out"]:
        file = Path(config["out"])
        refuse_foreign_picture(file, "out")
        if file.suffix.lower() != ".png" or file.is_dir():
            raise InputError(f"out: {config['out']!r} is not the name of a picture, such as sheet.png")
    # Imported here, as a wrong value is reported without torch and Lightning
    from carvision.augment.mixing import Mix
    from carvision.augment.pipeline import Augment
    from carvision.data.build import folds_of
    from carvision.files.log import start_log
    from carvision.reports.augment_sheet import plot_augmented
    from carvision.training.build import build_datamodule

    start_log(None)
    augment = config["augment"]
    datamodule = build_datamodule(config, folds_of(config["data"]["split"])[0])
    plot_augmented(
        datamodule.datasets["train"],
        datamodule.table.of_split("train"),
        Augment(augment["order"], augment["steps"]),
        Mix(augment["mixup"], augment["cutmix"], augment["mix_p"]),
        f"augment={chosen['augment']}: {describe(augment)}",
        file,
        config["num_photos"],
        config["num_versions"],
        config["seed"],
    )
    print(f"augment_sheet: {file}")


def describe(augment: dict) -> str:
    """Describe the steps of the augmentation, in order, with their probabilities."""
    (small, large), (narrow, wide) = augment["crop_scale"], augment["crop_ratio"]
    area = f"{small:g}" if small == large else f"{small:g} to {large:g}"
    parts = [f"crop {area}"] if (small, large, narrow, wide) != (1, 1, 1, 1) else []
    probs = ((step, augment["steps"][step]["p"]) for step in augment["order"])
    parts += [f"{step} {p:g}" if p < 1 else step for step, p in probs]
    if augment["mix_p"]:
        parts += [f"{name} (alpha {augment[name]:g})" for name in ("mixup", "cutmix") if augment[name]]
    return ", ".join(parts) or "nothing"


if __name__ == "__main__":
    run_command(augment_sheet, "augment_sheet")
