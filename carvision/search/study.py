"""The study that all workers of a search share: its storage, sampler, pruner and identity."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from carvision.config.compose import flat_config, keys_added_since, with_later_defaults
from carvision.config.overrides import expand_home
from carvision.config.schema import KEYS_WITHOUT_EFFECT
from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, write_text
from carvision.files.folders import LOCK, is_run, refuse_foreign_folder, shorten
from carvision.files.locks import lock_when_free
from carvision.search.build import Sweep
from carvision.search.queue import CELL, RUNNING, TRIALS

if TYPE_CHECKING:
    from sqlalchemy import URL
if sys.platform == "win32":  # where symbolic links need privileges
    from optuna.storages.journal import JournalFileOpenLock as JournalLock
else:
    from optuna.storages.journal import JournalFileSymlinkLock as JournalLock

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
JOURNAL = "journal.log"
FIRST_WRITTEN = {LOCK, RUNNING, "logs"}  # what a search with a database creates before its first trial
WRITTEN = {*FIRST_WRITTEN, TRIALS, "experiment", "trials.csv", "search.html"}
WRITTEN |= {f"{name}.png" for name in ("history", "importance", "slices", "parallel", "pareto")}
BEGUN_WITH = "carvision"  # attribute of the study
OPENINGS = 5  # attempts to open a database
SQLITE_WAIT_S = 60  # for another process that writes to it
# Attributes by which earlier code marked a trial as interrupted, continued it as a new one, and left one unused
BROKEN, RETRY_OF, SURPLUS = "broken_off", "retry_of", "surplus"


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the database at `url`, or without one the journal in the folder, which is created. Raises InputError."""
    database = url and _open_database(url)
    refuse_foreign_folder(folder, "sweep.dir", partial(is_search, database=Path(url or "").name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"sweep.dir: {shorten(str(folder))} can't be made ({error.strerror}); give another path"
        ) from None
    if database:
        return database
    journal = folder / JOURNAL
    if _has_interrupted_trials(journal):
        with lock_when_free(folder):
            if _has_interrupted_trials(journal):  # still, as another process may have been faster
                reopen_interrupted(journal)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=RepairingLock(journal)))


def is_search(folder: Path, database: str) -> bool:
    """Return whether the folder belongs to a search: by its journal, or with a database by its trials or file names.

    database: file name of the storage, which may lie there; "" for a journal.
    """
    journal = folder / JOURNAL
    if os.path.lexists(journal):
        return not journal.is_symlink() and _is_carvision_journal(journal)
    if not database:
        return False
    trials = (folder / TRIALS).glob("[0-9]*")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(database)}
    return any(is_run(trial) for trial in trials) or (names <= WRITTEN and (not names or bool(names & FIRST_WRITTEN)))


def _is_carvision_journal(journal: Path) -> bool:
    """Return whether the journal has a study of carvision's, or nothing but the creation of studies so far."""
    try:
        with journal.open(encoding="utf-8") as file:
            entries = [json.loads(line) for line in itertools.islice(file, 100) if line.endswith("\n")]
        return any(BEGUN_WITH in line.get("user_attr", {}) for line in entries) or all(
            line["op_code"] == 0 for line in entries
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _open_database(url: str) -> RDBStorage:
    url = re.sub(r"^sqlite:///(~.*)", lambda match: f"sqlite:///{expand_home(match[1])}", url)
    text = ""
    for _ in range(OPENINGS):  # several workers may create a new database's tables at once
        try:
            return _connect(url)
        except Exception as error:  # SQLAlchemy's, the driver's, Optuna's, or a missing driver
            text = one_line(error, 300)
            time.sleep(random.uniform(0.05, 0.5))
    raise InputError(
        f"sweep.storage: {url} can't be opened ({text}); takes a database's URL such as sqlite:///sweep.db or "
        "postgresql://user@host/name, or null for a journal in the search's folder"
    )


def _has_interrupted_trials(journal: Path) -> bool:
    """Return whether earlier code left interrupted trials, none of which it has continued yet."""
    text = journal.read_text(encoding="utf-8", errors="replace") if journal.exists() else ""
    return f'"{BROKEN}"' in text and f'"{RETRY_OF}"' not in text


def reopen_interrupted(journal: Path) -> None:
    """Let interrupted trials wait, which earlier code recorded as failed."""
    truncate_partial_line(journal)
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    is_mark = [BROKEN in entry.get("user_attr", {}) for entry in entries]
    broken = {entry["trial_id"] for entry, mark in zip(entries, is_mark, strict=True) if mark}
    for entry in entries:
        if entry.get("state") == TrialState.FAIL and entry.get("trial_id") in broken:
            entry["state"] = TrialState.WAITING
    kept = [json.dumps(entry) + "\n" for entry, mark in zip(entries, is_mark, strict=True) if not mark]
    write_text(journal, "".join(kept))


def _connect(url: str) -> RDBStorage:
    from sqlalchemy import make_url

    options: dict = {"pool_pre_ping": True}  # connections may drop between long epochs
    database = make_url(url)
    if database.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_WAIT_S}
        if database.database not in (None, ":memory:") and not Path(database.database).exists():
            _create_sqlite(database)
    return RDBStorage(url, engine_kwargs=options)


