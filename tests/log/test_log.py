"""The log as its users see it: what was appended is read back, in any partition, process and order of closing."""

import multiprocessing
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Log
from engine.errors import CorruptLog, InputError, LogError, PipelineError
from engine.storage import File, Storage


def rows(start: int, count: int) -> pa.RecordBatch:
    numbers = list(range(start, start + count))
    return pa.record_batch(
        {"n": pa.array(numbers, pa.int64()), "text": pa.array([f"row {n}" for n in numbers], pa.string())}
    )


def numbers(batches) -> list[int]:
    return [n for batch in batches for n in batch.column("n").to_pylist()]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 40), st.integers(0, 2)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("roll"), st.just(0), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 120), st.integers(0, 120)),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(STEPS, st.sampled_from([400, 5_000, 1 << 20]), st.sampled_from([None, "lz4", "zstd"]))
def test_the_log_is_a_list_of_rows(tmp_path_factory, steps, segment_bytes, compression):
    path = tmp_path_factory.mktemp("log")
    options = {"segment_bytes": segment_bytes, "compression": compression}
    model: list[list[int]] = [[], [], []]
    log = Log(path, partitions=3, **options)
    for step, first, second in steps:
        if step == "append":
            count = len(model[second])
            assert log.append(rows(count, first), partition=second) == count + first
            model[second] += range(count, count + first)
        elif step == "reopen":
            log.close()
            log = Log(path, **options)
            assert log.torn == ()
        elif step == "roll":
            log.roll()
        else:
            for partition, expected in enumerate(model):
                found = numbers(log.read(min(first, len(expected)), second, partition=partition))
                assert found == expected[first:second]
    with Log(path, write=False) as beside:
        for partition, expected in enumerate(model):
            assert beside.end(partition=partition) == len(expected)
            assert numbers(beside.read(partition=partition)) == expected
    log.close()


def test_batches_come_back_as_they_were_with_all_types(tmp_path):
    table = pa.table(
        {
            "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "view": pa.array(["x" * 20, None, "", "é"], pa.string_view()),
            "bytes": pa.array([b"\0", None, b"", b"zz"], pa.binary_view()),
            "list": pa.array([[1, 2], None, [], [3]]),
            "struct": pa.array([{"a": 1}, None, {"a": None}, {"a": 4}]),
            "nothing": pa.nulls(4),
            "decimal": pa.array([1, None, 3, 4], pa.decimal128(20, 2)),
        }
    )
    with Log(tmp_path / "log", table.schema) as log:
        log.append(table)
        log.append(table.slice(1, 2))
        log.append(table.slice(0, 0))
        found = list(log.read())
    assert [batch.num_rows for batch in found] == [4, 2]
    assert pa.Table.from_batches(found).equals(pa.concat_tables([table, table.slice(1, 2)]))
    for batch in found:
        batch.validate(full=True)


@pytest.mark.parametrize("kind", ["dictionary", "dictionary of views", "string_view", "binary_view"])
def test_a_slice_does_not_drag_its_batch_along(tmp_path, kind):
    values = pa.array([f"a long text of more than twelve bytes, number {n}" for n in range(20_000)])
    column = {
        "dictionary": values.dictionary_encode(),
        "dictionary of views": values.cast(pa.string_view()).dictionary_encode(),
        "string_view": values.cast(pa.string_view()),
        "binary_view": values.cast(pa.binary()).cast(pa.binary_view()),
    }[kind]
    batch = pa.record_batch({"column": column})
    with Log(tmp_path / "log") as log:
        log.append(batch.slice(700, 2))
        [found] = log.read()
    assert found.column(0).to_pylist() == column.slice(700, 2).to_pylist()
    assert sum(path.stat().st_size for path in Path(tmp_path).rglob("*.seg")) < 3_000


