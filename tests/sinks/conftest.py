"""The databases of the transactional sinks, one after the other.

A machine without PostgreSQL leaves its tests out and says so; in CI (`CI=true`) nothing is left out.
"""

import os
from itertools import count

import pytest
import sql_jobs
from crash.nursery_of_kills import Zygote
from databases import Duckdb, Postgres, Sqlite
from postgres_server import PostgresServer, programs

NUMBERS = count()


@pytest.fixture(scope="session")
def postgres_server():
    """A server that runs; a test that kills it starts it again."""
    found = programs()
    if found is None and os.environ.get("CI"):
        pytest.fail("PostgreSQL is not installed")
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(found)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Runs jobs into databases in processes that can be killed."""
    with Zygote(tmp_path_factory.mktemp("zygote") / "zygote.log", sql_jobs.__file__) as started:
        yield started


@pytest.fixture(params=["sqlite", "duckdb", "postgres"])
def database(request, tmp_path):
    """A database of its own for each test."""
    if request.param == "sqlite":
        return Sqlite(tmp_path)
    if request.param == "duckdb":
        return Duckdb(tmp_path)
    return Postgres(request.getfixturevalue("postgres_server"), f"test_{next(NUMBERS)}")


@pytest.fixture
def impatient(database, monkeypatch):
    """Sinks that hardly wait for the locks of others."""
    monkeypatch.setattr(f"{database.module}.BUSY_WAIT_S", 0.05)
