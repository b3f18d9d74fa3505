"""From the words of a command line to a Sweep, all of it checked before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carvision.allowed import check_values, is_key
from carvision.config import choices, compose_sweep, conf_dir
from carvision.errors import InputError
from carvision.flat_config import flat_config
from carvision.search.space import Space, Value, read_space, split_overrides

RESERVED = ("run.", "sweep.", "callbacks.monitor", "callbacks.mode")  # what a search says itself to its trials
RUN_OBJECTIVES = ("seconds", "parameters")  # objectives beside those of validation
MAX_SAMPLE_DRAWS = 12  # draws that are looked at before the first trial


@dataclass(frozen=True)
class Sweep:
    """words: overrides of carvision.sweep that all trials have. config: of the training, before anything is drawn.
    settings: the keys of conf/sweep. objective: {figure: "min" or "max"}. num_epochs: of a trial that is not pruned."""

    name: str
    folder: Path
    words: tuple[str, ...]
    space: Space
    config: dict
    settings: dict
    objective: dict[str, str]
    num_epochs: int

    @property
    def monitor(self) -> tuple[str, str]:
        """The figure that chooses a trial's best epoch and its pruning, and its direction."""
        return next((figure, mode) for figure, mode in self.objective.items() if figure not in RUN_OBJECTIVES)

    def overrides_for(self, drawn: Mapping[str, Value]) -> list[str]:
        """All overrides of the trial that drew these values."""
        return [*self.words, *self.space.overrides(drawn)]


def build_sweep(words: list[str], complete: bool = True) -> Sweep:
    """complete: values that must be given may not be missing. Raises InputError."""
    given, searched = split_overrides(words)
    config, raw, chosen = compose(given, complete=False)
    in_file = [f"{key}={text}" for key, text in flat_config(raw["space"]).items()]
    idle = split_overrides(in_file)[0]
    if idle:
        raise InputError(f"sweep.space: {idle[0]} searches nothing; write choice, range or interval, or leave it out")
    searched = split_overrides([*in_file, *given, *searched])[1]  # what the line gives is not searched
    known = {*flat_config(config), *config}
    found = read_space(searched, flat_config(raw["follows"]), lambda key: key in known or is_key(key) or is_group(key))
    drawn = {key.lstrip("+") for key in (*found.follows, *(dimension.key for dimension in found.dimensions))}
    if complete:
        check_values({key: value for key, value in flat_config(config).items() if value == "???" and key not in drawn})
    settings = {key: value for key, value in raw.items() if key not in ("space", "follows")}
    for key in [*found.follows, *(dimension.key for dimension in found.dimensions)]:
        if key.lstrip("+~").startswith(RESERVED):
            raise InputError(f"{key}: can't be searched; it belongs to the search itself")
    check_run_keys(config)
    objective = check_objective(settings["objective"] or {config["callbacks"]["monitor"]: config["callbacks"]["mode"]})
    data = chosen.get("experiment") or chosen["data"]
    name = f"{data}-{chosen['sweep']}"
    folder = Path(settings["dir"] or Path("sweeps") / f"{data}" / f"{chosen['sweep']}")
    study = settings["study"] or (folder.resolve().name if settings["dir"] else name)
    phases = sum(phase["epochs"] for phase in (config["phases"] or {}).values())
    num_epochs = min(filter(None, (config["trainer"]["max_epochs"], phases)), default=1)
    sweep = Sweep(study, folder, tuple(given), found, config, settings, objective, num_epochs)
    check_pruner(sweep)
    check_sampler(sweep)
    try_space(sweep, complete)
    return sweep


def describe(sweep: Sweep) -> str:
    """The search as YAML: its settings with what each trial draws, and the configuration that all trials share."""
    import yaml

    drawn = {dimension.key: str(dimension) for dimension in sweep.space.dimensions}
    follows = dict(sweep.space.follows)
    settings = {"space": drawn, "follows": follows, **sweep.settings}
    settings |= {"objective": sweep.objective, "dir": str(sweep.folder), "study": sweep.name}
    fixed = _without(sweep.config, {*drawn, *follows})
    return yaml.safe_dump({"sweep": settings, **fixed}, sort_keys=False, allow_unicode=True, width=120)


