"""The state directory and the log of ids when the Nth call of the storage fails, once or for ever, for every N.

Verified: what failed says so as a StateError (of the log: an OSError, which its stage explains); what was committed is
there after the process is killed, and after the power failed too; nothing is removed in reaction to a failure.
"""

import errno
from collections import Counter

import pytest
from crash.simulated_ids import Snapshot, run
from crash.simulated_state import PATH, Promises, attempt, check_reopened

from engine.errors import StateError
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


@every_error
@once_or_for_ever
def test_id_log(number: int, times: int | None) -> None:
    fired, nth, failed = Counter[str](), 0, 0
    while True:
        nth += 1
        storage = SimulatedStorage(nth, faults=[FailCall("*", errno=number, nth=nth, times=times)])
        snapshots = [Snapshot()]
        failure = None
        try:
            run(storage, snapshots, 9)
            run(storage, snapshots, 4)
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
        snapshots[-1].check(killed)
        snapshots[-1].check(killed.crash())
        snapshots[-1].check(storage.crash("nothing"))
        run(storage.kill(), snapshots, 2)
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
