"""The files of stages and sinks after a loss of power at any moment: what a COMMIT would name is there, whole.

Verified: of the log of ids and of a window with its sealed runs the last snapshot; of an output directory that every
committed file is published whole by recovery, that a finished epoch needs nothing more, and that no file of an
uncommitted epoch is visible. Leaving out any one kind of sync is found.
Not verified here: the logs of keys of exact windows; who commits when (``test_kills``).
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crash import simulated_ids
from crash.simulated_ids import Snapshot
from stages.window_model import History, Inline, probe, small_window

from engine.errors import CorruptState, SinkError
from engine.progress import Token
from engine.sinks.output_directory import OutputDirectory
from engine.sinks.ownership import FileMark, file_name
from engine.testing.crash_states import CrashState, crash_states
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import LyingSync

FAILURES = (AssertionError, CorruptState, SinkError)


def explore(
    storage: SimulatedStorage, check: Callable[[CrashState], None], most: int, chance: random.Random
) -> Iterator[Exception]:
    """The failures of a check in the crash states of what was recorded."""
    visited = 0
    for state in crash_states(storage, most=most, seed=chance.getrandbits(32)):
        visited += 1
        try:
            check(state)
        except FAILURES as error:
            error.add_note(repr(state))
            yield error
    print(f"{visited} crash states")
    assert visited > most / 4


def none_of(failures: Iterator[Exception]) -> None:
    for failure in failures:
        raise failure


# -- the log of ids, and a window with runs --


def log_of_ids(storage: SimulatedStorage) -> Callable[[CrashState], None]:
    snapshots = [Snapshot()]
    simulated_ids.run(storage, snapshots, 9)
    simulated_ids.run(storage, snapshots, 3)

    def check(state: CrashState) -> None:
        last = max((s for s in snapshots if s.changes <= state.changes), key=lambda s: s.changes)
        last.check(state.storage())

    return check


def window_with_runs(storage: SimulatedStorage) -> Callable[[CrashState], None]:
    options: dict[str, Any] = {"within": 600, "memory_bytes": 4000}
    chance = random.Random(7)
    window = small_window("/srv/window", storage=storage, background=Inline(), **options)
    history = History(600)
    snapshots: list[tuple[int, Any, History]] = [(0, None, history.copy())]
    for epoch in range(7):
        for _ in range(3):
            numbers = [chance.randrange(60 * (epoch + 2)) for _ in range(60)]
            assert probe(window, numbers) == history.probe(numbers)
        state = window.snapshot()
        snapshots.append((storage.changes, state, history.copy()))
        window.release(state)
    assert len(state["runs"]) > 0
    window.close()

    def check(crashed: CrashState) -> None:
        _, state, then = max((s for s in snapshots if s[0] <= crashed.changes), key=lambda s: s[0])
        window = small_window("/srv/window", storage=crashed.storage(), background=Inline(), **options)
        if state is not None:
            window.restore(state)
        numbers = list(range(0, 480, 3))
        assert probe(window, numbers) == then.copy().probe(numbers)
        window.close()

    return check


# -- an output directory --

SINK = "out"
INCARNATION = "0123456789abcdef" * 2


class Output:
    """Three epochs of two files each, prepared, committed, published and finished; and what recovery owes."""

    def __init__(self, storage: SimulatedStorage) -> None:
        self.committed: list[tuple[int, int, list[dict[str, Any]]]] = [(0, 0, [])]
        self.finished: list[tuple[int, int]] = [(0, 0)]
        self.files: dict[str, tuple[int, bytes]] = {}
        output = self.directory(storage)
        output.check(self.token(0))
        output.prepare()
        for epoch in range(1, 4):
            handles = []
            for partition in range(2):
                mark = FileMark.of(self.token(epoch), partition)
                staged = output.create(mark)
                data = repr(mark).encode() + b"\n" + bytes([epoch, partition]) * 600
                staged.write(data)
                staged.finish()
                name = f"p={partition}/{file_name(mark, 0, 'bin', shared=False)}"
                self.files[name] = (epoch, data)
                handles.append(output.describe(mark, [(name, staged)]))
            output.sync_staging()
            self.committed.append((storage.changes, epoch, handles))
            output.publish(handles)
            self.finished.append((storage.changes, epoch))

    @staticmethod
    def token(epoch: int) -> Token:
        return Token(INCARNATION, epoch, "00000000000000aa", SINK)

    @staticmethod
    def directory(storage: SimulatedStorage) -> OutputDirectory:
        def read_mark(path: str) -> FileMark | None:
            with storage.open(path) as file:
                line = file.pread(min(file.size, 400), 0).split(b"\n")[0]
            marks = (FileMark.of(Output.token(epoch), partition) for epoch in range(5) for partition in range(2))
            return next((mark for mark in marks if repr(mark).encode() == line), None)

        return OutputDirectory(
            "/srv/out", storage=storage, kind="bin", extension="bin", sink=SINK, writer='"w"',
            incarnation=INCARNATION, shared=False, read_mark=read_mark,
        )  # fmt: skip

    def check(self, state: CrashState) -> None:
        """Recovery, as the coordinator does it; the COMMIT record is elsewhere, and durable."""
        _, epoch, handles = max(entry for entry in self.committed if entry[0] <= state.changes)
        finished = max(entry[1] for entry in self.finished if entry[0] <= state.changes)
        storage = state.storage()
        for _ in range(2):
            output = self.directory(storage)
            output.check(self.token(epoch))
            if finished < epoch:
                output.prepare()
                output.publish(handles)
            output.discard_after(epoch)
        found = {name: data for name, data in storage.contents().items() if data is not None}
        assert found == {f"/srv/out/{name}": data for name, (of, data) in self.files.items() if of <= epoch}


def output_directory(storage: SimulatedStorage) -> Callable[[CrashState], None]:
    return Output(storage).check


SHARES = [(log_of_ids, 3), (window_with_runs, 10), (output_directory, 3)]
"""Of the crash states asked for: a window takes long to check."""


@pytest.mark.parametrize(("workload", "share"), SHARES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_every_crash_state(
    workload: Callable[[SimulatedStorage], Callable[[CrashState], None]],
    share: int,
    sector_bytes: int,
    crash_state_count: int,
    generator: random.Random,
) -> None:
    storage = SimulatedStorage(sector_bytes=sector_bytes, record=True)
    none_of(explore(storage, workload(storage), crash_state_count // share, generator))


@pytest.mark.parametrize(
    ("workload", "path"),
    [
        (log_of_ids, "/ids"),
        (log_of_ids, "/ids/*.log"),
        (window_with_runs, "/srv/window"),
        (window_with_runs, "/srv/window/*.log"),
        (window_with_runs, "/srv/window/*.ids*"),
        (output_directory, "/srv"),
        (output_directory, "/srv/out"),
        (output_directory, "/srv/out/p=*"),
        (output_directory, "/srv/.out.staging-*"),
        (output_directory, "/srv/.out.staging-*/*"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_sync_that_is_left_out_is_found(
    workload: Callable[[SimulatedStorage], Callable[[CrashState], None]],
    path: str,
    crash_state_count: int,
    generator: random.Random,
) -> None:
    storage = SimulatedStorage(record=True, faults=[LyingSync(path=path, times=None)])
    check = workload(storage)
    assert storage.fired["lying sync"] > 0
    assert next(explore(storage, check, crash_state_count, generator), None) is not None
