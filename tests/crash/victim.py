"""A small job of a few commits that meets a fault at an exact place, with its files and its oracle."""

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from crash import model
from crash.jobs import Job, split_into_files
from crash.nursery_of_kills import KILLED, Zygote
from crash.system_calls import SystemCall, Tracer

from engine.testing.workload import generate, redeliver

FILES = 3
"""Each is an epoch, and a checkpoint."""


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

    def suspend(self, at: SystemCall, successor: Zygote) -> int:
        """Suspend the first attempt behind that call, let a run of ``successor`` take its lock away and end, and wake
        it: its exit status. What the other one wrote must stay as it is.
        """
        found: list[dict[str, bytes]] = []

        def take_over() -> None:
            for lock in self.run.rglob("LOCK"):
                lock.unlink()
            assert successor.run(self._attempt(1)) == 0
            self.check()
            found.append(self.output())

        status = self._tracer.suspend(self._attempt(0), at, take_over)
        assert len(found) == 1, f"{at} was not reached, or the job was stopped more than once"
        assert self.output() == found[0]
        self.hit[at.name, at.pattern] += 1
        return status

    def output(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in model.files_of(self.run / "output")}

    def try_with(self, **fault: Any) -> int:
        """Run the first attempt with a fault, given as fields of the job; its exit status."""
        return self._zygote.run(replace(self._attempt(0), **fault))

    def sweep(self, resource: str, limits: list[int]) -> list[int]:
        """The first attempt under each of the limits, and then one without: the exit status of each."""
        statuses = []
        for most in limits:
            self.begin_anew()
            statuses.append(self.try_with(limits={resource: most}))
            self.finish(1)
        print(f"{resource}: {dict(zip(limits, statuses, strict=True))}")
        return statuses

    def move_staged_files_away(self) -> None:
        staged = [path for path in self.run.glob(".output.staging-*/*") if path.is_file()]
        assert staged, "the next run was refused, and not for what was staged too late"
        for path in staged:
            path.unlink()

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


def chosen(calls: list[SystemCall], count: int, chance: random.Random) -> list[SystemCall]:
    """So many of them, of as many kinds as can be; 0: all."""
    if count == 0:
        return calls
    shuffled = chance.sample(calls, len(calls))
    turns: Counter[tuple[str, str]] = Counter()
    turn_of = {}
    for call in shuffled:
        turns[call.name, call.pattern] += 1
        turn_of[call] = turns[call.name, call.pattern]
    return sorted(shuffled, key=turn_of.__getitem__)[:count]
