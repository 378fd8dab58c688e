"""The hunts: each runs a part of engine under faults and raises what is wrong, and without a planted bug nothing is.

What is right is told by the oracles of ``tests/crash``, of ``tests/stages`` and of ``engine.testing.simulate``.
"""

import errno
import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType

import pyarrow as pa
from crash import simulated_log, simulated_state, test_file_crashes, test_state_crashes
from crash.simulated_log import Acknowledged
from crash.simulated_state import Promises
from stages.window_model import ids_of, probe, small_window

from engine import Log, Pipeline, sinks, sources
from engine.checkpoint.manifest import Commit
from engine.errors import LogError, StateError
from engine.nature import Nature, simulated
from engine.testing.crash_states import crash_states
from engine.testing.simulate import simulate
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import CutPower, FailCall

STATES = 2_400
"""Ends of a run by a loss of power that a hunt visits."""

SEEDS = 40
CALLS = 12
"""So many calls of a kind fail, one in each run; there are more of them."""

RETAIN_AGE_S = 3.0


def _visit(storage: SimulatedStorage, checks: ModuleType, promised: object, chance: random.Random) -> None:
    """Read back every end of what was recorded; open every tenth one."""
    reader = checks.ReadBack(promised)
    for number, state in enumerate(crash_states(storage, most=STATES, seed=chance.getrandbits(32))):
        reader.check(state, state.changes)
        if number % 10 == 0:
            checks.check_reopened(state.storage(), promised, state.changes)


def log_states(chance: random.Random) -> None:
    """A log after a loss of power at any moment, and after kills with the power lost later."""
    storage = SimulatedStorage(record=True)
    told = simulated_log.recorded(storage)
    _visit(storage, simulated_log, told, chance)
    for nth in range(1, 20):
        storage = SimulatedStorage(nth, faults=[CutPower("sync", path="*.seg*", nth=nth)])
        with suppress(PowerLost):
            simulated_log.recorded(storage)
        after = storage.kill()
        with simulated_log.opened(after) as log:
            believed = [simulated_log.found(log, partition) for partition in range(2)]
        with simulated_log.opened(after.crash()) as log:
            assert [simulated_log.found(log, partition) for partition in range(2)] == believed


def log_errors(chance: random.Random) -> None:
    """A log whose owner goes on after every error: of the first writes and syncs, one a run, and of a disk that
    is full for a while.
    """
    for call in ("sync", "append"):
        for nth in range(1, CALLS + 1):
            storage = SimulatedStorage(nth, faults=[FailCall(call, errno=errno.EIO, nth=nth, path="*/partition-*")])
            _append_on(storage, None)
            assert storage.fired
    for free_bytes in range(0, 400, 37):
        _append_on(SimulatedStorage(free_bytes), free_bytes)


def _append_on(storage: SimulatedStorage, free_bytes: int | None) -> None:
    told = Acknowledged()
    with suppress(LogError):
        log = simulated_log.opened(storage)
        for number in range(12):
            if number == 4 and free_bytes is not None:
                storage.capacity_bytes = storage.used_bytes() + free_bytes
            if number == 7:
                storage.capacity_bytes = None
            with suppress(LogError):
                batch = simulated_log.rows(0, log.end(), 1 + 7 * (number % 3))
                simulated_log.append(log, storage, told, batch)
        log.close()
    killed = storage.kill()
    simulated_log.check_reopened(killed, told, storage.changes)
    simulated_log.check_reopened(killed.crash("nothing"), told, storage.changes)


def log_retention(chance: random.Random) -> None:
    """A log that keeps rows for some seconds, and longer where one of two groups has not taken them."""
    ticks = iter(range(10**6))
    beginning = datetime(2026, 1, 1, tzinfo=UTC)
    with simulated(Nature(now=lambda: beginning + timedelta(seconds=next(ticks)))):
        storage, told = SimulatedStorage(record=True), Acknowledged(partitions=1)
        options = {"partitions": 1, "segment_bytes": 700, "retain_age_s": RETAIN_AGE_S}
        for _ in range(2):
            with Log(simulated_log.PATH, storage=storage, **options) as log:
                log.groups["ahead"].commit(log.end())
                for number in range(8):
                    simulated_log.append(log, storage, told, simulated_log.rows(0, log.end(), 9))
                    log.groups["ahead"].commit(log.end())
                    if number % 4 == 3:
                        taken = log.end() - 20
                        told.first.append((storage.changes, 0, taken))
                        simulated_log.take(log, storage, told, taken)
        assert any(call.name == "unlink" and call.path.endswith(".seg") for call in storage.trace)
        _visit(storage, simulated_log, told, chance)


def state_states(chance: random.Random) -> None:
    """A state directory after a loss of power at any moment."""
    storage = SimulatedStorage(record=True)
    promises = test_state_crashes.recorded(storage)
    _visit(storage, simulated_state, promises, chance)


