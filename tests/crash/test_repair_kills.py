"""SIGKILL at the system calls by which a repair changes files, once and twice in a row: repaired again, the job loses
nothing and gives nothing twice.

``--system-calls N`` says at how many of them (0: at all); the seed is printed, and ``--seed`` repeats it.
"""

import random
import shutil
from collections import Counter
from pathlib import Path

from crash.nursery_of_kills import KILLED
from crash.victim import Victim, chosen

from engine.checkpoint.inspection import verify
from engine.storage import Storage


def damaged(victim: Victim) -> list[str]:
    return [file.path for file in verify(Storage(), str(victim.run / "state" / "events")).damaged]


def test_a_repair_killed_at_every_system_call(
    victim: Victim, tmp_path: Path, system_calls: int, generator: random.Random
) -> None:
    assert victim.try_with(kill_at="commit.finalized", kill_on=2) == KILLED
    harmed = next(victim.run.glob("state/events/stages/*/ids-*"))
    content = harmed.read_bytes()
    harmed.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    assert damaged(victim) == [str(harmed)]
    shutil.copytree(victim.run, tmp_path / "harmed")
    published = victim.output()
    calls = victim.calls(1, mend=True)
    assert calls == victim.calls(1, mend=True), "two repairs of the same seed differ"
    kinds = {(call.name, call.pattern) for call in calls}
    plan = chosen(calls, system_calls, generator)
    seen = Counter[str]()
    for number, call in enumerate(plan):
        shutil.rmtree(victim.run)
        shutil.copytree(tmp_path / "harmed", victim.run)
        victim.kill(1, call, mend=True)
        if number % 3 == 0 and damaged(victim):
            [further] = chosen(victim.calls(2, mend=True), 1, generator)
            victim.kill(2, further, mend=True)
        found = damaged(victim)
        assert found in ([], [str(harmed)])
        seen["as before" if found else "repaired"] += 1
        victim.mend(3)
        assert damaged(victim) == []
        assert victim.output() == published
        victim.finish(4)
        assert [path.name for path in harmed.parent.iterdir()] == [harmed.name]
        assert not (victim.run / "state" / "events" / "repair").exists()
    print(f"{len(calls)} calls of {len(kinds)} kinds; killed {victim.hit.total()} times at {len(victim.hit)}; {seen}")
    assert victim.hit.total() >= len(plan) > 0
    assert victim.depths.total() == len(plan)
    assert seen["as before"] > 0
