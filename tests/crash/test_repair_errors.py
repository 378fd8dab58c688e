"""A repair when the Nth call of the storage fails, once or for ever, for every N.

Verified: what failed says so as an error of engine; no file of before is changed or removed but the manifest, which
then tells of the damage or of the repair; the next repair succeeds, after a kill and after a loss of power; and a run
goes on as if nothing had happened.
"""

import re
from collections import Counter
from itertools import count

import pytest
from crash.failures import FAILURES
from runtime.damaged_states import damaged_disk, output_of, simulated

from engine.checkpoint.inspection import verify
from engine.errors import EngineError
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import FailCall

ROWS = 6_000
STATE = "/state/repaired"
REPLACED = re.compile(rf"{STATE}/(LOCK|manifest-\d+(\.tmp)?|repair(/.*)?)")

NEW = re.compile(rf"{STATE}/(LOCK|manifest-\d+(\.tmp)?|repair(/.*)?|stages/[^/]*\.rebuilt-[0-9a-f]+(/.*)?)")
"""What a repair may leave."""


@pytest.fixture(scope="module")
def damaged():
    """A state with a damaged file, which file that is, and the rows of an undisturbed run."""
    storage, victim, expected = damaged_disk(rows=ROWS)
    return storage, victim, expected


def kept(storage):
    return {name: data for name, data in storage.contents().items() if not REPLACED.fullmatch(name)}


@pytest.mark.parametrize(("turn", "number", "times"), FAILURES)
def test_the_nth_call_fails(damaged, turn, number, times, call_stride):
    base, victim, expected = damaged
    before = kept(base)
    fired, seen = Counter(), Counter()
    for runs, nth in enumerate(count(1 + turn % call_stride, call_stride)):
        storage = SimulatedStorage(nth, faults=[FailCall("*", errno=number, nth=nth, times=times)], disk=base.disk())
        failure = None
        try:
            simulated(storage, mend=True, rows=ROWS)
        except EngineError as error:
            failure = error
        if not storage.fired:
            break
        fired += storage.fired
        after = storage.kill()
        found = [file.path for file in verify(after, STATE).damaged]
        assert found in ([], [victim]), nth
        assert failure is not None or not found, nth
        now = after.contents()
        assert before == {name: now.get(name) for name in before}, nth
        assert all(NEW.fullmatch(name) for name in now.keys() - before.keys()), nth
        seen["failed" if failure else "went on", "as before" if found else "repaired"] += 1
        reached = after.crash() if runs % 2 else after
        found = [file.path for file in verify(reached, STATE).damaged]
        assert found in ([], [victim]), nth
        assert [file.path for file in simulated(reached, mend=True, rows=ROWS).damaged] == found, nth
        assert verify(reached, STATE).damaged == (), nth
        assert not reached.exists(f"{STATE}/repair")
        if runs % 5 == 0:
            simulated(reached, rows=ROWS)
            assert output_of(reached.crash()) == expected, nth
            seen["gone on"] += 1
    print(f"{runs} runs: {dict(seen)}; {dict(fired)}")
    assert call_stride > 1 or {name.split()[0] for name in fired} >= {
        *("make_directory", "sync_directory", "lock", "check", "list", "create", "append", "sync", "rename", "unlink"),
        *("open", "pread", "remove_directory"),
    }
    assert seen["failed", "as before"] > 80 // call_stride
    assert seen["went on", "repaired"] > 5 // call_stride
    assert seen["gone on"] > 20 // call_stride
