"""SIGKILL at the system calls by which a job of a few commits changes its files, at its first start and while it
recovers, up to three times in a row: nothing lost, nothing twice.

``--system-calls N`` says at how many of them (0: at all); the seed is printed, and ``--seed`` repeats it.
"""

import random

import pytest
from crash.victim import Victim, chosen

NESTED = (0, 0, 1, 0, 0, 2, 0, 3)
"""How often a job is killed again while it recovers: one after the other."""


@pytest.mark.parametrize("sink", ["parquet", "log"])
def test_killed_at_every_system_call(victim: Victim, system_calls: int, generator: random.Random) -> None:
    calls = victim.calls(0)
    assert calls == victim.calls(0), "two runs of the same seed differ"
    kinds = {(call.name, call.pattern) for call in calls}
    plan = chosen(calls, system_calls, generator)
    for number, call in enumerate(plan):
        victim.begin_anew()
        victim.kill(0, call)
        kills = 1
        for _ in range(NESTED[number % len(NESTED)]):
            left = victim.calls(kills)
            [next_call] = chosen(left, 1, generator)
            victim.kill(kills, next_call)
            kills += 1
        victim.finish(kills)
    print(f"{len(calls)} calls of {len(kinds)} kinds; killed {victim.hit.total()} times at {len(victim.hit)} kinds")
    print(f"{victim.depths=} {victim.hit=}")
    assert victim.hit.total() >= len(plan) > 0
    assert victim.depths.total() == len(plan)
    assert set(victim.depths) == {kills + 1 for kills in NESTED[: len(plan)]}
    assert len(kinds & set(victim.hit)) >= min(len(plan), len(kinds))


def test_killed_at_the_first_calls_of_all(victim: Victim, generator: random.Random) -> None:
    """Before there is a manifest: the next start finds nothing or all of it, and never calls it damage."""
    calls = victim.calls(0)
    first = next(number for number, call in enumerate(calls) if call.name.startswith("rename"))
    beginning = calls[: first + 2]
    assert {"mkdir", "openat", "flock"} <= {call.name for call in beginning}
    for call in beginning:
        victim.begin_anew()
        victim.kill(0, call)
        victim.finish(1)
    print(f"killed {victim.hit.total()} times: {victim.hit}")
    assert victim.hit.total() == len(beginning)
