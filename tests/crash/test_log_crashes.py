"""The durable log after a loss of power at every change of the disk, and under every error of every call.

Verified: what was acknowledged is there, in order, with its values; nothing else but appends that were under way;
opening again comes to the same, also when the power fails while recovering; no file is removed in reaction to a
failure. Each mutant, one sync left out or an acknowledgement given too early, is found by the same checks.
"""

import random
import time
from collections import Counter
from itertools import count

import pytest
from crash.failures import FAILURES
from crash.remembered import share_of
from crash.simulated_log import (
    Acknowledged,
    ReadBack,
    attempt,
    check_appended,
    check_reopened,
    found,
    opened,
    recorded,
)

from engine.errors import LogError
from engine.log.partition import Partition
from engine.testing.crash_states import CrashState, crash_states
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import CutPower, FailCall, LyingSync


def test_every_crash_state_has_what_was_acknowledged(crash_state_count: int, generator: random.Random) -> None:
    """Each is read back; a share of them is also opened for writing, twice, and appended to."""
    storage = SimulatedStorage(record=True)
    told = recorded(storage)
    reader, share = ReadBack(told), share_of(crash_state_count)
    began, visited, torn, opened_too = time.process_time(), 0, 0, 0
    for state in crash_states(storage, most=crash_state_count, seed=generator.getrandbits(32)):
        visited += 1
        torn += state.taken_bytes > 0
        dear = generator.random() < share
        opened_too += dear
        try:
            reader.check(state, state.changes)
            if dear:
                after = state.storage()
                check_reopened(after, told, state.changes)
                check_appended(after)
        except Exception as error:
            error.add_note(repr(state))
            raise
    took_s = time.process_time() - began
    print(f"{visited} crash states, {visited / took_s:.0f} a second; {torn} within a write")
    print(f"{reader.asked} answers of readers; {opened_too} opened for writing")
    assert visited > min(crash_state_count, 100_000) / 2
    assert torn > visited / 10
    assert opened_too > visited / 100


def test_a_crash_while_recovering_from_a_crash(crash_state_count: int, generator: random.Random) -> None:
    storage = SimulatedStorage(record=True)
    told = recorded(storage)
    reader, inner, opened_too = ReadBack(told), 0, 0
    outers = max(30, crash_state_count // 100)
    for outer in crash_states(storage, most=outers, seed=generator.getrandbits(32)):
        again = outer.storage(record=True)
        opened(again).close()
        for state in crash_states(again, most=10, seed=generator.getrandbits(32)):
            inner += 1
            reader.check(state, outer.changes)
            if generator.random() < share_of(10 * outers):
                opened_too += 1
                check_reopened(state.storage(), told, outer.changes)
    print(f"{inner} crash states, {opened_too} opened for writing")
    assert inner > 100
    assert opened_too > inner / 100


def test_a_killed_writer_s_rows_are_not_believed_durable(generator: random.Random) -> None:
    unproven = 0
    for nth in range(1, 40):
        storage = SimulatedStorage(generator.getrandbits(32), faults=[CutPower("sync", path="*.seg*", nth=nth)])
        try:
            recorded(storage)
        except PowerLost:
            assert storage.fired["power cut"] == 1
        after = storage.kill()  # what was written is in the cache, and on no disk
        unproven += storage.fired["power cut"]
        with opened(after) as log:
            believed = [found(log, partition) for partition in range(2)]
        with opened(after.crash()) as log:
            assert [found(log, partition) for partition in range(2)] == believed
    assert unproven > 8


def _acknowledged_early(monkeypatch: pytest.MonkeyPatch) -> SimulatedStorage:
    write = Partition._write

    def early(self, *args):
        written = write(self, *args)
        self._note_durable(self._end)
        return written

    monkeypatch.setattr(Partition, "_write", early)
    return SimulatedStorage(record=True)


MUTANTS = {
    "no sync of segments": lambda _: SimulatedStorage(record=True, faults=[LyingSync(path="*.seg*", times=None)]),
    "no sync of names": lambda _: SimulatedStorage(record=True, faults=[LyingSync(path="*/partition-*0", times=None)]),
    "no sync of the log's own directory": lambda _: SimulatedStorage(
        record=True, faults=[LyingSync(path="/srv/log", times=None)]
    ),
    "no sync of the description": lambda _: SimulatedStorage(
        record=True, faults=[LyingSync(path="*/LOG*", times=None)]
    ),
    "acknowledged before the sync": _acknowledged_early,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(
    mutant: str, crash_state_count: int, generator: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MUTANTS[mutant](monkeypatch)
    told = recorded(storage)
    monkeypatch.undo()
    reader, seed = ReadBack(told), generator.getrandbits(32)
    assert any(wrong(state, reader) for state in crash_states(storage, most=crash_state_count, seed=seed))
    states = crash_states(storage, most=crash_state_count, seed=seed)
    assert any(wrong_when_opened(state, told) for state in states)


def wrong(state: CrashState, reader: ReadBack) -> bool:
    try:
        reader.check(state, state.changes)
    except (AssertionError, LogError, OSError):
        return True
    return False


def wrong_when_opened(state: CrashState, told: Acknowledged) -> bool:
    try:
        check_reopened(state.storage(), told, state.changes)
    except (AssertionError, LogError, OSError):
        return True
    return False


@pytest.mark.parametrize(("turn", "number", "times"), FAILURES)
def test_the_nth_call_fails(turn: int, number: int, times: int | None, call_stride: int) -> None:
    fired, failed, survived = Counter[str](), 0, 0
    for nth in count(1 + turn % call_stride, call_stride):
        storage = SimulatedStorage(nth, faults=[FailCall("*", errno=number, nth=nth, times=times)])
        told, failure = Acknowledged(), None
        try:
            attempt(storage, told, 6)
            attempt(storage, told, 3)
        except LogError as error:
            failure = error
        if not storage.fired:
            break
        failed += failure is not None
        survived += failure is None
        fired += storage.fired
        assert not [call for call in storage.trace[nth:] if call.name == "unlink" and ".tmp" not in call.path]
        killed = storage.kill()
        check_reopened(killed, told, storage.changes)
        check_reopened(killed.crash(), told, storage.changes)
    print(f"{failed + survived} runs: {failed} failed, {survived} went on; {dict(fired)}")
    assert call_stride > 1 or {name.split()[0] for name in fired} >= {
        *("create", "append", "sync", "rename", "sync_directory", "open", "pread")
    }
    assert failed > 20 // call_stride