def state_errors(chance: random.Random) -> None:
    """A state directory when the Nth sync of a manifest fails; and one that another owner takes away."""
    nth = 0
    while True:
        nth += 1
        storage = SimulatedStorage(nth, faults=[FailCall("sync", nth=nth, path="*/manifest-*")])
        promises = Promises()
        with suppress(StateError):
            simulated_state.attempt(storage, promises, 3)
            simulated_state.attempt(storage, promises, 2)
        if not storage.fired:
            break
        for left in ("nothing", "everything"):
            simulated_state.check_reopened(storage.crash(left), promises, storage.changes)


def two_owners(chance: random.Random) -> None:
    """A second owner of a state directory is refused, and the first one is once its lock was taken away."""
    storage, promises = SimulatedStorage(), Promises()
    simulated_state.attempt(storage, promises, 1)
    with simulated_state.opened(storage) as first:
        try:
            simulated_state.opened(storage).close()
        except StateError:
            pass
        else:
            raise AssertionError("two owners at once")
        storage.unlink(f"{simulated_state.PATH}/LOCK")
        before = storage.contents()
        with suppress(StateError):
            epoch, ours = first.next_epoch, (first.incarnation, first.term)
            first.append_commit(Commit(epoch, *ours, simulated_state.FINGERPRINT, {}, {}, [], {}))
        assert storage.contents() == before, "it wrote without its lock"


def windows(chance: random.Random) -> None:
    """A window of dedup with sealed runs against a dictionary, also when restored after a loss of power."""
    storage = SimulatedStorage(record=True)
    check = test_file_crashes.window_with_runs(storage)
    for state in crash_states(storage, most=80, seed=chance.getrandbits(32)):
        check(state)


def strange_keys(chance: random.Random) -> None:
    """A window is asked for keys that it never saw, so many that some pass the filter of a run."""
    window = small_window("/srv/window", within=None, storage=SimulatedStorage())
    for first in range(0, 800, 50):
        assert all(probe(window, range(first, first + 50)))
    assert window.statistics().runs > 0
    for first in range(10_000, 60_000, 2_000):
        token, found = window.probe_ids(ids_of(range(first, first + 2_000)), 2_000)
        window.abort(token)
        assert found.duplicates == 0
    assert window.statistics().suspects_cleared > 0
    window.close()


SINKS = {
    "log": lambda: sinks.log("/out/log"),
    "parquet": lambda: sinks.parquet("/out/parquet"),
    "arrow_ipc": lambda: sinks.arrow_ipc("/out/ipc"),
}


def _batches() -> Iterator[pa.RecordBatch]:
    """One row of eight comes again."""
    for start in range(0, 400, 25):
        numbers = range(start, start + 25)
        ids = [n - 21 if n > 40 and n % 8 == 0 else n for n in numbers]
        yield pa.record_batch({"id": ids, "key": [f"k{n % 5}" for n in numbers], "value": numbers})


INPUT = list(_batches())


def _expected(*, dedup: bool) -> dict[str, list[int]]:
    """By key the values of the rows that leave, in order."""
    seen: set[int] = set()
    expected: dict[str, list[int]] = {}
    for row in pa.Table.from_batches(INPUT).to_pylist():
        if not dedup or row["id"] not in seen:
            expected.setdefault(row["key"], []).append(row["value"])
        seen.add(row["id"])
    return expected


def _whole_pipeline(kind: str, chance: random.Random, *, dedup: bool = True) -> None:
    expected = _expected(dedup=dedup)

    def make() -> Pipeline:
        read = Pipeline("hunted").read(sources.memory(INPUT, id="rows"))
        read = read.dedup("id") if dedup else read
        return read.key_by("key", partitions=2).map(lambda rows: rows).write(SINKS[kind]())

    def wrong(tables: dict[int, pa.Table]) -> list[str]:
        found: dict[str, list[int]] = {}
        for table in tables.values():
            for row in table.to_pylist():
                found.setdefault(row["key"], []).append(row["value"])
        keys = sorted(expected.keys() | found.keys())
        return [f"key {key} has other rows" for key in keys if found.get(key) != expected.get(key)]

    first = chance.getrandbits(32)
    for outcome in simulate(make, seeds=range(first, first + SEEDS), check=wrong):
        assert outcome.problem is None, outcome


into_log = partial(_whole_pipeline, "log")
into_parquet = partial(_whole_pipeline, "parquet")
into_arrow_ipc = partial(_whole_pipeline, "arrow_ipc")
without_dedup = partial(_whole_pipeline, "arrow_ipc", dedup=False)
"""Dedup would drop what is read again."""

HUNTS = {
    "log_states": log_states,
    "log_errors": log_errors,
    "log_retention": log_retention,
    "state_states": state_states,
    "state_errors": state_errors,
    "two_owners": two_owners,
    "windows": windows,
    "strange_keys": strange_keys,
    "into_log": into_log,
    "into_parquet": into_parquet,
    "into_arrow_ipc": into_arrow_ipc,
    "without_dedup": without_dedup,
}
