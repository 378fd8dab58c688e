"""The coordinator: the one task that turns barriers into commits, and the only back edge of a pipeline.

    due ─► barrier k ─► cut, snapshots, prepared sinks of k ─► COMMIT ─► publish ─► ack ─► FINAL ─► next

Laws
    - At most one commit is open: barrier k+1 is sent only after FINAL{k}, while the rows of k+1 already flow and are
      staged.
    - The offsets of a COMMIT are those that the intake saw when the barrier passed it: exactly the rows before the
      barrier.
    - A commit's thread is never abandoned: one attempt to publish is shielded, and between attempts cancellation ends
      the run, which is safe because the COMMIT is durable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from engine._runtime.worker import Dedicated
from engine.checkpoint.manifest import Commit
from engine.checkpoint.protocol import CommitProtocol, Event
from engine.checkpoint.replaced import collect
from engine.checkpoint.store import StateDirectory
from engine.errors import SinkError
from engine.instrument import Instrument
from engine.nature import monotonic_s
from engine.progress import Epoch, Offset
from engine.report import Counts
from engine.sink import Handle, Sink
from engine.source import Source
from engine.stage import StageState, Transform
from engine.storage import Storage

__all__ = ["Cadence", "Coordinator", "Cut"]

_PUBLISH_ATTEMPTS = 5
_PUBLISH_WAIT_S = 0.2


@dataclass(frozen=True, slots=True)
class Cadence:
    """When a commit is due: after so many seconds or bytes of input, whichever comes first."""

    every_s: float
    every_bytes: int | None


@dataclass(slots=True)
class Cut:
    """What one epoch's barrier left behind on its way: everything that its COMMIT will hold."""

    epoch: Epoch
    snapshots_missing: int
    """Stages, and the intake, that have not reported yet."""

    sinks_missing: int
    """Partitions whose rows are not durable yet."""

    complete: trio.Event = field(default_factory=trio.Event)
    offsets: dict[str, Offset] = field(default_factory=dict)
    states: dict[str, list[StageState | None]] = field(default_factory=dict)
    handles: list[Handle] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, counters: dict[str, int]) -> None:
        """Add what a part counted in this epoch."""
        for name, gained in counters.items():
            self.counters[name] = self.counters.get(name, 0) + gained


