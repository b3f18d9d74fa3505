"""Small whole runs, in this process."""

import functools
import tempfile
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from carvision.config.compose import conf_dir, plain_config
from carvision.errors import InputError
from carvision.system.versions import git_state, read_versions
from carvision.training.run import provenance, start

# Found once a process: the versions of all packages, and git's answer
SAME_FOR_ALL = mock.patch.multiple(
    provenance, read_versions=functools.cache(read_versions), git_state=functools.cache(git_state)
)
FEATURES = tempfile.TemporaryDirectory(prefix="carvision-features-")  # not the user's own
SMALL = [
    f"features.dir={FEATURES.name}", "data.image_px=32", "data.batch_size=16", "data.num_workers=0",
    "model.backbone=test_resnet", "model.weights=random", "trainer.max_epochs=2", "callbacks.progress_bar=false",
]  # fmt: skip


@functools.lru_cache(maxsize=32)  # Hydra takes a quarter of so small a run, and tests repeat their overrides
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=[*SMALL, *overrides])


def config(*overrides: str) -> dict:
    """Return the plain configuration of a small run."""
    return plain_config(_composed(tuple(map(str, overrides))))


def train(folder, *overrides: str, pictures: bool = False):
    """Train a small run into the folder; return it. pictures: draw its curves, a third of such a run's time."""
    cfg = config(*overrides)
    cfg["run"]["dir"] = str(folder)
    if pictures:
        return start.train(cfg, "test")
    with mock.patch("carvision.reports.plots.plot_curves"), SAME_FOR_ALL:
        return start.train(cfg, "test")


def refuse(line: str, folder, *overrides: str) -> None:
    """Require that such a run ends with one line, which matches `line` and asks nobody to delete anything."""
    with pytest.raises(InputError, match=line) as error:
        train(folder, *overrides)
    assert not any(word in str(error.value) for word in ("\n", "remove it", "delete"))


def demo(root) -> list[str]:
    """Return the overrides for the photos of the fixture demo_photos."""
    return [f"data.root={root}", "data.images_per_model=20"]