def _without(config: dict, keys: set[str], prefix: str = "") -> dict:
    """The configuration without these keys, which are written with dots."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in config.items()
        if f"{prefix}{name}" not in keys
    }


def compose(words: list[str], complete: bool = True) -> tuple[dict, dict, Mapping]:
    """The training's configuration, the search's settings and the choices of both, all checked. Raises InputError."""
    return *compose_sweep(words, complete), choices()


def is_group(key: str) -> bool:
    """Whether the key chooses a file of conf/, as optimizer or +model/head@model.heads.type."""
    return (conf_dir() / key.lstrip("+~").partition("@")[0]).is_dir()


def check_run_keys(config: dict) -> None:
    """What of a run's own keys makes no sense in a trial."""
    run, split = config["run"], config["data"]["split"]
    if run["dir"]:
        raise InputError(f"run.dir: a search has a folder for each trial; give sweep.dir={run['dir']}")
    for key in ("seeds", "max_epochs_per_start", "max_minutes"):
        if run[key]:
            raise InputError(f"run.{key}: is not for trials, each of which is one run to its end; leave it out")
    if split["kind"] == "kfold" and split["fold"] == "all":
        raise InputError(
            "data.split.fold: all is not for trials; give the fold that they validate on, as data.split.fold=0"
        )


def check_objective(objective: dict[str, str]) -> dict[str, str]:
    for figure in objective:
        if figure not in RUN_OBJECTIVES and not figure.startswith("val/"):
            raise InputError(
                f"sweep.objective: {figure!r} is none of val/<figure>, {', '.join(RUN_OBJECTIVES)}; photos of training "
                "and test choose nothing"
            )
    if all(figure in RUN_OBJECTIVES for figure in objective):
        raise InputError("sweep.objective: needs a figure of validation, as val/loss: min")
    return dict(objective)


def check_pruner(sweep: Sweep) -> None:
    pruner, epochs = sweep.settings["pruner"], sweep.settings["min_epochs"]
    if pruner == "none":
        return
    if len(sweep.objective) > 1:
        raise InputError(f"sweep.pruner: {pruner} judges by one objective; with several give sweep.pruner=none")
    searched = [dimension.key for dimension in sweep.space.dimensions]
    for key in (*searched, *sweep.space.follows):
        if pruner == "hyperband" and key.lstrip("+").startswith(("trainer.max_epochs", "phases")):
            raise InputError(f"{key}: hyperband compares trials of the same number of epochs; don't search it")
    if epochs > sweep.num_epochs:
        raise InputError(f"sweep.min_epochs: {epochs} is more than the {sweep.num_epochs} epochs of a trial")


def check_sampler(sweep: Sweep) -> None:
    settings, sampler = sweep.settings, sweep.settings["sampler"]
    if sampler == "grid":
        num = len(sweep.space.grid())
        outside = [cell for cell in settings["cells"] or () if cell >= num]
        if outside:
            raise InputError(f"sweep.cells: {outside[0]} is not one of the grid's {num:,} cells, from 0")
        return
    for key in ("cells", "grid_fraction"):
        if settings[key] is not None:
            raise InputError(f"sweep.{key}: is for sweep.sampler=grid, and this is {sampler}")
    if settings["trials"] is None:
        raise InputError(f"sweep.trials: null is for sweep.sampler=grid; give a number for {sampler}")
    if sampler == "cmaes" and not any(d.values() is None or not d.choices for d in sweep.space.dimensions):
        raise InputError("sweep.sampler: cmaes searches numbers, and the space has choices alone; take tpe")
    if sampler == "cmaes" and len(sweep.objective) > 1:
        raise InputError("sweep.sampler: cmaes has one objective; with several take tpe")


class NthValueTrial:
    """In place of a trial: of each dimension one value after another."""

    def __init__(self, number: int):
        self.number = number

    def suggest_categorical(self, name: str, values: list):
        return values[self.number % len(values)]

    def suggest_float(self, name: str, low, high, **_):
        return high if self.number % 2 else low

    suggest_int = suggest_float


def try_space(sweep: Sweep, complete: bool = True) -> None:
    """Composes and checks trials in which each choice comes once. Raises InputError for the first that is wrong."""
    num = max(max(len(dimension.choices), 2) for dimension in sweep.space.dimensions)
    for number in range(min(num, MAX_SAMPLE_DRAWS)):
        drawn = sweep.space.draw(NthValueTrial(number))
        words = sweep.overrides_for(drawn)
        try:
            compose(words, complete)
        except InputError as error:
            told = ", ".join(f"{key}={value}" for key, value in drawn.items())
            raise InputError(f"{error} (in a trial with {told})") from None
