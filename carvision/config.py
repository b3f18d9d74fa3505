"""Finding, composing and checking the configuration. Imports Hydra, and neither torch nor Lightning."""

import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from carvision.allowed import ALLOWED, check_values, is_mapping
from carvision.errors import InputError, nearest, one_line_errors


def conf_dir() -> Path:
    """The folder of the configuration: inside the package where installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"conf/ is neither in {package} nor beside it; install carvision again")


def run_command(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run `task` with the configuration that the command line composes.

    What a person got wrong ends as one line and exit status 1; CARVISION_DEBUG=1 shows the traceback instead.
    Ctrl-C ends with status 130.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing an error of several lines

    def quiet_task(cfg: DictConfig) -> None:  # an exception that reaches Hydra makes it print lines of its own
        with _one_line_errors():
            task(cfg)

    with _one_line_errors():
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(quiet_task)()


@contextmanager
def _one_line_errors():
    """Those of Hydra and OmegaConf, too."""
    with one_line_errors():
        try:
            yield
        except (InputError, HydraException, OmegaConfBaseException) as error:
            raise InputError(one_line(error)) from error


def plain_config(cfg: DictConfig) -> dict:
    """The configuration as plain dicts, lists and values, all checked. Raises InputError."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from None
    check_values(plain)
    return plain


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages of several lines, as one that says what to type."""
    text = str(error)
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'(.*)", text, re.DOTALL)
    if choice:
        options = re.sub(r"Config search path.*|Available options in '[^']+':", "", choice[3], flags=re.DOTALL).split()
        if not options:
            return f"{choice[1]}: {choice[2]!r} is not a file of conf/{choice[1]}"
        return f"{choice[1]}: {choice[2]!r} is not one of {', '.join(options)}{nearest(choice[2], options)}"
    unknown = re.match(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown and is_mapping(unknown[1]):  # one that has keys already
        return f"{unknown[1]}: to add a key to it, write '+{unknown[1]}.<key>=<value>'"
    if unknown and unknown[1].startswith("phases."):
        return f"{unknown[1]}: the phase does not say this yet; to add it, write '+{unknown[1]}=<value>'"
    if unknown and unknown[1] in ALLOWED:
        group = unknown[1].split(".")[0]
        return f"{unknown[1]}: the {group} that is chosen has no such key; choose another with {group}=<choice>"
    if unknown:
        return f"{unknown[1]}: there is no such key{nearest(unknown[1], ALLOWED)} (all keys: --cfg job)"
    return " ".join(text.split())
