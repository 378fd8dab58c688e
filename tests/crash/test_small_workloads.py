"""Every end of every workload of a few operations, of the durable log and of the state directory.

Verified: whatever the order of the operations, and wherever the power fails within the last of them (an end of the
others was visited with the shorter workload), what was promised is there. No end is sampled: all cuts, all sets of
sectors, lengths and names are visited, of those that give the same disk one. A share is opened for writing too.
Not verified here: more than one partition, and many operations (``test_log_crashes``).

``--workload-length N`` says how many operations that is, and the output how many workloads there were. A test visits
those that begin with the same operation.
"""

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from typing import Any, Protocol

import pyarrow as pa
import pytest
from crash import simulated_log, simulated_state
from crash.simulated_log import PATH, Acknowledged
from crash.simulated_state import FINGERPRINT, Noted, Promises

from engine import Log
from engine.checkpoint.manifest import Commit
from engine.checkpoint.store import StateDirectory
from engine.nature import Nature, simulated
from engine.testing.crash_states import CrashState, count_ends, crash_states
from engine.testing.storage import SimulatedStorage

SHARE_OPENED = 1 / 100
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Owner(Protocol):
    """Opened by the first operation of all; the others are methods that take nothing."""

    told: Any

    def open(self) -> None: ...
    def reader(self) -> Any: ...
    def check_opened(self, state: CrashState) -> None: ...


class LogOwner:
    """A log of one partition. Each second append begins a segment; with ``retain_bytes`` each does, and the last two
    are kept.
    """

    def __init__(self, storage: SimulatedStorage, retain_bytes: int | None) -> None:
        self._storage = storage
        self._retain_bytes = retain_bytes
        self.told = Acknowledged(partitions=1)

    def open(self) -> None:
        self._log = Log(PATH, segment_bytes=400, retain_bytes=self._retain_bytes, storage=self._storage)

    def append(self) -> None:
        begun = self._storage.changes
        row = pa.record_batch({"n": pa.array([self._log.end()], pa.int8())})
        simulated_log.append(self._log, self._storage, self.told, row)
        self._note_first(begun)

    def roll(self) -> None:
        begun = self._storage.changes
        self._log.roll()
        self._note_first(begun)

    def take(self) -> None:
        simulated_log.take(self._log, self._storage, self.told, self._log.end())

    def reopen(self) -> None:
        begun = self._storage.changes
        self._log.close()
        self.open()
        self._note_first(begun)

    def abandon(self) -> None:
        begun = self._storage.changes
        simulated_log.abandon(self._log)
        self.open()
        self._note_first(begun)

    def _note_first(self, begun: int) -> None:
        self.told.first.append((begun, 0, self._log.start()))

    def reader(self) -> simulated_log.ReadBack:
        return simulated_log.ReadBack(self.told)

    def check_opened(self, state: CrashState) -> None:
        storage = state.storage()
        simulated_log.check_reopened(storage, self.told, state.changes)
        simulated_log.check_appended(storage)


