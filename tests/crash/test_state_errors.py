"""The state directory and the log of ids when the Nth call of the storage fails, once or for ever, for every N.

Verified: what failed says so as a StateError (of the log: an OSError, which its stage explains); what was committed is
there after the process is killed, and after the power failed too; nothing is removed in reaction to a failure.
"""

import errno
from collections import Counter

import pytest
from crash.simulated_state import PATH, Promises, attempt, check_reopened

from engine.errors import StateError
from engine.stages.id_log import IdLog, SegmentState
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import FailCall

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EACCES]
REMOVALS = {"unlink", "truncate", "remove_directory"}

every_error = pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
once_or_for_ever = pytest.mark.parametrize("times", [1, None], ids=["once", "for ever"])


def three_attempts(storage: SimulatedStorage, promises: Promises) -> None:
    attempt(storage, promises, 3)
    attempt(storage, promises, 2, last_final=False)
    attempt(storage, promises, 1)


@every_error
@once_or_for_ever
def test_state_directory(number: int, times: int | None) -> None:
    fired, nth, failed, survived = Counter[str](), 0, 0, 0
    while True:
        nth += 1
        storage = SimulatedStorage(nth, faults=[FailCall("*", errno=number, nth=nth, times=times)])
        promises = Promises()
        failure = None
        try:
            three_attempts(storage, promises)
        except StateError as error:
            failure = error
        if not storage.fired:
            break
        if failure is None:
            survived += 1
        else:
            failed += 1
            assert isinstance(failure.__cause__, OSError)
            assert PATH in str(failure)
            assert not {call.name for call in storage.trace[nth:]} & REMOVALS
        fired += storage.fired
        killed = storage.kill()
        before = set(killed.contents())
        check_reopened(killed, promises, storage.changes)
        check_reopened(killed.crash(), promises, storage.changes)
        assert {name for name in before if name.endswith("LOCK")} <= set(killed.contents())
    print(f"{nth} runs: {failed} failed, {survived} went on; {dict(fired)}")
    assert {name.split()[0] for name in fired} >= {
        *("make_directory", "sync_directory", "lock", "check", "list", "create", "append", "sync", "rename", "unlink"),
        *("open", "pread"),
    }
    assert failed > 5 * survived


SEED = bytes(range(16))
IDS = 40
"""Ids an append."""


def ids_of(first: int) -> bytes:
    return b"".join(position.to_bytes(16, "big") for position in range(first, first + IDS))


class LogOwner:
    """Appends, syncs and drops; ``committed`` is the last snapshot that was final, and its window's start."""

    def __init__(self) -> None:
        self.committed: list[SegmentState] = []
        self.start = 0
        self.stop = 0

    def run(self, storage: SimulatedStorage, appends: int) -> None:
        storage.make_directory("/ids")
        for name in storage.list("/ids"):
            if name not in {state["file"] for state in self.committed}:
                storage.unlink(f"/ids/{name}")
        log = IdLog(storage, "/ids", SEED, segment_bytes=1500)
        for _ in log.restore(self.committed, self.start):
            pass
        position = self.stop
        for number in range(appends):
            log.append(position, ids_of(position))
            position += IDS
            if number % 2:
                start = max(0, position - 5 * IDS)
                log.drop_below(start)
                states = log.sync()
                self.committed, self.start, self.stop = states, start, position
                log.release(states)
        log.close()

    def check(self, storage: SimulatedStorage) -> None:
        log = IdLog(storage, "/ids", SEED, segment_bytes=1500)
        found = list(log.restore(self.committed, self.start))
        log.close()
        assert b"".join(ids for _, ids in found) == b"".join(ids_of(at) for at in range(self.start, self.stop, IDS))


@every_error
@once_or_for_ever
def test_id_log(number: int, times: int | None) -> None:
    fired, nth, failed = Counter[str](), 0, 0
    while True:
        nth += 1
        storage = SimulatedStorage(nth, faults=[FailCall("*", errno=number, nth=nth, times=times)])
        owner = LogOwner()
        failure = None
        try:
            owner.run(storage, 9)
            owner.run(storage, 4)
        except OSError as error:
            failure = error
        if not storage.fired:
            break
        if failure is not None:
            failed += 1
            assert failure.errno == number
            assert not {call.name for call in storage.trace[nth:]} & REMOVALS
        fired += storage.fired
        killed = storage.kill()
        owner.check(killed)
        owner.check(killed.crash())
        owner.check(storage.kill().crash("nothing"))
        owner.run(storage.kill(), 2)
    print(f"{nth} runs: {failed} failed; {dict(fired)}")
    assert {name.split()[0] for name in fired} >= {
        *("make_directory", "sync_directory", "create", "append", "sync", "unlink", "open", "pread", "truncate"),
    }
    assert nth - 1 - failed <= 2  # a directory that may not be read need not be synced above ours


def test_a_failed_sync_of_a_commit_is_not_tried_again() -> None:
    """The second sync would report success, and nothing would be on the disk."""
    storage = SimulatedStorage(faults=[FailCall("sync", nth=4, path="*/manifest-*")])
    promises = Promises()
    with pytest.raises(StateError):
        attempt(storage, promises, 5)
    assert storage.fired["sync EIO"] == 1
    assert storage.trace[-1].name == "sync"
    check_reopened(storage.crash("everything"), promises, storage.changes)


def test_a_full_disk_takes_a_part_and_the_rest_when_there_is_space_again() -> None:
    storage = SimulatedStorage()
    promises = Promises()
    attempt(storage, promises, 3)
    storage.capacity_bytes = sum(len(data or b"") for data in storage.contents().values()) + 300
    with pytest.raises(StateError, match="No space left"):
        attempt(storage, promises, 9)
    assert storage.fired["disk full"] == 1
    with pytest.raises(StateError, match="No space left"):
        attempt(storage, promises, 1)
    storage.capacity_bytes = None
    attempt(storage, promises, 3)
    check_reopened(storage.crash("nothing"), promises, storage.changes)
