"""Uses at the edge: forked children, a lock that was deleted, threads that commit, a kill amid retention."""

import os
import signal
import threading

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import LogError
from engine.log.verification import verify
from engine.storage import Storage


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
    with log._writers[0]._changed:  # as where another thread appends while the process forks
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


@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_at_any_time_leaves_a_log_that_goes_on(tmp_path):
    log = Log(tmp_path / "log", segment_bytes=3_000, sync=False)
    done, acknowledged = threading.Event(), []

    def interrupt() -> None:
        while not done.wait(0.003):
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    number = 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        interruptions = 0
        while interruptions < 150:
            try:
                number += 1
                acknowledged.append((number, log.append(pa.record_batch({"n": [number]}))))
            except KeyboardInterrupt:
                interruptions += 1
    finally:
        signal.signal(signal.SIGINT, lambda number, frame: None)
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    log.close()
    with Log(tmp_path / "log", write=False) as beside:
        found = [n for batch in beside.read() for n in batch.column("n").to_pylist()]
    assert found == sorted(set(found))
    assert all(found[end - 1] == number for number, end in acknowledged)


def test_what_an_attempt_left_does_not_stop_the_next(tmp_path):
    log = Log(tmp_path / "log")
    (tmp_path / "log" / "partition-00000" / f"{0:020}-{0:010}.seg.tmp").touch()
    assert log.append(rows()) == 50
    log.close()