def test_other_rows_than_the_first_are_refused_and_nothing_is_appended(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(rows(0, 2))
        for wrong in (pa.table({"n": [1]}), pa.table({"n": ["a"], "text": ["b"]})):
            with pytest.raises(InputError, match=r"another schema(.|\n)*expected n: int64, text: string"):
                log.append(wrong)
        with pytest.raises(InputError, match="list gives no rows: rows of Arrow are needed"):
            log.append([1, 2])
        assert log.end() == 2
    with pytest.raises(InputError, match="another schema"):
        Log(tmp_path / "log", pa.schema([("other", pa.int8())]))
    with Log(tmp_path / "log", rows(0, 0).schema) as log:
        assert log.schema.names == ["n", "text"]


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(PipelineError, match="compression"):
        Log(tmp_path / "log", compression="zip")
    with pytest.raises(PipelineError, match="partitions"):
        Log(tmp_path / "log", partitions=0)
    with pytest.raises(LogError, match="is no log"):
        Log(tmp_path / "nothing", write=False)
    with Log(tmp_path / "log", partitions=2) as log:
        with pytest.raises(LogError, match="no partition 2; it has 2"):
            log.append(rows(0, 1), partition=2)
        with pytest.raises(LogError, match="offsets begin at 0"):
            list(log.read(-1))
    with pytest.raises(LogError, match="has 2 partitions, not 3"):
        Log(tmp_path / "log", partitions=3)
    with pytest.raises(LogError, match="closed"):
        log.append(rows(0, 1))


def test_one_writer_and_any_number_of_readers(tmp_path):
    with Log(tmp_path / "log") as log:
        with pytest.raises(LogError, match=r"being written by pid \d+"):
            Log(tmp_path / "log")
        with Log(tmp_path / "log", write=False) as beside:
            log.append(rows(0, 5))
            assert numbers(beside.read()) == [0, 1, 2, 3, 4]
            with pytest.raises(LogError, match="write=False"):
                beside.append(rows(0, 1))


def test_writers_share_a_sync(tmp_path):
    class Counting(Storage):
        syncs = 0

        def create(self, path: str, *, mode: int = 0o600) -> File:
            file = super().create(path, mode=mode)
            sync = file.sync

            def counted() -> None:
                self.syncs += 1
                sync()

            file.sync = counted  # type: ignore[method-assign]
            return file

    storage = Counting()
    with Log(tmp_path / "log", storage=storage) as log:

        def write(worker: int) -> None:
            for step in range(20):
                offset = log.append(rows(worker * 100 + step, 1))
                assert log.end() >= offset

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = numbers(log.read())
    assert sorted(found) == sorted(worker * 100 + step for worker in range(16) for step in range(20))
    for worker in range(16):
        own = [n for n in found if n // 100 == worker]
        assert own == sorted(own)
    assert storage.syncs < 320


def test_from_a_time_to_a_time(tmp_path, monkeypatch):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    monkeypatch.setattr("engine.log.partition.wall_clock", lambda: now)
    with Log(tmp_path / "log", segment_bytes=2_000) as log:
        for hour in range(40):
            now = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hour)
            log.append(rows(hour, 1))
        assert len(list(tmp_path.rglob("*.seg"))) > 5
        for first, last in ((0, 40), (7, 8), (13, 31), (39, 60), (-5, 3)):
            begin, end = (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in (first, last))
            assert numbers(log.read(begin, end)) == list(range(max(0, first), min(40, last)))
        now = datetime(2020, 1, 1, tzinfo=UTC)  # a clock that goes back changes no order
        log.append(rows(40, 1))
        assert numbers(log.read(datetime(2026, 3, 2, 15, tzinfo=UTC))) == [39, 40]


def test_tail_gives_what_is_there_and_what_comes(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(rows(0, 3))
        tail = log.tail(1)
        assert numbers([next(tail)]) == [1, 2]
        appended = threading.Thread(target=lambda: log.append(rows(3, 2)))
        appended.start()
        assert numbers([next(tail)]) == [3, 4]
        appended.join()
        with Log(tmp_path / "log", write=False) as beside:
            assert numbers([next(beside.tail(4))]) == [4]
        threading.Timer(0.01, log.close).start()
        assert list(tail) == []


def test_under_trio(tmp_path):
    async def main() -> list[int]:
        found: list[int] = []
        with Log(tmp_path / "log") as log:
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    async for batch in log.tail_async(0):
                        found.extend(batch.column("n").to_pylist())
                        if len(found) == 30:
                            nursery.cancel_scope.cancel()

                nursery.start_soon(follow)
                for start in range(0, 30, 10):
                    assert await log.append_async(rows(start, 10)) == start + 10
                await trio.sleep_forever()
            assert [batch.num_rows async for batch in log.read_async(5)] == [5, 10, 10]
        return found

    assert trio.run(main) == list(range(30))


def test_groups_remember_and_hold_back_retention(tmp_path):
    with Log(tmp_path / "log", partitions=2, segment_bytes=1_000, retain_bytes=8_000) as log:
        group = log.groups["billing/ä ö"]
        group.commit(0)
        for start in range(0, 12, 2):
            log.append(rows(start, 2))
        assert (group.offsets(), list(log.groups), "billing/ä ö" in log.groups) == ((0, 0), ["billing/ä ö"], True)
        group.commit(7)
        group.commit(3)
        assert log.groups["billing/ä ö"].offsets() == (7, 0)
        group.rewind(2)
        assert group.offsets() == (2, 0)
        group.commit(8)
        with pytest.raises(LogError, match="no partition 2; the log has 2"):
            group.commit(5, partition=2)
        with pytest.raises(LogError, match="offset 13 of partition 0 is not in 0 to 12"):
            group.commit(13)
        for start in range(12, 60, 2):
            group.commit(log.append(rows(start, 2)) - 4)
        assert 0 < log.start() <= group.offsets()[0]
        assert numbers(log.read(log.start())) == list(range(log.start(), 60))
        with pytest.raises(LogError, match="row 0 is gone"):
            list(log.read())
        group.delete()
        group.delete()
        assert len(log.groups) == 0
    with Log(tmp_path / "log") as log:
        assert numbers(log.read(log.start())) == list(range(log.start(), 60))


def test_append_waits_for_the_group_that_holds_everything_back(tmp_path):
    waits = threading.Semaphore(0)

    class Watched(Storage):
        def pause(self, seconds: float) -> None:
            waits.release()
            super().pause(0.001)

    with Log(tmp_path / "log", segment_bytes=1_000, retain_bytes=4_000, storage=Watched()) as log:
        group = log.groups["slow"]
        group.commit(0)
        written: list[int] = []

        def write() -> None:
            for start in range(0, 40, 2):
                end = log.append(rows(start, 2))
                written.append(end)

        thread = threading.Thread(target=write)
        thread.start()
        waits.acquire()
        while thread.is_alive():
            waits.acquire(timeout=0.01)
            group.commit(written[-1] if written else 0)
            thread.join(0.001)
        assert written[-1] == 40
        assert log.start() > 0


def test_rows_that_are_too_old_go(tmp_path, monkeypatch):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    for module in ("partition", "retention"):
        monkeypatch.setattr(f"engine.log.{module}.wall_clock", lambda: now)
    with Log(tmp_path / "log", segment_bytes=1_000, retain_age_s=3_600) as log:
        for start in range(0, 20, 2):
            log.append(rows(start, 2))
            now += timedelta(minutes=20)
        log.append(rows(20, 1))
        assert 8 <= log.start() <= 16
        assert numbers(log.read(log.start())) == list(range(log.start(), 21))


def _append_in_child(path: Path, seed: int, ready) -> None:
    with Log(path) as log:
        chance = random.Random(seed)
        ready.set()
        while True:
            log.append(rows(log.end(), chance.randrange(1, 50)))


def test_a_killed_writer_leaves_what_it_acknowledged(tmp_path):
    context = multiprocessing.get_context("spawn")
    path, ends = tmp_path / "log", [0]
    for seed in range(3):
        ready = context.Event()
        child = context.Process(target=_append_in_child, args=(path, seed, ready))
        child.start()
        ready.wait()
        with Log(path, write=False) as beside:
            tail = beside.tail(ends[-1])
            for _ in range(20):
                ends.append(ends[-1] + next(tail).num_rows)
        child.kill()
        child.join()
        assert child.exitcode == -9
        with Log(path) as log:
            assert log.end() >= ends[-1]
            assert numbers(log.read()) == list(range(log.end()))
            ends.append(log.end())


def test_a_lost_description_is_damage(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(rows(0, 1))
    (tmp_path / "log" / "LOG").unlink()
    with pytest.raises(CorruptLog, match="LOG is gone"):
        Log(tmp_path / "log")
