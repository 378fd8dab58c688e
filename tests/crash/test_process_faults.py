"""What befalls a process and is no SIGKILL: it is suspended and replaced, crashes in native code, has no memory, no
descriptors, or may write no larger files. The next run completes, nothing lost, nothing twice.
"""

import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crash.jobs import EXITED, OUT_OF_MEMORY, REFUSED
from crash.nursery_of_kills import Zygote
from crash.victim import Victim, chosen

import engine
from engine import Pipeline, sinks, sources
from engine.checkpoint.store import StateDirectory
from engine.errors import EngineError
from engine.sinks.file_writer import FileWriter
from engine.storage import File, Storage

MAKING = re.compile(r"(openat|mkdir) .*(staging|/sinks/)")


@pytest.mark.parametrize("sink", ["parquet", "log", "sqlite"])
def test_a_suspended_owner_that_comes_back_changes_nothing(
    sink: str, tmp_path: Path, strace: str, system_calls: int, generator: random.Random
) -> None:
    """Its LOCK was deleted and another run ended meanwhile: what it does then, from any call on, must not count. The
    state stays whole, and what it leaves, one empty file or directory at the most, hinders no later run.
    """
    with Zygote(tmp_path / "zygote.log") as zygote, Zygote(tmp_path / "successor.log") as successor:
        victim = Victim(tmp_path, zygote, strace, sink)
        # A suspended process keeps the locks of SQLite: nobody can help that.
        calls = [call for call in victim.calls(0) if sink != "sqlite" or call.pattern.startswith("/state")]
        checks = victim.checks(0)
        kinds = {call.pattern for call in checks}
        # Those in front of a call that makes something where rows are staged come first: there something can be left.
        making = [check for check in checks if MAKING.match(check.pattern)]
        made = {check.pattern for check in making}
        others = [check for check in checks if check.pattern not in made]
        plan = chosen(making, len(made), generator) + chosen(others, min(system_calls, len(kinds - made)), generator)
        plan += chosen(calls, -(-system_calls // 8), generator)
        woken: Counter[int] = Counter()
        left: Counter[str] = Counter()
        for call in plan:
            victim.begin_anew()
            woken[victim.suspend(call, successor)] += 1
            strays = victim.strays()
            left[call.pattern] += len(strays)
            assert len(strays) <= 1
            victim.finish(2)
            assert victim.strays() == []
    print(f"{len(calls)} calls, {len(checks)} checks of {len(kinds)} kinds; {woken=} {+left=}")
    assert set(woken) <= {0, REFUSED}
    assert woken[REFUSED] > 0
    assert left.total() > 0


ENDINGS = {"abort": -signal.SIGABRT, "segfault": -signal.SIGSEGV, "exit": EXITED, "memory": REFUSED}


def test_a_process_that_ends_in_a_map(victim: Victim) -> None:
    """Native code that crashes, an exit without a word, memory that runs out: on threads, and on one."""
    for how, status in ENDINGS.items():
        for seed in (None, 0):
            victim.begin_anew()
            assert victim.try_with(crash=how, seed=seed) == status
            victim.finish(1)


def test_files_that_may_not_grow(victim: Victim) -> None:
    """EFBIG at every size at which anything is cut short; of SIGXFSZ nobody dies."""
    statuses = victim.sweep("RLIMIT_FSIZE", [0, 1, 100, 300, 1_000, 3_000, 10_000, 100_000])
    assert statuses[-1] == 0
    assert set(statuses[:-1]) <= {0, REFUSED}
    assert statuses.count(REFUSED) >= 4


def test_descriptors_that_run_out(victim: Victim) -> None:
    """EMFILE at every count of open files that is too small."""
    statuses = victim.sweep("RLIMIT_NOFILE", list(range(6, 13)))
    assert statuses[-1] == 0
    assert statuses.count(REFUSED) >= 4


def test_memory_that_runs_out(victim: Victim) -> None:
    """Whatever an allocation fails for: an error. Arrow itself may die of it, where next to nothing is left."""
    statuses = victim.sweep("RLIMIT_AS", [0, *(1 << bits for bits in (18, 20, 21, 22, 24, 32))])
    assert statuses[-1] == 0
    assert set(statuses) <= {0, REFUSED, OUT_OF_MEMORY, -signal.SIGSEGV, -signal.SIGABRT}
    assert sum(status != 0 for status in statuses) >= 3


class Scarce:
    """Every call of the functions that it wraps is counted; the ``nth`` raises MemoryError, and is not done."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.calls = 0

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def scarce(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.nth:
                raise MemoryError("injected")
            return fn(*args, **kwargs)

        return scarce


SCARCE = [
    (Storage, "create open rename unlink list sync_directory make_directory lock"),
    (File, "append sync pread truncate"),
    (StateDirectory, "append_commit append_final token"),
    (FileWriter, "write prepare"),
]


def test_no_memory_for_the_nth_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an operator, a writer, a commit or a call of the storage: the run ends, and the next one of the same process
    completes. Every N, until the run gets through.
    """
    rows = pa.table({"n": range(60)})
    fired = 0
    for nth in range(1, 1000):
        directory = tmp_path / str(nth)
        scarce = Scarce(nth)
        source = sources.memory(rows.to_batches(max_chunksize=30), id="rows")
        pipeline = Pipeline("job").read(source).dedup("n").map(scarce.wrap(lambda batch: batch))
        pipeline = pipeline.write(sinks.parquet(directory / "out"))
        with monkeypatch.context() as patch:
            for kind, names in SCARCE:
                for name in names.split():
                    patch.setattr(kind, name, scarce.wrap(getattr(kind, name)))
            try:
                engine.run(pipeline, state=directory / "state", commit_every_bytes=1)
            except (MemoryError, EngineError):
                fired += 1
        again = Pipeline("job").read(sources.memory(rows.to_batches(max_chunksize=30), id="rows")).dedup("n")
        engine.run(again.map(lambda batch: batch).write(sinks.parquet(directory / "out")), state=directory / "state")
        assert pq.read_table(directory / "out").column("n").to_pylist() == list(range(60))
        if scarce.calls < nth:
            break
    print(f"{fired} of {nth} runs ended for want of memory")
    assert scarce.calls < nth
    assert fired == nth - 1 >= 50
