"""Every end of every workload of up to three operations, of the durable log and of the state directory.

Verified: whatever the order of the operations, and wherever the power fails within the last of them (an end of the
others was visited with the shorter workload), what was promised is there. No end is sampled: all cuts, all sets of
sectors, lengths and names are visited, of those that give the same disk one. A share is opened for writing too.
Not verified here: more than one partition, and more than three operations (``test_log_crashes``).

A workload is visited whole or not at all: ``--crash-states N`` says after how many states no other is begun; the output
names how many there were.
"""

import random
import time
from collections.abc import Callable, Iterator
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
from engine.testing.crash_states import CrashState, count_ends, crash_states
from engine.testing.storage import SimulatedStorage

LONGEST = 3
SHARE_OPENED = 1 / 100


class Owner(Protocol):
    """Opened by the first operation of all; the others are methods that take nothing."""

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
        self._told = Acknowledged(partitions=1)

    def open(self) -> None:
        self._log = Log(PATH, segment_bytes=400, retain_bytes=self._retain_bytes, storage=self._storage)

    def append(self) -> None:
        begun = self._storage.changes
        row = pa.record_batch({"n": pa.array([self._log.end()], pa.int8())})
        simulated_log.append(self._log, self._storage, self._told, row)
        self._note_first(begun)

    def roll(self) -> None:
        begun = self._storage.changes
        self._log.roll()
        self._note_first(begun)

    def take(self) -> None:
        simulated_log.take(self._log, self._storage, self._told, self._log.end())

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
        self._told.first.append((begun, 0, self._log.start()))

    def reader(self) -> simulated_log.ReadBack:
        return simulated_log.ReadBack(self._told)

    def check_opened(self, state: CrashState) -> None:
        storage = state.storage()
        simulated_log.check_reopened(storage, self._told, state.changes)
        simulated_log.check_appended(storage)


class StateOwner:
    """A state directory. With ``roll_at_bytes`` of 0 each commit begins a manifest."""

    def __init__(self, storage: SimulatedStorage, roll_at_bytes: int) -> None:
        self._storage = storage
        self._roll_at_bytes = roll_at_bytes
        self._promises = Promises()
        self._epoch = 0

    def open(self) -> None:
        promises, storage = self._promises, self._storage
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
        self._promises.appended[epoch] = commit
        self._promises.commits.append(Noted(epoch, self._storage.changes))
        state.append_commit(commit)
        self._promises.commits[-1].done = self._storage.changes
        self._epoch += 1

    def finish(self) -> None:
        """What was committed last; nothing where that is done."""
        last = self._state.last_commit
        if last is not None and self._state.publish_again:
            self._promises.finals.append(Noted(last.epoch, self._storage.changes))
            self._state.append_final(last.epoch)
            self._promises.finals[-1].done = self._storage.changes

    def reopen(self) -> None:
        self._state.close()
        self.open()

    def reader(self) -> simulated_state.ReadBack:
        return simulated_state.ReadBack(self._promises)

    def check_opened(self, state: CrashState) -> None:
        simulated_state.check_reopened(state.storage(), self._promises, state.changes)


FAMILIES: dict[str, tuple[Callable[[SimulatedStorage], Owner], tuple[str, ...]]] = {
    "log": (lambda storage: LogOwner(storage, None), ("append", "roll", "take", "reopen", "abandon")),
    "log with retention": (lambda storage: LogOwner(storage, 1000), ("append", "roll", "reopen")),
    "state": (lambda storage: StateOwner(storage, 1 << 20), ("commit", "finish", "reopen")),
    "state that rolls": (lambda storage: StateOwner(storage, 0), ("commit", "finish", "reopen")),
}


def workloads(operations: tuple[str, ...], chance: random.Random) -> Iterator[tuple[str, ...]]:
    """All of them, the shortest first, those of the longest kind in an order that is drawn."""
    for length in range(LONGEST):
        yield from product(operations, repeat=length)
    longest = list(product(operations, repeat=LONGEST))
    yield from chance.sample(longest, len(longest))


def visit(owner: Owner, storage: SimulatedStorage, workload: tuple[str, ...], chance: random.Random) -> tuple[int, ...]:
    """All ends within the last operation: how many, how many that differ, how many opened for writing."""
    owner.open()
    since = 0
    for name in workload:
        since = storage.changes
        getattr(owner, name)()
    reader, visited, opened = owner.reader(), 0, 0
    for state in crash_states(storage, most=None, seed=chance.getrandbits(32), since=since):
        visited += 1
        try:
            reader.check(state, state.changes)
            if chance.random() < SHARE_OPENED:
                opened += 1
                owner.check_opened(state)
        except Exception as error:
            error.add_note(f"{workload}: {state!r}")
            raise
    return count_ends(storage, since=since), visited, opened


@pytest.mark.parametrize("family", FAMILIES)
def test_every_end_of_every_small_workload(family: str, crash_state_count: int, generator: random.Random) -> None:
    make, operations = FAMILIES[family]
    began, ends, visited, opened, begun = time.process_time(), 0, 0, 0, 0
    for workload in workloads(operations, generator):
        if visited >= crash_state_count:
            break
        storage = SimulatedStorage(record=True)
        counts = visit(make(storage), storage, workload, generator)
        begun, ends, visited, opened = begun + 1, ends + counts[0], visited + counts[1], opened + counts[2]
    took_s = time.process_time() - began
    total = sum(len(operations) ** length for length in range(LONGEST + 1))
    print(f"{begun} of {total} workloads: {ends} ends, {visited} that differ, {opened} opened, {took_s:.1f} s")
    assert begun == total or visited >= crash_state_count
    assert begun > 1
