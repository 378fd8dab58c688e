"""SIGKILL at the system calls by which a job of a few commits changes its files, at its first start and while it
recovers, up to three times in a row: nothing lost, nothing twice.

``--system-calls N`` says at how many of them (0: at all); the seed is printed, and ``--seed`` repeats it.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from crash import model
from crash.jobs import Job
from crash.nursery_of_kills import KILLED, Zygote
from crash.system_calls import SystemCall, Tracer
from crash.test_kills import split_into_files

from engine.testing.workload import generate, redeliver

FILES = 3
"""Each is an epoch, and a checkpoint."""

MOST_KILLS = 4
"""One in the run, and three while recovering from it."""


class Victim:
    """A job with its files, its oracle, and what it was killed at."""

    def __init__(self, directory: Path, zygote: Zygote, strace: str) -> None:
        self.run = directory / "run"
        self.hit: Counter[tuple[str, str]] = Counter()
        self.depths: Counter[int] = Counter()
        self._saved = directory / "saved"
        self._zygote = zygote
        self._tracer = Tracer(zygote, strace, self.run)
        table = redeliver(_events(), seed=1, share=0.1, max_distance=300)
        split_into_files(table, directory / "input", FILES)
        self._expected = model.distinct_first_deliveries(table)
        self._job = Job(
            input=str(directory / "input"),
            partitions=2,
            output=str(self.run / "output"),
            state=str(self.run / "state"),
            reads=str(directory / "reads"),
            events=str(directory / "events"),
        )
        self.begin_anew()

    def begin_anew(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()

    def calls(self, attempt: int) -> list[SystemCall]:
        """Those of a run from the files as they are now; they are left as they are."""
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self.run, self._saved)
        status, calls = self._tracer.calls(self._attempt(attempt))
        assert status == 0
        self.check()
        shutil.rmtree(self.run)
        self._saved.rename(self.run)
        return calls

    def kill(self, attempt: int, at: SystemCall) -> None:
        status = self._tracer.kill(self._attempt(attempt), at)
        assert status == KILLED, f"{at} was not reached: the job ended with {status}"
        self.hit[at.name, at.pattern] += 1

    def finish(self, kills: int) -> None:
        assert self._zygote.run(self._attempt(kills)) == 0
        self.depths[kills] += 1
        self.check()

    def check(self) -> None:
        model.check_exactly_once(self.run / "output", self._expected)

    def _attempt(self, number: int) -> Job:
        return replace(self._job, seed=number)  # of the same attempt the same calls, of another one other ids


def _events() -> pa.Table:
    return pa.Table.from_batches(generate(600, seed=3, keys=50, redeliveries=0.0)).drop_columns(["delivery"])


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("CI"):
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    with Zygote(tmp_path / "zygote.log") as zygote:
        yield Victim(tmp_path, zygote, strace)


def chosen(calls: list[SystemCall], count: int, chance: random.Random) -> list[SystemCall]:
    """So many of them, of as many kinds as can be; 0: all."""
    if count == 0:
        return calls
    shuffled = chance.sample(calls, len(calls))
    turns: Counter[tuple[str, str]] = Counter()
    ranked = []
    for call in shuffled:
        turns[call.name, call.pattern] += 1
        ranked.append((turns[call.name, call.pattern], call))
    ranked.sort(key=lambda pair: pair[0])
    return [call for _, call in ranked[:count]]


def test_killed_at_every_system_call(victim: Victim, pytestconfig: pytest.Config, generator: random.Random) -> None:
    calls = victim.calls(0)
    assert calls == victim.calls(0), "two runs of the same seed differ"
    kinds = {(call.name, call.pattern) for call in calls}
    plan = chosen(calls, int(pytestconfig.getoption("--system-calls")), generator)
    for number, call in enumerate(plan):
        victim.begin_anew()
        victim.kill(0, call)
        kills = 1
        for _ in range(number % MOST_KILLS):
            left = victim.calls(kills)
            [next_call] = chosen(left, 1, generator)
            victim.kill(kills, next_call)
            kills += 1
        victim.finish(kills)
    print(f"{len(calls)} calls of {len(kinds)} kinds; killed {victim.hit.total()} times at {len(victim.hit)} kinds")
    print(f"{victim.depths=} {victim.hit=}")
    assert victim.hit.total() >= len(plan) > 0
    assert victim.depths.total() == len(plan)
    assert set(victim.depths) == set(range(1, min(MOST_KILLS, len(plan)) + 1))
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
