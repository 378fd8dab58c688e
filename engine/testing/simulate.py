"""A user's own pipeline on a simulated machine: its power fails, its disk refuses, it is started again, and in the end
its rows are compared with those of a run to which nothing happened.

    for outcome in simulate(make_pipeline, seeds=range(1000)):
        assert outcome.problem is None, outcome

Laws
    - Threads are tasks of one thread, time is virtual, chance is seeded: one seed is one history, and the same seed
      gives the same ``trace`` again.
    - Everything that the pipeline keeps and writes is on the simulated disk; its sources are read as they are.
    - Every seed has at least one fault that is to fire while the pipeline runs; those that fired are counted. After the
      last of them the pipeline is run to its end, and then the power fails once more: what was committed must be there.
    - An error is accepted where a fault fired in that attempt, and only one of engine's own; rows are then compared all
      the same.
"""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from engine._runtime.run import Options, execute
from engine.errors import EngineError, PipelineError
from engine.log.log import Log
from engine.pipeline import Pipeline
from engine.report import Report
from engine.stages.hash_partitioner import KeyBy
from engine.testing.checkers import CHECKERS, Output
from engine.testing.determinism import run_deterministically
from engine.testing.inline_threads import InlineBackground, InlineWorkers
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import CutPower, FailCall, Fault, ShortWrite, SlowCall

__all__ = ["Outcome", "simulate"]

STATE = "/simulated-state"
ATTEMPTS = 20
"""After so many starts a pipeline that still does not end is a problem of its own."""

CRASHING_ATTEMPTS = 3
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
CUT_CALLS = ("sync", "rename", "append", "sync_directory")
FAILING_CALLS = ("append", "sync", "sync_directory", "create", "rename", "unlink", "open", "pread", "list", "truncate")


@dataclass(slots=True)
class Outcome:
    """What became of one seed. ``problem`` is None where all is well."""

    seed: int
    attempts: int = 0
    commits: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    trace: str = ""
    """A digest of every call of every attempt."""

    problem: str | None = None


def simulate(
    make_pipeline: Callable[[], Pipeline],
    *,
    seeds: Iterable[int],
    memory: str = "1MiB",
    commit_every_bytes: int | None = None,
    storage: Callable[..., SimulatedStorage] = SimulatedStorage,
) -> Iterator[Outcome]:
    """Run the pipeline once for each seed, with faults, and once without; give an outcome a seed.

    ``make_pipeline`` gives the same pipeline each time. Its sink must write by engine's storage: Parquet, Arrow IPC,
    log. ``commit_every_bytes``: None takes a tenth of the input, so that there are several commits. ``storage``: the
    simulated disk, for those who want another one. Raises PipelineError for a pipeline that cannot be simulated.
    """
    world = _World(make_pipeline, memory, commit_every_bytes, storage)
    for seed in seeds:
        yield world.outcome(seed)


