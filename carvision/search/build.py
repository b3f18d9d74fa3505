"""Build a Sweep from command-line overrides, and check all of it before training."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carvision.config.compose import choices, compose_sweep, conf_dir, flat_config
from carvision.config.schema import check_values, is_key
from carvision.errors import InputError
from carvision.search.space import Space, Value, read_space, split_overrides

RESERVED = ("run.", "sweep.", "callbacks.monitor", "callbacks.mode")  # keys that the search itself sets
RUN_OBJECTIVES = ("seconds", "parameters")  # objectives besides validation metrics
MAX_SAMPLE_DRAWS = 12  # trials composed to check the space


@dataclass(frozen=True)
class Sweep:
    """Hold a checked search.

    overrides: of all trials. config: the training's configuration, before anything is drawn. settings: the keys of
    conf/sweep. objective: {metric: "min" or "max"}. num_epochs: of a trial that is not pruned. cells: indices of the
    grid's cells to run, in order; None without a grid.
    """

    name: str
    folder: Path
    overrides: tuple[str, ...]
    space: Space
    config: dict
    settings: dict
    objective: dict[str, str]
    num_epochs: int
    cells: list[int] | None

    @property
    def num_trials(self) -> int:
        """Return the number of trials of the whole search."""
        wanted = self.settings["trials"]
        return wanted if self.cells is None else len(self.cells[:wanted])

    @property
    def monitor(self) -> tuple[str, str]:
        """Return the metric, and its mode, that chooses a trial's best epoch and decides about pruning."""
        return next((metric, mode) for metric, mode in self.objective.items() if metric not in RUN_OBJECTIVES)

    def overrides_for(self, drawn: Mapping[str, Value]) -> list[str]:
        """Return all overrides of the trial that drew these values."""
        return [*self.overrides, *self.space.overrides(drawn)]


def build_sweep(overrides: list[str], complete: bool = True) -> Sweep:
    """Build the search from command-line overrides. complete: required values must be present. Raises InputError."""
    given, searched = split_overrides(overrides)
    (config, raw), chosen = compose_sweep(given, complete=False), choices()
    in_file = [f"{key}={text}" for key, text in flat_config(raw["space"]).items()]
    fixed = split_overrides(in_file)[0]
    if fixed:
        raise InputError(f"sweep.space: {fixed[0]} searches nothing; write choice, range or interval, or leave it out")
    searched = split_overrides([*in_file, *given, *searched])[1]  # a value on the command line is not searched
    known = {*flat_config(config), *config}
    space = read_space(searched, flat_config(raw["follows"]), lambda key: key in known or is_key(key) or is_group(key))
    if complete:
        missing = {key: value for key, value in flat_config(config).items() if value == "???"}
        check_values({key: value for key, value in missing.items() if key not in space.keys})
    settings = {key: value for key, value in raw.items() if key not in ("space", "follows")}
    for key in space.keys:
        if key.startswith(RESERVED):
            raise InputError(f"{key}: can't be searched; it belongs to the search itself")
    check_run_keys(config)
    objective = check_objective(settings["objective"] or {config["callbacks"]["monitor"]: config["callbacks"]["mode"]})
    data = chosen.get("experiment") or chosen["data"]
    name = f"{data}-{chosen['sweep']}"
    folder = Path(settings["dir"] or f"sweeps/{data}/{chosen['sweep']}")
    study = settings["study"] or (folder.resolve().name if settings["dir"] else name)
    phases = sum(phase["epochs"] for phase in (config["phases"] or {}).values())
    num_epochs = min(filter(None, (config["trainer"]["max_epochs"], phases)), default=1)
    cells = cells_of(space, settings)
    sweep = Sweep(study, folder, tuple(given), space, config, settings, objective, num_epochs, cells)
    check_fit(sweep)
    try_space(sweep, complete)
    return sweep


def describe(sweep: Sweep) -> str:
    """Return the search as YAML: its settings with each trial's dimensions, and the configuration that all trials
    share."""
    import yaml

    space = {dimension.key: str(dimension) for dimension in sweep.space.dimensions}
    settings = {"space": space, "follows": dict(sweep.space.follows), **sweep.settings}
    settings |= {"objective": sweep.objective, "dir": str(sweep.folder), "study": sweep.name}
    fixed = _without(sweep.config, {*sweep.space.keys})
    return yaml.safe_dump({"sweep": settings, **fixed}, sort_keys=False, allow_unicode=True, width=120)


