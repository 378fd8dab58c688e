"""A whole pipeline into a database, as the processes run it that are killed: importable without pytest.

All drivers are imported, and none is used before a job runs: the process that forks the jobs imports them once. Where
a job is to be killed at an exact point, it sends SIGKILL to itself there; nothing is closed or unwound then.
"""

import dataclasses
import os
import signal

import adbc_driver_postgresql.dbapi  # noqa: F401
import duckdb  # noqa: F401
import pyarrow as pa
import trio

import engine
from engine import sinks, sources
from engine._runtime.run import Options, execute
from engine.sinks.segments import Segments

ROW_BYTES = 16
BATCH_ROWS = 500


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run; plain values, as it travels as JSON."""

    kind: str
    database: str
    state: str
    rows: int
    partitions: int = 3
    table: str = "events"
    commit_every_rows: int = 2_000
    kill_at: str | None = None
    """The event of the instrument, or ``insert``, at which the process kills itself."""

    kill_on: int = 1
    """Which occurrence of it."""


def rows_of(job):
    """The input: an id, and a text that tells damaged rows."""
    numbers = range(job.rows)
    return pa.table({"id": pa.array(numbers, pa.int64()), "text": [f"row {number * 7}" for number in numbers]})


def pipeline(job):
    batches = rows_of(job).to_batches(max_chunksize=BATCH_ROWS)
    sink = getattr(sinks, job.kind)(job.database, table=job.table)
    read = engine.Pipeline("events").read(sources.memory(pa.Table.from_batches(batches), id="numbers"))
    return read.key_by("id", partitions=job.partitions).write(sink)


def run(job, instrument=None):
    """Run the job in this process, to its end or to its kill."""
    built = pipeline(job)
    options = Options(
        state=job.state,
        memory="16MiB",
        commit_every_s=3600,
        commit_every_bytes=job.commit_every_rows * ROW_BYTES,
        instrument=instrument or Executioner(job),
    )
    return trio.run(execute, built, built.graph.sink, options)


def failed(job, error):
    """The exit status of a job that raised."""
    return 70


class Executioner:
    """Kills the process at an occurrence of an event."""

    def __init__(self, job):
        self._job = job
        self._seen = 0
        if job.kill_at == "insert":
            self._note_inserts()

    def __call__(self, event, /, **fields):
        if event == self._job.kill_at:
            self._seen += 1
            if self._seen == self._job.kill_on:
                os.kill(os.getpid(), signal.SIGKILL)

    def _note_inserts(self):
        reading = Segments.reading

        def reading_noted(segments, handle):
            self("insert")
            return reading(segments, handle)

        Segments.reading = reading_noted
