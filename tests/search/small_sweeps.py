"""Build searches of tiny runs, and read what they left."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pandas as pd
import pgserver
import psutil
from optuna.trial import FrozenTrial

from carvision.search.build import Sweep, build_sweep
from carvision.search.heartbeat import Heartbeat
from carvision.search.queue import Queue
from carvision.search.study import open_storage, open_study
from tests.small_runs import SMALL

optuna.logging.set_verbosity(optuna.logging.ERROR)
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def overrides_for(folder: Path, *words: str) -> list[str]:
    """Return the arguments of carvision.sweep for a search of tiny runs of one epoch."""
    small = [word for word in SMALL if not word.startswith(("callbacks.", "trainer."))]
    return [*small, "trainer.max_epochs=1", "logger=none", f"sweep.dir={folder}", *map(str, words)]


def small_sweep(folder: Path, *words: str) -> Sweep:
    return build_sweep(overrides_for(folder, *words))


def study_of(sweep: Sweep) -> optuna.Study:
    return open_study(sweep, open_storage(sweep.settings["storage"], sweep.folder))


def queue_of(sweep: Sweep) -> Queue:
    """Return the queue as one more worker sees it. Another one of the same process counts as dead."""
    storage = open_storage(sweep.settings["storage"], sweep.folder)
    return Queue(sweep, open_study(sweep, storage), storage)


def claim(queue: Queue) -> tuple[optuna.Trial, Heartbeat] | None:
    """Claim a trial and draw its values; its heartbeat is running."""
    claimed = queue.next()
    if claimed:
        queue.sweep.space.draw(claimed[0])
    return claimed


def claim_quietly(queue: Queue) -> optuna.Trial | None:
    """Claim a trial and draw its values; its heartbeat has ended."""
    claimed = claim(queue)
    if claimed is None:
        return None
    claimed[1].end()
    return claimed[0]


@contextmanager
def postgres() -> Iterator[pgserver.PostgresServer]:
    """Run a PostgreSQL server of its own, reached through a socket."""
    with tempfile.TemporaryDirectory(prefix="carvision-pg") as folder:  # pytest's are too deep for a socket
        server = pgserver.get_server(folder)
        yield server
        server.cleanup()


def restart(server: pgserver.PostgresServer) -> None:
    """Start the server again after a kill -9."""
    psutil.wait_procs([psutil.Process(server.get_pid())] if psutil.pid_exists(server.get_pid()) else [], timeout=30)
    server.ensure_postgres_running()


def url_of(server: pgserver.PostgresServer) -> str:
    return server.get_uri().replace("postgresql://", "postgresql+psycopg://")


def trials_of(folder: Path, url: str | None = None) -> list[FrozenTrial]:
    storage = open_storage(url, folder)
    return optuna.load_study(study_name=folder.name, storage=storage).get_trials(deepcopy=False)


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv", index_col="trial")