def _create_sqlite(url: "URL") -> None:
    """Create the database at once with all its tables: a kill between a table and its index would leave one in which
    two studies can have the same name."""
    file = Path(url.database or "")
    partial = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    RDBStorage(str(url.set(database=str(partial)))).engine.dispose()
    with contextlib.suppress(OSError):  # another worker was faster; or a disk without links, where Optuna creates it
        os.link(partial, file)
    partial.unlink()


class RepairingLock(JournalLock):
    """Lock Optuna's journal, and remove a partial last line when acquired: a worker killed while writing may have left
    one, and the next line would be appended to it, making the journal unreadable."""

    def __init__(self, journal: Path):
        super().__init__(str(journal))
        # A relative link target, valid wherever the folder is mounted
        self._lock_target_file = journal.name
        self.journal = journal

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            truncate_partial_line(self.journal)
        except BaseException:
            self.release()
            raise
        return held


def truncate_partial_line(journal: Path) -> None:
    """Truncate the file after its last newline."""
    with journal.open("r+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def open_study(sweep: Sweep, storage: BaseStorage) -> optuna.Study:
    """Create the study, or load it if another start created it. Raise InputError if that one searched something
    else."""
    study = optuna.create_study(
        storage=storage,
        sampler=create_sampler(sweep),
        pruner=create_pruner(sweep.settings, sweep.num_epochs),
        study_name=sweep.name,
        directions=[MINIMIZE if mode == "min" else MAXIMIZE for mode in sweep.objective.values()],
        load_if_exists=True,
    )
    # In this order, as another worker may be about to begin the study and its first trial
    has_trials, has_runs = bool(study.get_trials(deepcopy=False)), (sweep.folder / TRIALS).is_dir()
    now, before = study_identity(sweep), study.user_attrs.get(BEGUN_WITH)
    if before is None:
        if has_runs:
            raise InputError(
                f"sweep.dir: {sweep.folder} holds trials of another study than {sweep.name!r}; give another sweep.dir"
            )
        if has_trials:
            raise InputError(f"sweep.study: {sweep.name!r} is another program's study; give another name")
        study.set_user_attr(BEGUN_WITH, now)
    else:
        require_same(before, now, sweep)
        require_one_number_a_trial(sweep, study)
    return study


def require_one_number_a_trial(sweep: Sweep, study: optuna.Study) -> None:
    """Raise InputError for a search by earlier code in which a trial has several numbers."""
    cells = dict(enumerate(sweep.cells or []))
    for trial in study.get_trials(deepcopy=False):
        moved = CELL in trial.user_attrs and trial.user_attrs[CELL] != cells.get(trial.number)
        if moved or {BROKEN, RETRY_OF, SURPLUS} & trial.user_attrs.keys():
            raise InputError(
                f"sweep.dir: {sweep.folder} holds a search in which an earlier version of carvision continued "
                "interrupted trials under new numbers; finish it with that version, or give another sweep.dir"
            )


@contextlib.contextmanager
def storage_errors(sweep: Sweep) -> Iterator[None]:
    """Raise InputError if the database fails while the search is running."""
    try:
        yield
    except StorageInternalError as error:
        raise InputError(
            f"sweep.storage: {sweep.settings['storage']} has failed ({one_line(error.__cause__ or error, 200)}); once "
            "it works again, the same command continues the search"
        ) from None


def study_identity(sweep: Sweep) -> dict[str, dict]:
    """Return the settings that must be equal for trials to be comparable, as JSON types."""
    config = {
        key: value
        for key, value in flat_config(sweep.config).items()
        if not key.startswith(("run.", "features.", "callbacks.")) and key not in KEYS_WITHOUT_EFFECT
    }
    grid = {}
    if sweep.cells is not None:
        grid = {key: sweep.settings[key] for key in ("sampler", "grid_fraction", "cells")}
        # Their order numbers the cells
        grid["space"] = ", ".join(dimension.key for dimension in sweep.space.dimensions)
        if grid["grid_fraction"]:
            grid["seed"] = sweep.settings["seed"]
    return {
        "space": sweep.space.description(),
        "objective": {"sweep.objective": ", ".join(f"{mode} {metric}" for metric, mode in sweep.objective.items())},
        "sweep": grid,
        "training": config,
    }


def require_same(before: Mapping, now: Mapping, sweep: Sweep) -> None:
    """Raise InputError with the differences, if any. A key that an earlier version lacked is not a difference if it has
    its default."""
    changes = []
    for part, values in now.items():
        earlier = with_later_defaults(before.get(part, {}), values)
        added = keys_added_since(earlier, values) if part == "training" else []
        for key in {**earlier, **values}:
            if earlier.get(key) != values.get(key) and key not in added:
                changes.append(f"{key}: {earlier.get(key, 'nothing')} became {values.get(key, 'nothing')}")
    if changes:
        raise InputError(
            f"sweep.dir: {sweep.folder} holds a search with other values: {'; '.join(changes)}. Give the same "
            "overrides to continue it, or another sweep.dir"
        )


def create_pruner(settings: Mapping, most: int) -> BasePruner:
    """Create the pruner. most: epochs of a full trial; a trial's intermediate values are numbered from 1."""
    first, factor = settings["min_epochs"], settings["reduction_factor"]
    return {
        "none": NopPruner,
        "median": lambda: MedianPruner(n_startup_trials=5, n_warmup_steps=first),
        "halving": lambda: SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor),
        "hyperband": lambda: HyperbandPruner(min_resource=first, max_resource=most, reduction_factor=factor),
    }[settings["pruner"]]()


