"""SIGKILL at any moment: of the process that writes to SQLite, and of the PostgreSQL server that is written to."""

import dataclasses
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sql_jobs
from crash.nursery_of_kills import KILLED
from databases import Postgres, Sqlite
from sql_jobs import Job

from engine.errors import SinkError
from engine.sinks.segments import Segments

KILLS = 5
SERVER_KILLS = 3


def rows_in(database):
    found = database.arrow("SELECT id, text FROM events ORDER BY id").to_pydict()
    return list(zip(found["id"], found["text"], strict=True)) if found else []


def rows_expected(job):
    return list(enumerate(sql_jobs.rows_of(job).column("text").to_pylist()))


def test_a_process_that_writes_to_sqlite_is_killed_again_and_again(tmp_path, zygote, generator):
    """Each time before its rows are published and then at a random moment, which is no later than that; the job is
    always too long to end by itself.
    """
    database = Sqlite(tmp_path)
    job = Job("sqlite", database.database, str(tmp_path / "state"), rows=40_000, commit_every_rows=1_000)
    expected, met = rows_expected(job), set()
    for longest_s in (None, 0.4) * KILLS:
        killed = dataclasses.replace(job, kill_at="commit.committed", kill_on=generator.randint(2, 4))
        after_s = longest_s and generator.uniform(0.0, longest_s)
        assert zygote.run(killed, kill_after_s=after_s) == KILLED, zygote.said()
        met |= check_cut_short(database, job, expected)
    assert zygote.run(job) == 0, zygote.said()
    assert rows_in(database) == expected
    assert met == {"rows", "segments"}


def check_cut_short(database, job, expected):
    """What is visible after a kill: whole rows of the input, none twice. Gives what was met."""
    segments = [path for path in Path(job.state).rglob("*.arrow") if path.stat().st_size]
    try:
        found = rows_in(database)
    except sqlite3.OperationalError:  # not even the table was made
        return set()
    ids = {number for number, _ in found}
    assert len(ids) == len(found)
    assert set(found) <= set(expected)
    with closing(sqlite3.connect(database.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return {name for name, there in (("rows", found), ("segments", segments)) if there}


@pytest.fixture
def server(postgres_server, monkeypatch):
    """A server that runs when the test begins and when it ends."""
    monkeypatch.setattr("engine._runtime.coordinator._PUBLISH_WAIT_S", 0.01)
    yield postgres_server
    if not postgres_server.running:
        postgres_server.start()


def job_on(server, name, tmp_path, **options):
    database = Postgres(server, name)
    return database, Job("postgres", database.database, str(tmp_path / "state"), **options)


def test_a_server_that_is_killed_in_the_middle_of_a_commit(server, tmp_path, monkeypatch):
    database, job = job_on(server, "middle", tmp_path, rows=10_000)
    reading, reads = Segments.reading, []

    def killing(self, handle):
        reads.append(handle)
        if len(reads) == 5:  # of three partitions an epoch: one is in, the second is on its way
            server.kill()
        return reading(self, handle)

    def instrument(event, /, **fields):
        events.append(event)
        if event == "commit.publish_failed" and not server.running:
            server.start()

    events, before = [], server.kills
    monkeypatch.setattr(Segments, "reading", killing)
    sql_jobs.run(job, instrument)
    assert server.kills == before + 1
    assert events.count("commit.publish_failed") >= 1
    assert rows_in(database) == rows_expected(job)


def test_a_server_that_is_killed_right_after_a_commit_has_kept_it(server, tmp_path):
    database, job = job_on(server, "kept", tmp_path, rows=10_000)

    def instrument(event, /, **fields):
        if event == "commit.published" and fields["epoch"] in (1, 3):
            server.kill()
            server.start()

    before = server.kills
    sql_jobs.run(job, instrument)
    assert server.kills == before + 2
    assert rows_in(database) == rows_expected(job)


def test_a_server_that_is_killed_at_random_moments(server, tmp_path, generator):
    database, job = job_on(server, "random", tmp_path, rows=24_000, commit_every_rows=1_000)
    before, failed = server.kills, 0
    for _ in range(SERVER_KILLS):
        killer = Killer(server, commits=generator.randint(1, 4), after_s=generator.uniform(0, 0.04))
        try:
            with pytest.raises(SinkError) as raised:
                sql_jobs.run(job, killer)
        finally:
            killer.thread.join()
            server.start()
        assert isinstance(raised.value.__cause__, OSError)
        failed += 1
        found = rows_in(database)
        assert len({number for number, _ in found}) == len(found)
    sql_jobs.run(job)
    assert server.kills - before == failed == SERVER_KILLS
    assert rows_in(database) == rows_expected(job)


class Killer:
    """An instrument that has the server killed a moment after so many commits were written to the state directory, and
    in the third commit after that at the latest: before the job ends.
    """

    def __init__(self, server, *, commits, after_s):
        self.thread = threading.Thread(target=self._kill, args=(server, after_s))
        self._due = threading.Event()
        self._commits = commits

    def __call__(self, event, /, **fields):
        if event == "commit.committed":
            self._commits -= 1
            if self._commits == 0:
                self.thread.start()
            if self._commits == -3:
                self._due.set()
                self.thread.join()

    def _kill(self, server, after_s):
        self._due.wait(after_s)
        server.kill()
