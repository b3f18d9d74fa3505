"""python -m carvision.train [overrides]: train a classifier, test it, save it. See --help and conf/train.yaml."""

import os
from typing import TYPE_CHECKING

from carvision.config import choices, plain_config, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Read by OpenMP when torch is imported: threads that wait sleep, instead of keeping the cores busy that the photo
# readers need. Steps took a tenth of the time where other processes were at work on the same two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where one of several processes ends, torch would print its own calls on the way to the others, in hundreds of lines.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def train(cfg: "DictConfig") -> None:
    config = plain_config(cfg)
    name = choices().get("experiment") or choices()["data"]
    if config["trainer"]["accelerator"] == "tpu":
        from carvision.training.tpu_cores import use_cores

        use_cores(config["trainer"]["devices"])
    # Only now: a wrong value was told without waiting for torch and Lightning.
    from carvision.training.runs import run

    run(config, str(name))


if __name__ == "__main__":
    run_command(train, "train")