def create_sampler(sweep: Sweep) -> BaseSampler:
    """Create the sampler that conf/sweep names, seeded for each trial."""
    return SeededByNumber(sweep) if sweep.cells is None else CellSampler(sweep)


class SeededByNumber(BaseSampler):
    """Create the sampler anew for each trial, seeded by the trial's number: workers never draw the same values by
    chance, and an interrupted search draws the same values as an undisturbed one."""

    def __init__(self, sweep: Sweep):
        self.settings = sweep.settings
        self.sampler = self._create(sweep.settings["seed"])

    def _create(self, seed: int) -> BaseSampler:
        startup = self.settings["startup_trials"]
        match self.settings["sampler"]:
            case "random":
                return RandomSampler(seed)
            case "cmaes":
                return CmaEsSampler(seed=seed, n_startup_trials=max(1, startup), warn_independent_sampling=False)
        # group: conditional keys are drawn jointly if their condition holds
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)

    def before_trial(self, study, trial) -> None:
        digest = hashlib.sha256(f"{self.settings['seed']} {trial.number}".encode()).digest()
        self.sampler = self._create(int.from_bytes(digest[:4], "little"))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values) -> None:
        self.sampler.after_trial(study, trial, state, values)


class CellSampler(BaseSampler):
    """Give each trial the values of one cell of a grid, by the trial's number."""

    def __init__(self, sweep: Sweep):
        self.cells, self.grid = sweep.cells or [], sweep.space.grid()

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.grid[self.cells[trial.number]][param_name]


def brackets_of(sweep: Sweep) -> list[tuple[int, list[int]]]:
    """Return Hyperband's brackets: (share of the trials, epochs after which each trial is judged), as Optuna divides
    them (ASHA's rungs in each bracket; Li et al. 2018, "Hyperband", J. Mach. Learn. Res. 18, algorithm 1)."""
    first, factor, most = sweep.settings["min_epochs"], sweep.settings["reduction_factor"], sweep.num_epochs
    count = math.floor(math.log(most / first, factor)) + 1
    found = []
    for number in range(count):
        rungs = [first * factor ** (number + i) for i in range(count - number)]
        num = math.ceil(count * factor ** (count - 1 - number) / (count - number))
        found.append((num, [rung for rung in rungs if rung < most]))
    return found


def describe_brackets(sweep: Sweep) -> list[str]:
    """Return a line for each bracket, and a warning if the trials are too few for them."""
    found, trials, factor = brackets_of(sweep), sweep.num_trials, sweep.settings["reduction_factor"]
    whole = sum(share for share, _ in found)
    lines = [f"hyperband: {len(found)} bracket{'s' * (len(found) > 1)} of trials of up to {sweep.num_epochs} epochs"]
    for number, (share, rungs) in enumerate(found):
        outcome = f"one of {factor} continues after {', '.join(map(str, rungs))}" if rungs else "none is pruned"
        share /= whole
        lines.append(f"  bracket {number + 1}: {share:.0%}, about {trials * share:.0f} trials; {outcome}")
    if trials < whole:
        lines.append(
            f"  {trials} trials are too few for these brackets, which need {whole}: pruning will be rare; give more "
            "with sweep.trials=, or fewer brackets by sweep.min_epochs= or sweep.reduction_factor="
        )
    return lines
