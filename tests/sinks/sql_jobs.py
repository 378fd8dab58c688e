"""A whole pipeline into a database, as the processes run it that are killed: importable without pytest.

    python sql_jobs.py '{"kind": "sqlite", …}'      says "ready" when all is imported, then runs

Where it is to be killed at an exact point, it sends SIGKILL to itself there; nothing is closed or unwound then.
"""

import dataclasses
import json
import os
import signal
import sys

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


def run(job, instrument=lambda event, /, **fields: None):
    """Run the job in this process."""
    built = pipeline(job)
    options = Options(
        state=job.state,
        memory="16MiB",
        commit_every_s=3600,
        commit_every_bytes=job.commit_every_rows * ROW_BYTES,
        instrument=instrument,
    )
    return trio.run(execute, built, built.graph.sink, options)


class Executioner:
    """Kills the process at an occurrence of an event."""

    def __init__(self, job):
        self._job = job
        self._seen = 0

    def __call__(self, event, /, **fields):
        if event == self._job.kill_at:
            self._seen += 1
            if self._seen == self._job.kill_on:
                os.kill(os.getpid(), signal.SIGKILL)


def main():
    job = Job(**json.loads(sys.argv[1]))
    executioner = Executioner(job)
    reading = Segments.reading

    def reading_noted(self, handle):
        executioner("insert")
        return reading(self, handle)

    Segments.reading = reading_noted
    print("ready", flush=True)
    run(job, executioner)


if __name__ == "__main__":
    main()