def _without(config: dict, keys: set[str], prefix: str = "") -> dict:
    """Return the configuration without these keys, given as dotted paths."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in config.items()
        if f"{prefix}{name}" not in keys
    }


def is_group(key: str) -> bool:
    """Return whether the key chooses a file of conf/, such as optimizer or +model/head@model.heads.type."""
    return (conf_dir() / key.lstrip("+~").partition("@")[0]).is_dir()


def check_run_keys(config: dict) -> None:
    """Raise InputError for run keys that make no sense in a trial."""
    run, split = config["run"], config["data"]["split"]
    if run["dir"]:
        raise InputError(f"run.dir: a search has a folder for each trial; give sweep.dir={run['dir']}")
    for key in ("seeds", "max_epochs_per_start", "max_minutes"):
        if run[key]:
            raise InputError(f"run.{key}: is not for trials, each of which is one complete run; leave it out")
    if split["kind"] == "kfold" and split["fold"] == "all":
        raise InputError(
            "data.split.fold: all is not for trials; give the fold to validate on, such as data.split.fold=0"
        )


def check_objective(objective: dict[str, str]) -> dict[str, str]:
    """Return the objective; raise InputError unless it consists of validation metrics and RUN_OBJECTIVES, with at least
    one of the former."""
    for metric in objective:
        if metric not in RUN_OBJECTIVES and not metric.startswith("val/"):
            raise InputError(
                f"sweep.objective: {metric!r} is none of val/<metric>, {', '.join(RUN_OBJECTIVES)}; training and test "
                "photos choose nothing"
            )
    if all(metric in RUN_OBJECTIVES for metric in objective):
        raise InputError("sweep.objective: needs a validation metric, such as val/loss: min")
    return dict(objective)


def check_fit(sweep: Sweep) -> None:
    """Raise InputError for a sampler or pruner that does not fit the objective, the space or the number of epochs."""
    sampler, pruner, epochs = (sweep.settings[key] for key in ("sampler", "pruner", "min_epochs"))
    if sampler == "cmaes" and all(d.choices for d in sweep.space.dimensions):
        raise InputError("sweep.sampler: cmaes searches numbers, and the space has only choices; use tpe")
    if sampler == "cmaes" and len(sweep.objective) > 1:
        raise InputError("sweep.sampler: cmaes has one objective; with several use tpe")
    if pruner == "none":
        return
    if len(sweep.objective) > 1:
        raise InputError(f"sweep.pruner: {pruner} judges by one objective; with several give sweep.pruner=none")
    for key in sweep.space.keys:
        if pruner == "hyperband" and key.startswith(("trainer.max_epochs", "phases")):
            raise InputError(f"{key}: hyperband compares trials of the same number of epochs; don't search it")
    if epochs > sweep.num_epochs:
        raise InputError(f"sweep.min_epochs: {epochs} is more than the {sweep.num_epochs} epochs of a trial")


def cells_of(space: Space, settings: dict) -> list[int] | None:
    """Return the indices of the grid's cells to run, in order; None without a grid. Raise InputError for settings that
    do not fit the sampler."""
    sampler, cells, fraction = (settings[key] for key in ("sampler", "cells", "grid_fraction"))
    if sampler != "grid":
        for key in ("cells", "grid_fraction"):
            if settings[key] is not None:
                raise InputError(f"sweep.{key}: is for sweep.sampler=grid, and this is {sampler}")
        if settings["trials"] is None:
            raise InputError(f"sweep.trials: null is for sweep.sampler=grid; give a number for {sampler}")
        return None
    num = len(space.grid())
    if cells is None and fraction is None:
        return list(range(num))
    if cells is None:  # the same cells for every network: they depend only on the seed and the number of cells
        return sorted(random.Random(settings["seed"]).sample(range(num), max(1, int(num * fraction))))
    if max(cells, default=0) >= num:
        raise InputError(f"sweep.cells: {max(cells)} is not one of the grid's {num:,} cells, from 0")
    return cells


def try_space(sweep: Sweep, complete: bool = True) -> None:
    """Compose and check trials in which each choice occurs once. Raise InputError for the first invalid one."""
    num = max(max(len(dimension.choices), 2) for dimension in sweep.space.dimensions)
    for number in range(min(num, MAX_SAMPLE_DRAWS)):
        drawn: dict[str, Value] = {}
        for one in sweep.space.dimensions:
            if one.is_drawn(drawn):
                ends = one.choices or (one.low, one.high)
                drawn[one.key] = ends[number % len(ends)]
        overrides = sweep.overrides_for(drawn)
        try:
            compose_sweep(overrides, complete)
        except InputError as error:
            values = ", ".join(f"{key}={value}" for key, value in drawn.items())
            raise InputError(f"{error} (in a trial with {values})") from None
