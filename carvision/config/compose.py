"""Find, compose and check the configuration. Only this module composes with Hydra and runs it. Imports no torch."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from carvision import __version__
from carvision.config.completion import ASKED, answer, parsable_line
from carvision.config.overrides import expand_home, explain, require_overrides, with_quoted_paths
from carvision.config.schema import ALLOWED, check_values, is_mapping, is_path
from carvision.errors import InputError, drop_output, one_line, one_line_errors, suggest
from carvision.system.terminal import fold

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOT_GROUPS = ("shared", "tables")  # folders of conf/ with parts of other files, and tables of experiments


def run_command(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Run `task` with the configuration that the command line composes from conf/<config_name>.yaml.

    A user's mistake ends the command as in one_line_errors.
    """
    words = sys.argv[1:]
    if answers_itself(words, config_name):
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing an error of several lines

    def quiet_task(cfg: DictConfig) -> None:  # Hydra prints lines of its own about an exception that reaches it
        with one_line_errors(), as_input_errors():
            task(cfg)

    with one_line_errors(), as_input_errors():
        require_overrides(config_name, words)
        cfg = _compose_unless_flags(config_name, words)
        if cfg is not None:
            task(cfg)
            return
        import hydra

        register_tables()
        sys.argv[1:] = with_quoted_paths(words, sweeps=bool({"-m", "--multirun"} & {*words}))
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(quiet_task)()


def _compose_unless_flags(config_name: str, overrides: list[str]) -> DictConfig | None:
    """Compose the configuration of one run; None if only hydra.main can: for its flags, or several runs.

    hydra.main composes everything twice, to find out whether there are several runs, which takes longer than all else
    that precedes the report of a mistake.
    """
    if any(re.match(r"-|[+~]*hydra\b", word) or "hydra:" in word for word in overrides):
        return None
    from hydra.errors import ConfigCompositionException

    try:
        return _compose(config_name, overrides)
    except ConfigCompositionException as error:
        if "--multirun" in str(error):  # which an experiment may ask for
            return None
        raise