class _World:
    """What all seeds share: the pipeline, and what comes of it when nothing happens."""

    def __init__(
        self,
        make_pipeline: Callable[[], Pipeline],
        memory: str,
        commit_every_bytes: int | None,
        storage: Callable[..., SimulatedStorage],
    ) -> None:
        self._make_pipeline = make_pipeline
        self._memory = memory
        self._commit_every_bytes = commit_every_bytes
        self._storage = storage
        pipeline = make_pipeline()
        _location(pipeline)
        undisturbed = storage(0)
        if commit_every_bytes is None:
            self._commit_every_bytes = 1 << 62
            report = self._attempt(0, undisturbed)
            self._commit_every_bytes = max(1, _input_bytes(pipeline, report) // 10)
            undisturbed = storage(0)
        self._attempt(0, undisturbed)
        self._calls = len(undisturbed.trace)
        self._schema_names = pipeline.graph.schemas()[-1].names
        self._expected = _read_output(pipeline, undisturbed, self._schema_names)
        keys = next((stage.keys for stage in pipeline.graph.stages if isinstance(stage, KeyBy)), ())
        places = [self._schema_names.index(key) for key in keys if key in self._schema_names]
        self._key_of: Callable[[tuple[Any, ...]], Any] = lambda row: tuple(row[place] for place in places)

    def outcome(self, seed: int) -> Outcome:
        """The history of one seed."""
        chance = Random(seed)
        outcome = Outcome(seed)
        digest = hashlib.blake2b(digest_size=16)
        storage = self._storage(chance.getrandbits(32), faults=self._faults(chance))
        while outcome.problem is None:
            outcome.attempts += 1
            report: Report | None = None
            error: BaseException | None = None
            try:
                report = self._attempt(chance.getrandbits(32), storage)
            except PowerLost as lost:
                error = lost
            except EngineError as failed:
                error = failed
                if not storage.fired:
                    outcome.problem = f"it failed without a fault: {type(failed).__name__}: {failed}"
            except Exception as failed:
                error = failed
                outcome.problem = f"what left is no error of engine's: {type(failed).__name__}: {failed}"
            outcome.fired += storage.fired
            digest.update(repr(storage.trace).encode())
            if report is not None:
                break
            if outcome.attempts >= ATTEMPTS:
                outcome.problem = f"after {ATTEMPTS} starts it still fails: {error}"
            faults = self._faults(chance) if outcome.attempts < CRASHING_ATTEMPTS else ()
            power = isinstance(error, PowerLost) or chance.random() < 0.5
            storage = storage.crash(faults=faults) if power else storage.kill(faults=faults)
        outcome.trace = digest.hexdigest()
        if outcome.problem is None:
            outcome.problem = self._compare(storage)
        return outcome

    def _attempt(self, seed: int, storage: SimulatedStorage) -> Report:
        pipeline = self._make_pipeline()
        sink = pipeline.graph.sink
        sink.storage = storage  # type: ignore[union-attr]
        background = InlineBackground()
        options = Options(
            state=STATE,
            memory=self._memory,
            commit_every_s=1e9,
            commit_every_bytes=self._commit_every_bytes,
            storage=storage,
            workers=lambda: InlineWorkers(Random(seed), background),  # type: ignore[arg-type,return-value]
            background=lambda name: background,  # type: ignore[arg-type,return-value]
        )
        return run_deterministically(seed, execute, pipeline, sink, options)

    def _faults(self, chance: Random) -> Sequence[Fault]:
        """At least one that is likely to fire, and a few that may."""
        nth = chance.randrange(1, self._calls + 1)
        call = chance.choice(FAILING_CALLS)
        some = max(1, self._calls // 10)
        kinds: list[Callable[[], Fault]] = [
            lambda: CutPower(nth=nth),
            lambda: CutPower(
                chance.choice(("sync", "rename", "append", "sync_directory")), nth=chance.randrange(1, some)
            ),
            lambda: FailCall("*", nth=nth, errno=chance.choice(ERRORS), times=chance.choice((1, 1, None))),
            lambda: FailCall(call, nth=chance.randrange(1, some), errno=chance.choice(ERRORS)),
            lambda: ShortWrite(nth=chance.randrange(1, some), times=chance.choice((1, 5))),
            lambda: SlowCall("sync", delay_s=30.0, times=3),
        ]
        return [chance.choice(kinds[:3])(), *(chance.choice(kinds)() for _ in range(chance.randrange(3)))]

    def _compare(self, storage: SimulatedStorage) -> str | None:
        try:
            found = _read_output(self._make_pipeline(), storage.crash(), self._schema_names)
        except (pa.ArrowException, EngineError, OSError) as error:
            return f"what was committed cannot be read: {type(error).__name__}: {error}"
        complaints = [line for checker in CHECKERS for line in checker(found, self._expected, self._key_of)]
        return "; ".join(complaints) or None


def _location(pipeline: Pipeline) -> str:
    """Where the sink writes. Raises PipelineError where that is not on the simulated disk."""
    sink = pipeline.graph.sink
    if getattr(sink, "kind", None) not in ("parquet", "arrow_ipc", "log"):
        raise PipelineError(f"simulate: {sink} cannot be simulated; Parquet, Arrow IPC and log sinks can")
    return os.path.join("/", str(sink.location))  # type: ignore[union-attr]


def _input_bytes(pipeline: Pipeline, report: Report) -> int:
    """About the bytes of the rows that were read."""
    schema = pipeline.graph.schemas()[0]
    return report.total.rows_in * sum(16 if kind.num_buffers > 2 else 8 for kind in schema.types)


def _read_output(pipeline: Pipeline, storage: SimulatedStorage, names: list[str]) -> Output:
    """The rows that readers see, by partition."""
    location, sink = _location(pipeline), pipeline.graph.sink
    if getattr(sink, "kind", None) == "log":
        with Log(location, write=False, storage=storage) as log:
            return {number: _rows(log.read(partition=number), names) for number in range(log.partitions)}
    found: dict[int, list[tuple[Any, ...]]] = {}
    read = pq.read_table if getattr(sink, "kind", None) == "parquet" else _read_ipc
    for path, data in sorted(storage.contents().items()):
        if data is not None and path.startswith(f"{location.rstrip('/')}/"):
            partition = int(os.path.basename(path).split("-")[1])
            table = read(pa.BufferReader(data))
            found.setdefault(partition, []).extend(_rows(table.to_batches(), names))
    return found


def _read_ipc(data: pa.NativeFile) -> pa.Table:
    with ipc.open_file(data) as reader:
        return reader.read_all()


def _rows(batches: Iterable[pa.RecordBatch], names: list[str]) -> list[tuple[Any, ...]]:
    return [tuple(_hashable(row[name]) for name in names) for batch in batches for row in batch.to_pylist()]


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, dict | list) else value
