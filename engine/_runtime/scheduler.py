"""The scheduler: opens a graph's sources, stages, channels and sink, and runs a task for each stage and lane under
Trio.

    sources ─► intake ─► front stages ─► exchange ─┬► lane 0: stages ─► sink
                                                   └► lane n: stages ─► sink

Laws
    - The first failure ends the run, and it alone reaches the caller; what fails in its wake is its consequence.
    - Later stages go first on the worker threads: what is in memory leaves before more comes in.
    - Everything that was opened is closed, whatever happens, and no thread of ours outlives the run but one stuck in
      a read.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import trio

from engine._core import pool
from engine._runtime.budget import Budget
from engine._runtime.channel import ReceiveChannel, SendChannel, open_channel
from engine._runtime.coordinator import Cadence, Coordinator
from engine._runtime.exchange import Exchange
from engine._runtime.failure import root_cause
from engine._runtime.intake import Counters, Intake
from engine._runtime.lane import SinkLane, StageLane
from engine._runtime.reading import SourceReading
from engine._runtime.worker import Dedicated, Workers
from engine.background import BackgroundThread
from engine.checkpoint.fence import FencedStorage
from engine.checkpoint.store import StateDirectory
from engine.graph import Graph
from engine.instrument import Instrument
from engine.progress import Barrier, Epoch, Token
from engine.sink import Sink, StagesInState
from engine.source import Reader
from engine.stage import Offload, Stage, Surroundings, Transform
from engine.stages.hash_partitioner import KeyBy, column_indices
from engine.storage import Storage

__all__ = ["Scheduler"]

CHANNEL_ROWS = 65_536
"""Rows that may wait in one channel: a batch. A barrier waits behind them all, so more would only delay commits."""

PREPARE_THREADS = 2
"""Threads that make ended epochs durable: one can encode while the other waits for the disk."""


@dataclass(slots=True)
class _Step:
    """A stage of the graph with the schema that enters it and its transforms, one a lane."""

    stage: Stage
    schema: pa.Schema
    transforms: list[Transform] = field(default_factory=list)

    @property
    def has_state(self) -> bool:
        """Whether a checkpoint holds something of it."""
        return self.stage.fingerprint() is not None


class Scheduler:
    """One run of a graph."""

    def __init__(
        self,
        graph: Graph,
        sink: Sink,
        *,
        state: StateDirectory | None,
        storage: Storage,
        scratch: str,
        memory_bytes: int,
        cadence: Cadence,
        instrument: Instrument,
        workers: Workers,
        background: BackgroundThread,
        seed: bytes,
        incarnation: str,
    ) -> None:
        self.counters = Counters()
        self.coordinator: Coordinator | None = None
        self.failure: BaseException | None = None
        self._graph = graph
        self._sink = sink
        self._state = state
        self._storage = storage
        self._scratch = scratch
        self._cadence = cadence
        self._instrument = instrument
        self._workers = workers
        self._background = background
        self._seed = seed
        self._incarnation = incarnation
        self._schemas = graph.schemas()
        self._front, self._back, self._key_by, self._key_schema = self._split()
        dedups = sum(step.has_state for step in self._front)
        dedups += graph.partitions * sum(step.has_state for step in self._back)
        channels = 2 + len(self._front) + graph.partitions * (1 + len(self._back))
        self.budget = Budget(memory_bytes, dedups, channels)
        self._receives: dict[str, list[ReceiveChannel[Any]]] = {}
        self._readers: list[Reader] = []
        self._threads: list[Dedicated] = []
        self._reading = trio.CancelScope()
        self._scope = trio.CancelScope()

    def drain(self) -> None:
        """Stop reading; what was read is finished and committed, and the run ends."""
        self._reading.cancel()

    def abort(self) -> None:
        """Give up now; the next run resumes at the last commit."""
        self._scope.cancel()

    def waiting(self) -> str:
        """The stage that the others wait for: the last one with a full channel before it, else the source."""
        for name, receives in reversed(self._receives.items()):
            if any(receive.statistics().tasks_waiting_to_send for receive in receives):
                return name
        return "source"

    def memory_bytes(self) -> int:
        """Bytes that the keys of dedup and the Arrow data take now."""
        transforms = (t for step in (*self._front, *self._back) for t in step.transforms)
        keys = sum(t.statistics().get("memory_bytes", 0) for t in transforms)
        return keys + pa.total_allocated_bytes() + pool.statistics()["in_use_bytes"]

    def duplicates(self) -> tuple[int, int]:
        """Duplicates and null keys of this run so far."""
        statistics = [t.statistics() for step in (*self._front, *self._back) for t in step.transforms]
        return sum(s.get("duplicates", 0) for s in statistics), sum(s.get("null_keys", 0) for s in statistics)

    async def run(self) -> None:
        """Run to the end of all sources, or until ``drain`` or ``abort``. Raises what failed first."""
        with self._scope:
            async with self._workers as workers:
                try:
                    await self._run_guarded(workers)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._close()
        if self.failure is not None:
            raise self.failure

    # Opening.

    def _split(self) -> tuple[list[_Step], list[_Step], KeyBy | None, pa.Schema]:
        front: list[_Step] = []
        back: list[_Step] = []
        steps, key_by, key_schema = front, None, self._schemas[-1]
        for stage, schema in zip(self._graph.stages, self._schemas, strict=False):
            if isinstance(stage, KeyBy):
                steps, key_by, key_schema = back, stage, schema
            else:
                steps.append(_Step(stage, schema))
        return front, back, key_by, key_schema

    async def _run_guarded(self, workers: Workers) -> None:
        commit_thread = workers.dedicated("engine-commit")
        try:
            await self._open(workers, commit_thread)
        except BaseException as error:
            if isinstance(error, trio.Cancelled):
                raise
            self.failure = error
            return
        try:
            async with trio.open_nursery() as nursery:
                self._start(nursery, workers)
        except BaseExceptionGroup as error:
            # Each task records its failure itself; what is left here is cancellation's doing, or our own fault.
            if self.failure is None:
                cause = root_cause(error)
                if isinstance(cause, trio.Cancelled):
                    raise
                self.failure = cause

    async def _open(self, workers: Workers, thread: Dedicated) -> None:
        last = self._state.recovery.last_commit if self._state is not None else None
        self._open_transforms(workers)
        if self._state is not None:
            transforms = {s.stage.name: s.transforms for s in self._stateful()}
            self.coordinator = Coordinator(
                state=self._state,
                storage=self._storage,
                fingerprint=self._graph.fingerprint(),
                sink=self._sink,
                sources={source.name: source for source in self._graph.sources},
                transforms=transforms,
                partitions=self._graph.partitions,
                cadence=self._cadence,
                thread=thread,
                instrument=self._instrument,
            )
        await thread.run(self._open_sink, last.epoch if last is not None else 0)
        if self.coordinator is not None:
            await self.coordinator.recover()
        if last is not None:
            for step in self._stateful():
                for transform, state in zip(step.transforms, last.states.get(step.stage.name, []), strict=False):
                    if state is not None:
                        await transform.restore(state)
        offsets = last.offsets if last is not None else {}
        for source in self._graph.sources:
            opened = partial(source.open, offsets.get(source.name), durable=self._state is not None)
            self._readers.append(await thread.run(opened))

    def _open_transforms(self, workers: Workers) -> None:
        depth = 0
        for steps, lanes in ((self._front, 1), (self._back, self._graph.partitions)):
            for step in steps:
                depth += 1
                offload = _offload(workers, depth)
                for lane in range(lanes):
                    surroundings = self._surroundings(step.stage.name, lane, offload)
                    step.transforms.append(step.stage.open(step.schema, surroundings))

    def _surroundings(self, stage: str, partition: int, offload: Offload) -> Surroundings:
        if self._state is not None:
            directory = self._state.stage_directory(stage, partition)
        else:
            directory = f"{self._scratch}/{stage.encode().hex()}-{partition:05}"
        return Surroundings(
            partition=partition,
            offload=offload,
            background=self._background,
            memory_bytes=self.budget.dedup_bytes,
            storage=self._storage if self._state is None else FencedStorage(self._storage, self._state.check),
            directory=directory,
            durable=self._state is not None,
            seed=self._seed,
            instrument=self._instrument,
        )

    def _open_sink(self, epoch: Epoch) -> None:
        if isinstance(self._sink, StagesInState):
            name = self._sink.name
            self._sink.directory = self._state.sink_directory(name) if self._state is not None else None
        self._sink.open(
            self._schemas[-1],
            token=self._token(epoch),
            partitions=self._graph.partitions,
            memory_bytes=self.budget.sink_bytes,
        )

    def _stateful(self) -> list[_Step]:
        return [step for step in (*self._front, *self._back) if step.has_state]

    def _token(self, epoch: Epoch) -> Token:
        if self._state is not None:
            return self._state.token(epoch, self._sink.name)
        return Token(self._incarnation, epoch, self._incarnation[:16], self._sink.name)

    # Running.

    def _start(self, nursery: trio.Nursery, workers: Workers) -> None:
        start = partial(self._start_soon, nursery)
        entry, receive = self._channel("source")
        start(partial(self._read_sources, entry, workers))
        if self.coordinator is not None:
            start(partial(self.coordinator.run, lambda epoch: entry.send_control(Barrier(epoch)), entry.close))
        send, received = self._channel(self._name_behind(0))
        offsets = (
            self._state.recovery.last_commit.offsets
            if self._state is not None and self._state.recovery.last_commit
            else {}
        )
        intake = Intake(self._schemas[0], self.coordinator, self.counters)
        start(partial(intake.run, receive, send, offsets))
        for index, step in enumerate(self._front):
            lane = StageLane(step.stage.name, 0, step.transforms[0], self.coordinator, has_state=step.has_state)
            send, following = self._channel(self._name_behind(index + 1))
            start(partial(lane.run, received, send))
            received = following
        if self._key_by is None:
            self._start_sink(start, workers, 0, received)
        else:
            self._start_lanes(start, workers, self._key_by, received)

    def _start_lanes(self, start: Callable[..., None], workers: Workers, key_by: KeyBy, received: Any) -> None:
        heads = [self._channel(self._back[0].stage.name if self._back else "sink") for _ in range(key_by.partitions)]
        columns = column_indices(key_by.keys, self._key_schema, stage="key_by")
        depth = len(self._front) + 1
        exchange = Exchange(
            columns,
            [send for send, _ in heads],
            _offload(workers, depth),
            name=key_by.name,
            memory_bytes=self.budget.exchange_bytes,
        )
        start(partial(exchange.run, received))
        for partition, (_, head) in enumerate(heads):
            received = head
            for index, step in enumerate(self._back):
                name, transform = step.stage.name, step.transforms[partition]
                lane = StageLane(name, partition, transform, self.coordinator, has_state=step.has_state)
                behind = self._back[index + 1].stage.name if index + 1 < len(self._back) else "sink"
                send, following = self._channel(behind)
                start(partial(lane.run, received, send))
                received = following
            self._start_sink(start, workers, partition, received)

    def _start_sink(self, start: Callable[..., None], workers: Workers, partition: int, received: Any) -> None:
        depth = len(self._front) + len(self._back) + 2
        threads = self._prepare_threads(workers)
        lane = SinkLane(
            self._sink,
            partition,
            self._token,
            self.coordinator,
            self.counters,
            write=_offload(workers, depth),
            prepare=threads[partition % len(threads)].run,
        )
        epoch = self.coordinator.epoch if self.coordinator is not None else 1
        start(partial(lane.run, received, epoch, start))

    def _prepare_threads(self, workers: Workers) -> list[Dedicated]:
        count = min(PREPARE_THREADS, self._graph.partitions)
        if not self._threads:
            self._threads = [workers.dedicated(f"engine-prepare-{index}") for index in range(count)]
        return self._threads

    async def _read_sources(self, entry: SendChannel[Any], workers: Workers) -> None:
        with self._reading:
            async with trio.open_nursery() as nursery:
                for index, (source, reader) in enumerate(zip(self._graph.sources, self._readers, strict=True)):
                    thread = workers.dedicated(f"engine-source-{index}")
                    reading = SourceReading(
                        source.name, reader, thread, entry, self.coordinator, epoch_bytes=self._cadence.every_bytes
                    )
                    self._start_soon(nursery, reading.run)
        if self.coordinator is None:
            entry.close()
            return
        self.coordinator.finished()

    def _channel(self, name: str) -> tuple[SendChannel[Any], ReceiveChannel[Any]]:
        send, receive = open_channel(max_rows=CHANNEL_ROWS, max_bytes=self.budget.channel_bytes)
        self._receives.setdefault(name, []).append(receive)
        return send, receive

    def _name_behind(self, index: int) -> str:
        if index < len(self._front):
            return self._front[index].stage.name
        return "sink" if self._key_by is None else self._key_by.name

    def _start_soon(self, nursery: trio.Nursery, task: Callable[[], Awaitable[None]]) -> None:
        nursery.start_soon(self._recording, task)

    async def _recording(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except BaseException as error:
            cause = root_cause(error)
            if isinstance(cause, trio.Cancelled):
                raise
            if self.failure is None:
                self.failure = cause
            self._scope.cancel()

    async def _close(self) -> None:
        for step in (*self._front, *self._back):
            for transform in step.transforms:
                await transform.close()
        self._background.join()


def _offload(workers: Workers, depth: int) -> Offload:
    """The worker threads, as a stage at ``depth`` uses them."""
    return partial(workers.run, priority=-depth)
