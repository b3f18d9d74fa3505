"""Storages of searches: a journal, SQLite, and a PostgreSQL server of these tests."""

import tempfile

import pgserver
import psutil
import pytest


class Postgres:
    """A PostgreSQL server, which is reached through a socket."""

    def __init__(self, folder: str):
        self.server = pgserver.get_server(folder)
        self.restart = self.server.ensure_postgres_running
        self.url = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def kill(self) -> None:
        postmaster = psutil.Process(self.server.get_pid())
        postmaster.kill()
        postmaster.wait(60)


@pytest.fixture(scope="session")
def postgres():
    with tempfile.TemporaryDirectory(prefix="carvision-pg") as folder:  # pytest's are too deep for a socket
        yield (postgres := Postgres(folder))
        postgres.server.cleanup()


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage_words(request, tmp_path) -> list[str]:
    """The overrides that choose a storage."""
    if request.param == "journal":
        return []
    url = request.getfixturevalue("postgres").url if request.param != "sqlite" else f"sqlite:///{tmp_path / 'study.db'}"
    return [f"sweep.storage='{url}'", f"sweep.study='{tmp_path.name}'"]
