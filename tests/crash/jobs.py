"""The jobs that are killed, as the killed process runs them: importable without pytest.

A job is the main job of the README on files of real events. Where it is to be killed at an exact point, an instrument
counts that event and sends SIGKILL to its own process; nothing is closed, flushed or unwound then.
"""

import ctypes
import dataclasses
import os
import random
import resource
import signal
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import trio

import engine
from engine import sinks, sources
from engine._runtime.repair import repair_async
from engine._runtime.run import Options, execute
from engine.errors import EngineError
from engine.source import Reader
from engine.testing.determinism import run_deterministically
from engine.testing.inline_threads import Delay, InlineBackground, InlineWorkers

REFUSED = 3
"""Exit status of a job that ended with an error of the engine."""

OUT_OF_MEMORY = 4
EXITED = 5
"""That of a job whose map leaves the process."""

GAPS = (
    "commit.barrier",
    "commit.snapshotted",
    "commit.prepared",
    "commit.committed",
    "commit.published",
    "commit.acked",
    "commit.finalized",
)
"""Between a barrier and step 1, between each step and the next, and behind step 6."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run, and where it leaves what it did. Plain values: it travels as JSON."""

    input: str
    output: str = ""
    sink: str = "parquet"
    """Which of ``sinks``; a database has one table, "events"."""

    state: str = ""
    reads: str = os.devnull
    """A file to which every read appends its count of rows, so that rows are counted across kills."""

    events: str = os.devnull
    """A file to which every event of the instrument is appended, a line each."""

    key: str = "key"
    within: int | None = None
    partitions: int = 8
    memory: str = "64MiB"
    commit_every_bytes: int = 1
    """One byte: every file is an epoch of its own."""

    kill_at: str | None = None
    """The event at which the process kills itself."""

    kill_on: int = 1
    """Which occurrence of that event."""

    halted: bool = False
    """Whether the process stops itself before it begins, until somebody sends SIGCONT."""

    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    """Resources of the process by name (``RLIMIT_FSIZE``), and how much of each it may have."""

    crash: str | None = None
    """How the map ends the process at its second batch: "abort", "segfault" or "exit"; "memory" raises MemoryError."""

    mend: bool = False
    """Whether the state is repaired, and not run."""

    seed: int | None = None
    """Decides chance, clocks and the order of tasks, and all is done on one thread: the same calls in every run."""


class CountedReads:
    """A source that notes on disk how many rows each read gave."""

    def __init__(self, source: engine.Source, path: str) -> None:
        self._source = source
        self._path = path
        self.name = source.name
        self.replay = source.replay

    def schema(self) -> pa.Schema:
        return self._source.schema()

    def open(self, offset: object, *, durable: bool) -> Reader:
        return CountedReader(self._source.open(offset, durable=durable), self._path)

    def ack(self, offset: object) -> None:
        self._source.ack(offset)

    def covers(self, directory: str) -> bool:
        return self._source.covers(directory)


class CountedReader:
    def __init__(self, reader: Reader, path: str) -> None:
        self._reader = reader
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def read(self) -> object:
        read = self._reader.read()
        if read is not None:
            os.write(self._file, b"%d\n" % read.rows.num_rows)
        return read

    def close(self) -> None:
        os.close(self._file)
        self._reader.close()


class Executioner:
    """An instrument that notes every event and kills the process at one of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seen = 0
        self._file = os.open(job.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, event: str, /, **fields: object) -> None:
        os.write(self._file, f"{event}\n".encode())
        if event == self._job.kill_at:
            self._seen += 1
            if self._seen == self._job.kill_on:
                os.kill(os.getpid(), signal.SIGKILL)


def with_length(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a column that the model can compute too: the length of the key."""
    return rows.append_column("key_bytes", pc.binary_length(rows.column("key")))


class Crashing:
    """A map that does what ``with_length`` does, and at its second batch ends the process without a word."""

    def __init__(self, how: str) -> None:
        self._how = how
        self._batches = 0

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        self._batches += 1
        if self._batches == 2:
            self._crash()
        return with_length(rows)

    def _crash(self) -> None:
        match self._how:
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(EXITED)
            case "memory":
                raise MemoryError


def split_into_files(table: pa.Table, directory: Path, files: int) -> None:
    directory.mkdir()
    rows = -(-table.num_rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * rows, rows), directory / f"events-{number:03}.parquet")


def limit(limits: dict[str, int]) -> None:
    """Let this process have no more than that: of memory and descriptors, beside what it has now."""
    for name, most in limits.items():
        used = 0
        if name == "RLIMIT_AS":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            used = pages * resource.getpagesize()
        elif name == "RLIMIT_NOFILE":
            used = max(int(number) for number in os.listdir("/proc/self/fd"))
        number = getattr(resource, name)
        resource.setrlimit(number, (used + most, resource.getrlimit(number)[1]))


def lift(limits: dict[str, int]) -> None:
    """Let it have what it likes again."""
    for name in limits:
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        resource.setrlimit(number, (most, most))


def failed(job: Job, error: BaseException) -> int:
    """The exit status of a job that raised."""
    lift(job.limits)
    if isinstance(error, EngineError):
        return REFUSED
    return OUT_OF_MEMORY if isinstance(error, MemoryError) else 70


def pipeline(job: Job) -> engine.Pipeline:
    return (
        engine.Pipeline("events")
        .read(CountedReads(sources.parquet(job.input), job.reads))
        .dedup("event_id", within=job.within)
        .key_by(job.key, partitions=job.partitions)
        .map(with_length if job.crash is None else Crashing(job.crash))
        .write(sink(job))
    )


def sink(job: Job) -> engine.Sink:
    table = {"table": "events"} if job.sink == "sqlite" else {}
    made: engine.Sink = getattr(sinks, job.sink)(job.output, **table)
    return made


def run(job: Job) -> None:
    """Run the job in this process, to its end or to its kill."""
    if job.halted:
        os.kill(os.getpid(), signal.SIGSTOP)
    built = pipeline(job)
    options = Options(
        state=job.state,
        memory=job.memory,
        commit_every_s=3600,
        commit_every_bytes=job.commit_every_bytes,
        instrument=Executioner(job),
    )
    assert built.graph.sink is not None
    limit(job.limits)
    if job.seed is None:
        trio.run(execute, built, built.graph.sink, options)
        return
    main = partial(repair_async, built) if job.mend else partial(execute, built, built.graph.sink)
    background = InlineBackground()
    workers = InlineWorkers(random.Random(job.seed), background, Delay())
    on_one_thread = dataclasses.replace(options, workers=lambda: workers, background=lambda name: background)
    run_deterministically(job.seed, main, on_one_thread)
