"""Uses at the edge: forked children, a lock that was deleted, threads that commit, a kill amid retention."""

import os
import signal
import threading

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import LogError
from engine.log.verification import verify
from engine.storage import File, Storage


def rows(count: int = 50) -> pa.Table:
    return pa.table({"n": list(range(count))})


class Stubborn(Storage):
    """Refuses to remove segments."""

    refuses = True

    def unlink(self, path: str) -> None:
        if self.refuses and path.endswith(".seg"):
            raise OSError(5, "refused", path)
        super().unlink(path)


@pytest.mark.parametrize("killed", [False, True])
def test_segments_below_the_floor_go_before_they_make_a_gap(tmp_path, killed):
    storage = Stubborn()
    limits = {"segment_bytes": 2_000, "retain_bytes": 8_000}
    log = Log(tmp_path / "log", storage=storage, **limits)
    with pytest.raises(LogError, match="could not be removed"):
        [log.append(rows()) for _ in range(40)]
    storage.refuses = False
    if killed:
        log.close()
        log = Log(tmp_path / "log", **limits)
        assert log.start() > 0
    for _ in range(40):
        log.append(rows())
    assert sum(batch.num_rows for batch in log.read(log.start())) == log.end() - log.start()
    assert all(found.damage is None for found in verify(log, Storage()))
    log.close()


def test_threads_commit_side_by_side(tmp_path):
    with Log(tmp_path / "log", partitions=6, sync=False) as log:
        for partition in range(6):
            log.append(rows(), partition=partition)

        def commit(partition: int) -> None:
            for offset in range(1, 31):
                log.groups["g"].commit(offset, partition=partition)

        threads = [threading.Thread(target=commit, args=(partition,)) for partition in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.groups["g"].offsets() == (30,) * 6


@pytest.mark.parametrize("name", ["é", "x~", "%ff", ".DS_Store", "%4"])
def test_files_that_are_no_groups_are_left_alone(tmp_path, name):
    with Log(tmp_path / "log") as log:
        log.append(rows())
        log.groups["g"].commit(3)
        (tmp_path / "log" / "groups" / name).touch()
        assert list(log.groups) == ["g"]
        assert log.groups.lowest(0) == 3


def test_a_forked_child_is_refused_and_never_hangs(tmp_path):
    log = Log(tmp_path / "log")
    log.append(rows())
    with log._writers[0]._joining, log._writers[0]._turn:  # as where another thread appends while the process forks
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # a child that hangs is killed
            refused = 0
            for call in (lambda: log.append(rows()), lambda: next(log.tail()), lambda: log.end(), log.roll):
                try:
                    call()
                except LogError:
                    refused += 1
            log.close()
            os._exit(refused)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 4
    assert log.append(rows()) == 100
    log.close()


def test_a_lock_that_was_deleted_ends_the_appends_of_its_writer(tmp_path):
    log = Log(tmp_path / "log")
    log.append(rows())
    (tmp_path / "log" / "LOCK").unlink()
    with Log(tmp_path / "log") as other:
        other.append(rows())
        with pytest.raises(LogError, match="another writer"):
            log.append(rows())
        log.close()
        assert other.append(rows()) == 150
    with Log(tmp_path / "log", write=False) as beside:
        assert sum(batch.num_rows for batch in beside.read()) == 150


class Interrupting(Storage):
    """Ctrl-C comes within the ``nth`` call that touches a segment."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def interrupt(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def create(self, path: str, *, mode: int = 0o600) -> File:
        self.interrupt()
        file = super().create(path, mode=mode)
        for name in ("append", "sync"):
            setattr(file, name, self.interrupting(getattr(file, name)))
        return file

    def rename(self, source: str, target: str) -> None:
        self.interrupt()
        super().rename(source, target)

    def interrupting(self, call):
        def interrupted(*buffers):
            self.interrupt()
            return call(*buffers)

        return interrupted


def test_ctrl_c_within_an_append_waits_for_its_end(tmp_path):
    fired = 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for nth in range(1, 200):
            storage = Interrupting(10**9)
            log = Log(tmp_path / str(nth), pa.schema({"n": pa.int64()}), segment_bytes=300, storage=storage)
            storage.left = nth
            for number in range(4):
                try:
                    log.append(pa.record_batch({"n": [number]}))
                except KeyboardInterrupt:
                    fired += 1
            assert [n for batch in log.read() for n in batch.column("n").to_pylist()] == [0, 1, 2, 3]
            ended = storage.left > 0
            storage.left = 10**9
            log.close()
            if ended:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    assert fired == nth - 1 > 15


def test_what_an_attempt_left_does_not_stop_the_next(tmp_path):
    log = Log(tmp_path / "log")
    (tmp_path / "log" / "partition-00000" / f"{0:020}-{0:010}.seg.tmp").touch()
    assert log.append(rows()) == 50
    log.close()
