"""Logs that change while they are used: replaced by others, moved out of sight, shortened by retention, full."""

import os
import shutil

import pyarrow as pa
import pytest
import trio
import trio.testing

from engine import Log
from engine.errors import CorruptLog, InputError, LogError
from engine.storage import Storage


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"n": list(range(start, stop))})


def numbers(log: Log) -> list[int]:
    return [n for batch in log.read(log.start()) for n in batch.column("n").to_pylist()]


@pytest.mark.parametrize("asked", [False, True])
def test_a_reader_does_not_take_another_log_for_the_one_it_opened(tmp_path, asked):
    with Log(tmp_path / "log") as log:
        log.append(rows(0, 10))
    reader = Log(tmp_path / "log", write=False)
    if asked:
        assert reader.end() == 10
    begun = reader.read()
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(LogError, match="the log that was opened is gone"):
        reader.end()
    with Log(tmp_path / "log") as log:
        log.append(rows(100, 120))
    for use in (reader.end, lambda: next(begun), lambda: next(reader.read()), lambda: reader.groups["g"].commit(5)):
        with pytest.raises(LogError, match="the log that was opened is gone"):
            use()


def test_a_read_that_has_begun_ends_where_another_log_begins(tmp_path):
    with Log(tmp_path / "log", segment_bytes=1) as log:
        for start in range(3):
            log.append(rows(start, start + 1))
    with Log(tmp_path / "log", write=False) as reader:
        begun = reader.read()
        assert next(begun).column("n").to_pylist() == [0]
        shutil.rmtree(tmp_path / "log")
        with Log(tmp_path / "log", segment_bytes=1) as log:
            for start in range(3):
                log.append(rows(start, start + 1))
        with pytest.raises(LogError, match="belongs to another log than the one that was opened"):
            list(begun)


def test_a_relative_path_is_that_of_the_moment(tmp_path, monkeypatch):
    for name, start in (("a", 0), ("b", 100)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with Log("log") as log:
            log.append(rows(start, start + 10))
    monkeypatch.chdir(tmp_path / "a")
    with Log("log", write=False) as reader:
        monkeypatch.chdir(tmp_path / "b")
        assert numbers(reader) == list(range(10))
        reader.groups["g"].commit(5)
    assert list(Log(tmp_path / "a" / "log", write=False).groups) == ["g"]
    assert list(Log(tmp_path / "b" / "log", write=False).groups) == []
    monkeypatch.chdir(tmp_path / "a")
    with Log("log") as writer:
        monkeypatch.chdir(tmp_path / "b")
        assert writer.append(rows(10, 12)) == 12


class Meanwhile(Storage):
    """Somebody does something between the look at the floor and the list of the segments, so many times."""

    def __init__(self, act, times: int) -> None:
        self.act = act
        self.times = times

    def list(self, path: str) -> list[str]:
        if "partition-" in path and self.times:
            self.times -= 1
            self.act()
        return super().list(path)


def test_retention_that_goes_on_while_a_reader_opens_is_no_damage(tmp_path):
    with Log(tmp_path / "log", segment_bytes=400, retain_bytes=2_000) as log:

        def act() -> None:
            for _ in range(20):
                log.append(rows(0, 10))

        act()
        storage = Meanwhile(act, times=3)
        with Log(tmp_path / "log", write=False, storage=storage) as reader:
            assert log.start() > 0
            assert reader.end() == log.end()
        assert storage.times == 0
    [oldest, *_] = sorted((tmp_path / "log" / "partition-00000").glob("*.seg"))
    oldest.unlink()
    with pytest.raises(CorruptLog, match="before it is missing"):
        Log(tmp_path / "log", write=False).end()


def test_a_partition_that_is_gone_is_damage(tmp_path):
    with Log(tmp_path / "log", partitions=2) as log:
        log.append(rows(0, 10), partition=1)
    os.rename(tmp_path / "log" / "partition-00001", tmp_path / "elsewhere")
    for write in (False, True):
        with pytest.raises(CorruptLog, match="partition-00001 is gone, and its rows with it"):
            Log(tmp_path / "log", write=write)
    os.rename(tmp_path / "elsewhere", tmp_path / "log" / "partition-00001")
    with Log(tmp_path / "log") as log:
        assert log.end(partition=1) == 10


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


def filled(path) -> Log:
    """A log that has no room until its group goes on."""
    log = Log(path, retain_bytes=20_000)
    log.groups["slow"].commit(0)
    while log._append_if_room(rows(0, 500).to_batches(), 0) is not None:
        pass
    return log


async def test_waiting_for_room_can_be_cancelled(tmp_path, clock):
    with filled(tmp_path / "log") as log:
        end = log.end()
        with trio.move_on_after(60) as waiting:
            await log.append_async(rows(0, 500))
        assert waiting.cancelled_caught
        assert log.end() == end
        log.groups["slow"].commit(end)
        assert await log.append_async(rows(0, 500)) == end + 500


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_stream_that_had_to_wait_for_room_is_appended_whole(tmp_path, clock, monkeypatch, blocking):
    with filled(tmp_path / "log") as log:
        end, refused, attempt = log.end(), [], log._append_if_room

        def make_room_when_refused(batches, partition):
            stop = attempt(batches, partition)
            if stop is None:
                refused.append(partition)
                log.groups["slow"].commit(end)
            return stop

        monkeypatch.setattr(log, "_append_if_room", make_room_when_refused)
        stream = rows(0, 500).to_reader()
        stop = log.append(stream) if blocking else await log.append_async(stream)
        assert (stop, refused) == (end + 500, [0])


def test_a_name_is_not_cut_at_a_zero_byte(tmp_path):
    table = pa.table({"a\0b": [1]})
    with Log(tmp_path / "log") as log:
        log.append(table)
        log.append(table.to_batches()[0])
        assert [batch.schema.names for batch in log.read()] == [["a\0b"]] * 2


@pytest.mark.parametrize("error", [RuntimeError("theirs"), KeyError("theirs"), OSError("theirs")])
def test_rows_that_cannot_be_had_are_an_error_of_the_input(tmp_path, error):
    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise error

    with Log(tmp_path / "log") as log:
        with pytest.raises(InputError, match=r"Broken gives no rows: .*theirs"):
            log.append(Broken())
        assert log.append(rows(0, 3)) == 3
