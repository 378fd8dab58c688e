"""A small job of a few commits that meets a fault at an exact place, with its files and its oracle."""

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from crash import model, outputs
from crash.jobs import Job, split_into_files
from crash.nursery_of_kills import KILLED, Zygote
from crash.system_calls import CHECKING, SystemCall, Tracer

from engine.testing.workload import generate, redeliver

FILES = 3
"""Each is an epoch, and a checkpoint."""


class Victim:
    """A job with its files, its oracle, and what it was killed at."""

    def __init__(self, directory: Path, zygote: Zygote, strace: str, sink: str = "parquet") -> None:
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
            sink=sink,
            state=str(self.run / "state"),
        )
        self.begin_anew()

    def begin_anew(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()

    def calls(self, attempt: int, *, mend: bool = False) -> list[SystemCall]:
        """Those that change files, of a run, or of a repair, from the files as they are now; they are left as they
        are.
        """
        return [call for call in self._listed(attempt, mend=mend) if call.name not in CHECKING]

    def checks(self, attempt: int) -> list[SystemCall]:
        """Those by which such a run looks at its lock; the ``pattern`` of each is what it changes then."""
        found = []
        check: SystemCall | None = None
        for call in self._listed(attempt):
            if call.name in CHECKING:
                check = call if call.pattern == "/state/events/LOCK" else check
            elif check is not None:
                found.append(replace(check, pattern=f"{call.name} {call.pattern}"))
                check = None
        return found

    def _listed(self, attempt: int, *, mend: bool = False) -> list[SystemCall]:
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self.run, self._saved)
        status, calls = self._tracer.calls(replace(self._attempt(attempt), mend=mend))
        assert status == 0
        if not mend:
            self.check()
        shutil.rmtree(self.run)
        self._saved.rename(self.run)
        return calls

    def kill(self, attempt: int, at: SystemCall, *, mend: bool = False) -> None:
        status = self._tracer.kill(replace(self._attempt(attempt), mend=mend), at)
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
        self.check()
        self.hit[at.name, at.pattern] += 1
        return status

    def output(self) -> dict[str, bytes]:
        return outputs.files_in(self._job.sink, self.run / "output")

    def mend(self, attempt: int) -> None:
        """Repair the state."""
        assert self._zygote.run(replace(self._attempt(attempt), mend=True)) == 0

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

    def strays(self) -> list[Path]:
        """What is empty where a sink keeps rows until their commit."""
        rooms = (".output.staging-*", ".output.staging-*/*", "output/staging/*", "state/events/sinks/*/*")
        found = [path for room in rooms for path in self.run.glob(room)]
        return [path for path in found if not (any(path.iterdir()) if path.is_dir() else path.stat().st_size)]

    def finish(self, kills: int) -> None:
        assert self._zygote.run(self._attempt(kills)) == 0
        self.depths[kills] += 1
        self.check()

    def check(self) -> None:
        columns = self._expected.schema.append(pa.field("key_bytes", pa.int32()))
        model.check_rows(outputs.rows_in(self._job.sink, self.run / "output", columns), self._expected)

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
