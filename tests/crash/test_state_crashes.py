"""The state directory after a loss of power at every change of the disk, with every way in which it may be left.

Verified: what was committed is there, or that and the one under way; never an error, never an older one; opening
again comes to the same, also when the power fails again while recovering. Each mutant of the storage, one sync left
out or too late, is found by the same check.
Not verified here: lying disks (a directory cannot promise anything on them), errors of calls (``test_state_errors``).
"""

import random
import time

import pytest
from crash.remembered import share_of
from crash.simulated_state import Promises, ReadBack, attempt, check_reopened, opened

from engine.errors import StateError
from engine.testing.crash_states import CrashState, crash_states
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import LyingSync


def recorded(storage: SimulatedStorage) -> Promises:
    """Three attempts, the second of which ends between COMMIT and FINAL."""
    promises = Promises()
    attempt(storage, promises, 4)
    attempt(storage, promises, 2, last_final=False)
    attempt(storage, promises, 1)
    return promises


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_every_crash_state_opens_with_what_was_committed(
    sector_bytes: int, crash_state_count: int, generator: random.Random
) -> None:
    """Each is read back; a share of them is also opened, twice."""
    storage = SimulatedStorage(sector_bytes=sector_bytes, record=True)
    promises = recorded(storage)
    reader, share = ReadBack(promises), share_of(crash_state_count)
    began, visited, torn, opened_too = time.process_time(), 0, 0, 0
    for state in crash_states(storage, most=crash_state_count, seed=generator.getrandbits(32)):
        visited += 1
        torn += state.taken_bytes > 0
        dear = generator.random() < share
        opened_too += dear
        try:
            reader.check(state, state.changes)
            if dear:
                check_reopened(state.storage(), promises, state.changes)
        except Exception as error:
            error.add_note(repr(state))
            raise
    took_s = time.process_time() - began
    print(f"{visited} crash states, {visited / took_s:.0f} a second; {torn} within a write")
    print(f"{reader.asked} answers of readers; {opened_too} opened")
    assert visited > min(crash_state_count, 2000) / 2
    assert torn > visited / 10  # so the cuts of a write are among them
    assert opened_too > visited / 100


def test_a_crash_while_recovering_from_a_crash(crash_state_count: int, generator: random.Random) -> None:
    storage = SimulatedStorage(record=True)
    promises = recorded(storage)
    reader, inner, recovered_torn, opened_too = ReadBack(promises), 0, 0, 0
    outers = max(40, crash_state_count // 100)
    for outer in crash_states(storage, most=outers, seed=generator.getrandbits(32)):
        again = outer.storage(record=True)
        with opened(again) as state:
            recovered_torn += state.torn is not None
        for found in crash_states(again, most=20, seed=generator.getrandbits(32)):
            inner += 1
            try:
                reader.check(found, outer.changes)
                if generator.random() < share_of(20 * outers):
                    opened_too += 1
                    check_reopened(found.storage(), promises, outer.changes)
            except Exception as error:
                error.add_note(f"{outer!r}, and then {found!r}")
                raise
    print(f"{inner} crash states, {opened_too} opened")
    assert inner > 400
    assert opened_too > inner / 100
    assert recovered_torn > 0


def test_kills_leave_the_cache_and_a_crash_comes_later(generator: random.Random) -> None:
    """A killed owner's unsynced bytes are read by the next, and must not be believed durable."""
    for seed in [generator.getrandbits(32) for _ in range(100)]:
        promises = Promises()
        storage = SimulatedStorage(seed, faults=[LyingSync(path="*/manifest-*", nth=4, times=None)])
        attempt(storage, promises, 2, last_final=False)
        assert storage.fired["lying sync"] > 0
        after = storage.kill()
        with opened(after) as state:
            believed = state.last_commit
        with opened(after.crash()) as state:
            assert state.last_commit == believed


class SyncAfterRename(SimulatedStorage):
    """The mutant: a new file is synced only when it has its name already."""

    def create(self, path, *, mode=0o600):
        file = super().create(path, mode=mode)
        file.sync = lambda: None
        self.late = file
        return file

    def rename(self, source, target):
        super().rename(source, target)
        del self.late.sync
        self.late.sync()


class UnlinkBeforeSync(SimulatedStorage):
    """The mutant: what a rename makes superfluous is removed before the rename is durable."""

    def rename(self, source, target):
        super().rename(source, target)
        for name in self.list("/srv/state/orders"):
            if name.startswith("manifest-") and not target.endswith(name):
                super().unlink(f"/srv/state/orders/{name}")

    def unlink(self, path):
        if self.exists(path):
            super().unlink(path)


MUTANTS = {
    "no sync of bytes": lambda: SimulatedStorage(record=True, faults=[LyingSync(path="*/manifest-*", times=None)]),
    "no sync of names": lambda: SimulatedStorage(record=True, faults=[LyingSync(path="/srv/state/orders", times=None)]),
    "no sync of the directory's own name": lambda: SimulatedStorage(
        record=True, faults=[LyingSync(path="/srv/state", times=None)]
    ),
    "sync after rename": lambda: SyncAfterRename(record=True),
    "unlink before the rename is durable": lambda: UnlinkBeforeSync(record=True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(mutant: str, crash_state_count: int, generator: random.Random) -> None:
    storage = MUTANTS[mutant]()
    promises = recorded(storage)
    reader, seed = ReadBack(promises), generator.getrandbits(32)
    assert any(wrong(state, reader) for state in crash_states(storage, most=crash_state_count, seed=seed))
    states = crash_states(storage, most=crash_state_count, seed=seed)
    assert any(wrong_when_opened(state, promises) for state in states)


def wrong(state: CrashState, reader: ReadBack) -> bool:
    try:
        reader.check(state, state.changes)
    except (AssertionError, StateError):
        return True
    return False


def wrong_when_opened(state: CrashState, promises: Promises) -> bool:
    try:
        check_reopened(state.storage(), promises, state.changes)
    except (AssertionError, StateError):
        return True
    return False
