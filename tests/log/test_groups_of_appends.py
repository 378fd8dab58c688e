"""Appends that wait for one another: one sync serves them all, and one that cannot be written fails no other one."""

import errno
import threading
from collections import deque

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import LogError
from engine.storage import File, Storage

WAITING = 6
LIMIT_BYTES = 8_000
"""More than the small appends together have, and less than the big one."""


class Gated(Storage):
    """Syncs wait at a gate, once it is closed; a call writes no more than some bytes."""

    def __init__(self) -> None:
        self.syncs = self.refused = 0
        self.arrived, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def create(self, path: str, *, mode: int = 0o600) -> File:
        file = super().create(path, mode=mode)
        sync, write = file.sync, file._pwritev

        def gated() -> None:
            self.syncs += 1
            self.arrived.set()
            assert self.gate.wait(60)
            sync()

        def limited(buffers, offset: int) -> int:
            if sum(buffer.nbytes for buffer in buffers) > LIMIT_BYTES:
                self.refused += 1
                raise OSError(errno.ENOSPC, "no room")
            return write(buffers, offset)

        file.sync, file._pwritev = gated, limited  # type: ignore[method-assign]
        return file


class Line(deque):
    """Tells when so many wait in it."""

    def __init__(self) -> None:
        super().__init__()
        self.full = threading.Event()

    def append(self, waiting) -> None:
        super().append(waiting)
        if len(self) == WAITING:
            self.full.set()


def rows(start: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": range(start, start + count)})


@pytest.mark.parametrize("big", [False, True])
def test_those_who_wait_are_one_group(tmp_path, big):
    storage, outcomes = Gated(), {}
    with Log(tmp_path / "log", storage=storage) as log:
        log.append(rows(0, 1))
        line = log._writers[0]._line = Line()
        before = storage.syncs
        storage.arrived.clear()
        storage.gate.clear()

        def append(number: int, count: int) -> None:
            try:
                outcomes[number] = log.append(rows(number * 10_000, count))
            except LogError as error:
                outcomes[number] = error

        counts = [1, 1, 2_000 if big else 1, 1, 1, 1]
        threads = [threading.Thread(target=append, args=item) for item in enumerate(counts, start=1)]
        threads[0].start()
        assert storage.arrived.wait(60)
        for thread in threads[1:]:
            thread.start()
        assert line.full.wait(60)
        storage.gate.set()
        for thread in threads:
            thread.join(60)
        assert not line
        assert storage.syncs == before + 2  # that of the first one, and one for all the others
        found = [n for batch in log.read() for n in batch.column("n").to_pylist()]
    refused = {number for number, outcome in outcomes.items() if isinstance(outcome, LogError)}
    assert refused == ({3} if big else set())
    assert storage.refused == (2 if big else 0)  # the whole group, and then the big one alone
    assert sorted(found) == [0, *(number * 10_000 for number in range(1, 7) if number not in refused)]
    assert sorted(stop for number, stop in outcomes.items() if number not in refused) == list(range(2, len(found) + 1))
