"""python -m carvision.train [overrides]: train a classifier, test it, save it. See --help and conf/train.yaml."""

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from carvision.config import plain_config, run_command

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    config = plain_config(cfg)
    choices = HydraConfig.get().runtime.choices
    name = choices.get("experiment") or choices["data"]
    # Only now: a wrong value was told without waiting for torch and Lightning.
    from carvision.training.runs import run

    run(config, str(name))


if __name__ == "__main__":
    run_command(train, "train")