class Coordinator:
    """Sends barriers when a commit is due, gathers what they bring, and commits it."""

    def __init__(
        self,
        *,
        state: StateDirectory,
        storage: Storage,
        fingerprint: dict[str, Any],
        sink: Sink,
        sources: dict[str, Source],
        transforms: dict[str, list[Transform]],
        partitions: int,
        cadence: Cadence,
        thread: Dedicated,
        instrument: Instrument,
    ) -> None:
        self._state = state
        self._storage = storage
        self._collected = False
        self._fingerprint = fingerprint
        self._sink = sink
        self._sources = sources
        self._transforms = transforms
        self._partitions = partitions
        self._cadence = cadence
        self._thread = thread
        self._instrument = instrument
        self._protocol = CommitProtocol(state.recovery)
        self._cut: Cut | None = None
        self._changed = trio.Event()
        self._barrier_sent = trio.Event()
        self._finished = False
        self._unsent_bytes = 0
        self._unsent_rows = 0
        self.epoch: Epoch = state.next_epoch
        self.totals: dict[str, int] = dict(state.recovery.last_commit.counters) if state.recovery.last_commit else {}
        self.committed: Epoch = state.recovery.last_commit.epoch if state.recovery.last_commit else 0
        self.commits = 0
        self.committed_at_s: float | None = None

    # What the other tasks tell; each call is instant.

    async def admitted(self) -> None:
        """Wait while the filling epoch is full: its barrier goes first, so that no epoch grows beyond its size."""
        while self._bytes_due():
            await self._barrier_sent.wait()

    def received(self, rows: int, size_bytes: int) -> None:
        """A source sent rows into the pipeline."""
        self._unsent_rows += rows
        self._unsent_bytes += size_bytes
        if self._bytes_due():
            self._changed.set()

    def finished(self) -> None:
        """Every source has sent its last row."""
        self._finished = True
        self._changed.set()

    def cut_at(self, epoch: Epoch, offsets: dict[str, Offset], counters: dict[str, int]) -> None:
        """The barrier passed the intake: the epoch's rows end at ``offsets``."""
        cut = self._open_cut(epoch)
        cut.offsets = offsets
        cut.count(counters)
        self._snapshot_reported(cut)

    def snapshotted(
        self, epoch: Epoch, stage: str, partition: int, state: StageState | None, counters: dict[str, int]
    ) -> None:
        """The barrier passed a stage, whose state is durable."""
        cut = self._open_cut(epoch)
        placed = self._state.placed(stage, partition, state)
        cut.states.setdefault(stage, [None] * len(self._transforms[stage]))[partition] = placed
        cut.count(counters)
        self._snapshot_reported(cut)

    def prepared(self, epoch: Epoch, handle: Handle | None, counters: dict[str, int]) -> None:
        """A partition's rows of the epoch are durable and staged."""
        cut = self._open_cut(epoch)
        if handle is not None:
            cut.handles.append(handle)
        cut.count(counters)
        cut.sinks_missing -= 1
        self._note_complete(cut)

    def _snapshot_reported(self, cut: Cut) -> None:
        cut.snapshots_missing -= 1
        if cut.snapshots_missing == 0:
            self._reach(Event.SNAPSHOTTED, cut.epoch)
        self._note_complete(cut)

    @staticmethod
    def _note_complete(cut: Cut) -> None:
        if cut.snapshots_missing == 0 and cut.sinks_missing == 0:
            cut.complete.set()

    # The task.

    async def recover(self) -> None:
        """Finish what the last run left: publish its last COMMIT unless it is FINAL, discard what came later."""
        last = self._state.recovery.last_commit
        if last is not None and self._state.publish_again:
            await self._finish(last)
        token = self._state.token(last.epoch if last is not None else 0, self._sink.name)
        await self._thread.run(self._sink.discard_after, token)

    async def run(self, send_barrier: Callable[[Epoch], None], end: Callable[[], None]) -> None:
        """Commit whenever it is due until all rows are committed, then ``end`` the pipeline."""
        due_s = trio.current_time() + self._cadence.every_s
        while True:
            await self._until_due(due_s)
            due_s = trio.current_time() + self._cadence.every_s
            finished = self._finished
            if self._unsent_rows:
                await self._commit(self._cut_now(send_barrier))
            if finished:
                end()
                return

    def _cut_now(self, send_barrier: Callable[[Epoch], None]) -> Cut:
        snapshots = 1 + sum(len(lanes) for lanes in self._transforms.values())
        cut = self._cut = Cut(self.epoch, snapshots, self._partitions)
        self._reach(Event.BARRIER, cut.epoch)
        send_barrier(cut.epoch)
        self.epoch += 1
        self._unsent_rows = self._unsent_bytes = 0
        self._barrier_sent.set()
        self._barrier_sent = trio.Event()
        return cut

    async def _until_due(self, due_s: float) -> None:
        while not self._finished and not self._bytes_due():
            if trio.current_time() >= due_s and self._unsent_rows:
                return
            self._changed = trio.Event()
            # Without rows there is nothing to commit: look again when some have come.
            wait_until_s = due_s if trio.current_time() < due_s else trio.current_time() + self._cadence.every_s
            with trio.move_on_at(wait_until_s):
                await self._changed.wait()

    async def _commit(self, cut: Cut) -> None:
        await cut.complete.wait()
        self._reach(Event.PREPARED, cut.epoch)
        totals = {name: self.totals.get(name, 0) + cut.counters.get(name, 0) for name in self.totals | cut.counters}
        commit = Commit(
            epoch=cut.epoch,
            incarnation=self._state.incarnation,
            term=self._state.term,
            fingerprint=self._fingerprint,
            offsets=cut.offsets,
            states=cut.states,
            handles=cut.handles,
            counters=totals,
        )
        await self._thread.run(self._state.append_commit, commit)
        self._reach(Event.COMMITTED, cut.epoch)
        await self._finish(commit)
        self.totals = totals
        self.committed = cut.epoch
        self.commits += 1
        self.committed_at_s = monotonic_s()
        await self._release(cut)

    async def _finish(self, commit: Commit) -> None:
        """What follows a durable COMMIT, in this run or in the next one."""
        await self._publish(commit.epoch, commit.handles)
        self._reach(Event.PUBLISHED, commit.epoch)
        await self._thread.run(self._acknowledge, commit.offsets)
        self._reach(Event.ACKED, commit.epoch)
        await self._thread.run(self._state.append_final, commit.epoch)
        self._reach(Event.FINALIZED, commit.epoch)

    async def _publish(self, epoch: Epoch, handles: Sequence[Handle]) -> None:
        for attempt in range(1, _PUBLISH_ATTEMPTS + 1):
            try:
                await self._thread.run(self._sink.commit, handles)
                return
            except SinkError as error:
                if attempt == _PUBLISH_ATTEMPTS or not isinstance(error.__cause__, OSError):
                    error.add_note("The commit itself is durable: the next run on the same state publishes it.")
                    raise
                self._reach(Event.PUBLISH_FAILED, epoch)
            await trio.sleep(_PUBLISH_WAIT_S * 2**attempt)

    def _acknowledge(self, offsets: dict[str, Offset]) -> None:
        for name, source in self._sources.items():
            source.ack(offsets.get(name))

    async def _release(self, cut: Cut) -> None:
        for stage, states in cut.states.items():
            for transform, state in zip(self._transforms[stage], states, strict=True):
                if state is not None:
                    await transform.release(state)
        if not self._collected:
            await self._thread.run(collect, self._storage, self._state.path, cut.states)
            self._collected = True

    def _reach(self, event: Event, epoch: Epoch) -> None:
        self._protocol.advance(event, epoch)
        self._instrument(f"commit.{event.name.lower()}", epoch=epoch)

    def _open_cut(self, epoch: Epoch) -> Cut:
        assert self._cut is not None, f"epoch {epoch} reported without a barrier"
        assert self._cut.epoch == epoch, f"epoch {epoch} reported while {self._cut.epoch} is open"
        return self._cut

    def _bytes_due(self) -> bool:
        limit = self._cadence.every_bytes
        return limit is not None and self._unsent_bytes >= limit


def counts(counters: dict[str, int]) -> Counts:
    """The counters of a COMMIT as the report shows them."""
    return Counts(*(counters.get(name, 0) for name in ("rows_in", "duplicates", "null_keys", "rows_out")))


def partition_counts(counters: dict[str, Any], partitions: int) -> tuple[int, ...]:
    """Rows out by partition."""
    return tuple(counters.get(f"rows_out.{partition}", 0) for partition in range(partitions))
