"""What befalls a process and is no SIGKILL: it is suspended and replaced, crashes in native code, has no memory, no
descriptors, or may write no larger files. The next run completes, nothing lost, nothing twice.
"""

import random
from collections import Counter

from crash.jobs import REFUSED
from crash.victim import Victim, chosen


def test_a_suspended_owner_that_comes_back_changes_nothing(
    victim: Victim, system_calls: int, generator: random.Random
) -> None:
    """Its LOCK was deleted and another run went on meanwhile: what it does then, at any of its calls, must not count."""
    calls = victim.calls(0)
    statuses: Counter[int] = Counter()
    for call in chosen(calls, system_calls // 3, generator):
        victim.begin_anew()
        statuses[victim.suspend(call)] += 1
        victim.finish(2)
    print(f"{statuses=} {victim.hit=}")
    assert set(statuses) <= {0, REFUSED}
    assert statuses[REFUSED] > 0