def compose_alone(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose the configuration of one run. Raises InputError if the overrides or an experiment ask for several."""
    with as_input_errors():
        cfg = _compose(config_name, overrides)
        if cfg is None:
            raise InputError("an experiment that asks for Hydra's own multirun is not for this command")
    return cfg


def compose_sweep(overrides: list[str], complete: bool = True) -> tuple[dict, dict]:
    """Compose a training's plain configuration, and the settings of conf/sweep, both checked. Raises InputError.

    The settings' space and follows are not resolved. complete: raise for missing values, too.
    """
    from omegaconf import OmegaConf, open_dict

    cfg = compose_alone("sweep", overrides)
    with as_input_errors(), open_dict(cfg):
        drawn = {key: OmegaConf.to_container(cfg.sweep[key], resolve=False) for key in ("space", "follows")}
        cfg.sweep.update(space={}, follows={})  # they refer to values that the configuration does not have
        plain = plain_config(cfg, complete)
    check_values({"sweep": drawn})
    return plain, plain.pop("sweep") | drawn


def _compose(config_name: str, overrides: list[str]) -> DictConfig | None:
    """Compose the configuration; None for an experiment that asks for several runs."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    overrides = with_quoted_paths(overrides)
    for word in overrides:  # for null instead of a choice, Hydra raises a ValueError
        group, _, value = word.partition("=")
        if value == "null" and (conf_dir() / group.lstrip("+").partition("@")[0]).is_dir():
            raise InputError(f"{word}: {group} takes the name of one of its files (--help); ~{group} leaves it out")
    register_tables()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=config_name):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # it has just been initialised
        cfg = hydra.compose_config(config_name, overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return None
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def choices_of(config_name: str, overrides: list[str]) -> Mapping[str, str | None]:
    """Return {group: choice} of these overrides, without checking values."""
    compose_alone(config_name, overrides)
    return choices()


def choices() -> Mapping[str, str | None]:
    """Return {group: choice} of the configuration composed last."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices


def is_multirun() -> bool:
    """Return whether the command makes several runs, one after another (Hydra's -m)."""
    from hydra.core.hydra_config import HydraConfig

    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def plain_config(cfg: DictConfig, complete: bool = True) -> dict:
    """Return the configuration as plain dicts, lists and values, all checked. Raises InputError.

    complete: raise for missing values, too.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise InputError(hydra_message(error)) from None
    return checked(cast(dict, plain), complete)


def checked(plain: dict, complete: bool = True) -> dict:
    """Check a plain configuration, and return it with "~" expanded in its paths. Raises InputError."""
    check_values(plain, complete=complete)

    def expanded(value, key: str) -> Any:
        if isinstance(value, dict):
            return {name: expanded(inner, f"{key}.{name}".lstrip(".")) for name, inner in value.items()}
        return expand_home(value) if isinstance(value, str) and is_path(key) else value

    return expanded(plain, "")


def flat_config(config: dict, prefix: str = "") -> dict:
    """Return a nested configuration as one mapping: {"data.root": ...}. An empty mapping stays a value."""
    values = {}
    for key, value in config.items():
        is_group = isinstance(value, dict) and value
        values |= flat_config(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return values


def keys_added_since(earlier: Mapping, now: Mapping) -> list[str]:
    """Return the keys of `now` that the version of carvision that composed `earlier` did not have. Both are flat.

    They have the value that conf/ gives them, as the earlier version behaved like that. The keys of a head that
    `earlier` lacks are not among them.
    """
    groups = {key.rpartition(".")[0] for key in earlier}
    return [
        key
        for key in now
        if key not in earlier
        and (not key.startswith("model.heads.") or key.rpartition(".")[0] in groups)
        and is_as_shipped(key, now[key])
    ]


def with_later_defaults(earlier: Mapping, now: Mapping) -> dict:
    """Return an earlier configuration with the defaults of `now` that mean the same as its own did. Both are flat."""
    was_official = earlier.get("data.split.kind") == "official" and now.get("data.split.kind") == "auto"
    return {**earlier, **({"data.split.kind": "auto"} if was_official else {})}  # which takes the official split


def is_as_shipped(key: str, value: object) -> bool:
    """Return whether a file of conf/ gives the key this value.

    conf/model/head has the keys of a head without its name; no file has those of a phase.
    """
    from omegaconf import OmegaConf

    group, _, name = key.partition(".")
    for file in [conf_dir() / "train.yaml", *sorted((conf_dir() / group).rglob("*.yaml"))]:
        given = flat_config(cast(dict, OmegaConf.to_container(OmegaConf.load(file))))
        prefix = "steps." if file.stem == "steps" else ""  # conf/augment/shared/base.yaml includes it by that name
        names = (key, name.removeprefix(prefix), re.sub(r"^heads\.[^.]+\.", "", name))
        if value in [given[wanted] for wanted in names if wanted in given]:
            return True
    return False


def conf_dir() -> Path:
    """Return the folder conf/: inside the package if installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"conf/ is neither in {package} nor beside it; install carvision again")


def options_of(group: str) -> list[str]:
    """Return the sorted choices of a group of conf/: its files and, of experiment, the rows of its tables."""
    names = [file.stem for file in (conf_dir() / group).glob("*.yaml")]
    for table in _tables() if group == "experiment" else ():
        names += yaml.safe_load(table.read_text(encoding="utf-8"))
    return sorted(names)


@cache
def register_tables() -> None:
    """Register the rows of conf/experiment/tables with Hydra, each as an experiment. Call it before composing."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for table in _tables():
        for name, experiment in OmegaConf.load(table).items():
            ConfigStore.instance().store(str(name), experiment, group="experiment", package="_global_")


def _tables() -> list[Path]:
    return sorted((conf_dir() / "experiment" / "tables").glob("*.yaml"))


def answers_itself(words: list[str], config_name: str) -> bool:
    """Print the help, the version, or the completion's function for bash, if the words ask for it; return whether they
    did.

    A question about completions is left to Hydra; COMP_LINE, the line to complete, is changed to one that it can parse.
    """
    if {"--help", "-h"} & {*words}:
        try:
            print(help_of(config_name), flush=True)
        except BrokenPipeError:  # by | head
            drop_output()
        return True
    if "--version" in words:
        print(f"carvision {__version__}")
        return True
    if not any(ASKED.match(word) for word in words):
        return False
    if words[-1].endswith("install=bash"):  # or uninstall=bash
        answer(words[-1], [])
        return True
    os.environ["COMP_LINE"] = parsable_line(os.environ.get("COMP_LINE", ""))
    return False


def help_of(config_name: str) -> str:
    """Return the help text of conf/<config_name>.yaml, with its own keys or all groups, for standard output.

    Hydra would compose a configuration first.
    """
    top = conf_dir()
    text = (top / f"{config_name}.yaml").read_text(encoding="utf-8")
    template = yaml.safe_load(text)["hydra"]["help"]["template"].replace("$OWN_KEYS", _own_keys(text))
    folders = [folder for folder in sorted(top.rglob("*")) if folder.is_dir() and folder.name not in NOT_GROUPS]
    groups = {name: options_of(name) for name in (folder.relative_to(top).as_posix() for folder in folders)}
    lines = [f"{name}: {', '.join(options)}\n" for name, options in groups.items() if options]
    template = template.replace("$DATA_SETS", ", ".join(groups["data"]))
    return fold(template.replace("$APP_CONFIG_GROUPS", "".join(lines)), sys.stdout)


def _own_keys(text: str) -> str:
    """Return the keys at the top of a file of conf/ with their defaults and comments, for its help."""
    keys = re.findall(r"^(\w+): *(.*?) +# (.*)$", text.partition("\nhydra:")[0], re.MULTILINE)
    width = max((len(f"{key}={value}") for key, value, _ in keys), default=0)
    texts = (textwrap.wrap(comment, 80 - width - 4, break_on_hyphens=False) for *_, comment in keys)
    gap = "\n" + " " * (width + 4)
    return "\n".join(f"  {f'{key}={value}':<{width}}  {gap.join(text)}"
                     for (key, value, _), text in zip(keys, texts, strict=True))  # fmt: skip


@contextmanager
def as_input_errors():
    """Turn errors of Hydra and OmegaConf inside this block into InputError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (InputError, HydraException, OmegaConfBaseException) as error:
        raise InputError(hydra_message(error)) from error


def hydra_message(error: Exception) -> str:
    """Return the message of an error of Hydra or OmegaConf as one line that says what to type."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override, text)
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'(.*)", text, re.DOTALL):
        options = re.sub(r"Config search path.*|Available options in '[^']+':", "", choice[3], flags=re.DOTALL).split()
        return _no_choice(choice[1], choice[2], options)
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)'$", text, re.MULTILINE):
        key, value = several.groups()
        return f"{key}: {value} are several values; write {key}=[{value}] for a list, or -m for a run with each of them"
    unknown = re.match(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if not unknown:
        return one_line(text)
    key = unknown[1]
    if is_mapping(key):  # it has keys already
        return f"{key}: to add a key to it, write '+{key}.<key>=<value>'"
    if key.startswith("phases."):
        return f"{key}: the phase does not have this key yet; to add it, write '+{key}=<value>'"
    if key in ALLOWED:
        group = key.split(".")[0]
        return f"{key}: the {group} that is chosen has no such key; choose another with {group}=<choice>"
    return f"{key}: there is no such key{suggest(key, ALLOWED)} (all keys: --cfg job)"


def _unparsed(word: str, reason: str) -> str:
    """Return the line for an override that Hydra could not parse. reason: its message."""
    group, _, name = word.lstrip("+").partition("=")
    if group and (conf_dir() / group.partition("@")[0]).is_dir():
        return _no_choice(group, name, options_of(group.partition("@")[0]))
    return explain(word, one_line(reason.partition("\nSee https:")[0]))


def _no_choice(group: str, name: str, options: list[str]) -> str:
    if not options:
        return f"{group}: {name!r} is not a file of conf/{group}"
    return f"{group}: {name!r} is not one of {', '.join(options)}{suggest(name, options)}"