class StateOwner:
    """A state directory. With ``roll_at_bytes`` of 0 each commit begins a manifest."""

    def __init__(self, storage: SimulatedStorage, roll_at_bytes: int) -> None:
        self._storage = storage
        self._roll_at_bytes = roll_at_bytes
        self.told = Promises()
        self._epoch = 0

    def open(self) -> None:
        promises, storage = self.told, self._storage
        self._state = StateDirectory.open(
            storage, simulated_state.PATH, fingerprint=FINGERPRINT, roll_at_bytes=self._roll_at_bytes
        )
        if promises.incarnation is None:
            promises.incarnation, promises.known_from = self._state.incarnation, storage.changes
        promises.terms.append(Noted(self._state.next_epoch + 1, 0, storage.changes))
        self._epoch = self._state.next_epoch

    def commit(self) -> None:
        self.finish()
        state, epoch = self._state, self._epoch
        commit = Commit(epoch, state.incarnation, state.term, FINGERPRINT, {"a": epoch}, {}, [], {})
        self.told.appended[epoch] = commit
        self.told.commits.append(Noted(epoch, self._storage.changes))
        state.append_commit(commit)
        self.told.commits[-1].done = self._storage.changes
        self._epoch += 1

    def finish(self) -> None:
        """What was committed last; nothing where that is done."""
        last = self._state.last_commit
        if last is not None and self._state.publish_again:
            self.told.finals.append(Noted(last.epoch, self._storage.changes))
            self._state.append_final(last.epoch)
            self.told.finals[-1].done = self._storage.changes

    def reopen(self) -> None:
        self._state.close()
        self.open()

    def reader(self) -> simulated_state.ReadBack:
        return simulated_state.ReadBack(self.told)

    def check_opened(self, state: CrashState) -> None:
        simulated_state.check_reopened(state.storage(), self.told, state.changes)


FAMILIES: dict[str, tuple[Callable[[SimulatedStorage], Owner], tuple[str, ...]]] = {
    "log": (lambda storage: LogOwner(storage, None), ("append", "roll", "take", "reopen", "abandon")),
    "log with retention": (lambda storage: LogOwner(storage, 1000), ("append", "roll", "reopen")),
    "state": (lambda storage: StateOwner(storage, 1 << 20), ("commit", "finish", "reopen")),
    "state that rolls": (lambda storage: StateOwner(storage, 0), ("commit", "finish", "reopen")),
}


def workloads(operations: tuple[str, ...], first: str, longest: int) -> Iterator[tuple[str, ...]]:
    """All that begin with ``first``, and the empty one with the first of all operations."""
    if first == operations[0]:
        yield ()
    for length in range(longest):
        yield from ((first, *others) for others in product(operations, repeat=length))


class Visitor:
    """Visits every end within the last operation of workloads of one family.

    Ids are the same in all of them, so what a reader finds in one is known in the next.
    """

    def __init__(self, family: str, chance: random.Random) -> None:
        self.ends = self.visited = self.opened = 0
        self._make = FAMILIES[family][0]
        self._chance = chance
        self._ids = chance.getrandbits(32)
        self._reader: Any = None

    def visit(self, workload: tuple[str, ...]) -> None:
        storage, since = SimulatedStorage(record=True), 0
        owner = self._make(storage)
        with simulated(Nature(random_bytes=random.Random(self._ids).randbytes, now=lambda: BEGINNING)):
            owner.open()
            for name in workload:
                since = storage.changes
                getattr(owner, name)()
        self._reader = self._reader or owner.reader()
        self._reader.told = owner.told
        self.ends += count_ends(storage, since=since)
        for state in crash_states(storage, most=None, seed=self._chance.getrandbits(32), since=since):
            self.visited += 1
            try:
                self._reader.check(state, state.changes)
                if self._chance.random() < SHARE_OPENED:
                    self.opened += 1
                    owner.check_opened(state)
            except Exception as error:
                error.add_note(f"{workload}: {state!r}")
                raise


@pytest.mark.parametrize(
    ("family", "first"), [(family, first) for family, (_, operations) in FAMILIES.items() for first in operations]
)
def test_every_end_of_every_small_workload(
    family: str, first: str, workload_length: int, generator: random.Random
) -> None:
    began, visited, visitor = time.process_time(), 0, Visitor(family, generator)
    for workload in workloads(FAMILIES[family][1], first, workload_length):
        visitor.visit(workload)
        visited += 1
    took_s = time.process_time() - began
    counts = f"{visitor.ends} ends, {visitor.visited} that differ, {visitor.opened} opened"
    print(f"{visited} workloads: {counts}, {took_s:.1f} s")
    assert visitor.ends >= visitor.visited >= visited
    assert visitor.opened or visitor.visited < 1000  # some operations change nothing
