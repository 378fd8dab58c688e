"""Reading a source: small reads travel together, in order, each with the offset behind it, and wait for no blocked
reader."""

import threading
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._runtime import reading
from engine._runtime.channel import open_channel
from engine._runtime.intake import Arrival
from engine._runtime.reading import SourceReading
from engine._runtime.worker import Workers
from engine.batch import Origin
from engine.errors import SourceError
from engine.source import Read


def numbers(start: int, stop: int) -> Read:
    rows = pa.RecordBatch.from_pydict({"n": pa.array(range(start, stop), pa.int64())})
    return Read(rows, Origin("numbers", "memory", start, stop), {"rows": stop})


class Reads:
    """A reader of given reads; ``None`` among them waits until ``release`` is set, an exception is raised."""

    def __init__(self, reads: Iterable[Read | Exception | None]) -> None:
        self.reads = iter(reads)
        self.release = threading.Event()
        self.closed = 0
        self.done = threading.Event()

    def read(self) -> Read | None:
        read = next(self.reads, "end")
        if read is None:
            self.release.wait()
            return self.read()
        if isinstance(read, Exception):
            raise read
        return None if read == "end" else read

    def close(self) -> None:
        self.closed += 1
        self.done.set()


async def arrivals_of(
    reader: Reads, *, epoch_bytes: int | None = None, when_first: Any = lambda: None
) -> list[Arrival]:
    """What comes out of the channel; ``when_first`` is called at the first arrival."""
    send, receive = open_channel(max_rows=1 << 30, max_bytes=1 << 40)
    found: list[Arrival] = []

    async def read(workers: Workers) -> None:
        async with send:
            thread = workers.dedicated("reader")
            await SourceReading("numbers", reader, thread, send, None, epoch_bytes=epoch_bytes).run()

    async with Workers(threads=1) as workers, trio.open_nursery() as nursery:
        nursery.start_soon(read, workers)
        async for arrival in receive:
            if not found:
                when_first()
            found.append(arrival)
    return found


def cut(sizes: Iterable[int]) -> list[Read]:
    reads, start = [], 0
    for size in sizes:
        reads.append(numbers(start, start + size))
        start += size
    return reads


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 7, 1_000, 20_000, 40_000, 65_536]), max_size=12))
def test_all_rows_in_order_each_batch_with_the_offset_behind_it(sizes: list[int]) -> None:
    reader = Reads(cut(sizes))
    found = trio.run(arrivals_of, reader)
    stop = 0
    for arrival in found:
        rows = arrival.batch.rows
        assert rows["n"].to_pylist() == list(range(stop, stop + rows.num_rows))
        assert (arrival.batch.origin.start, arrival.batch.origin.stop) == (stop, stop + rows.num_rows)
        stop += rows.num_rows
        assert arrival.offset == {"rows": stop}
    assert stop == sum(sizes)
    assert reader.closed == 1


def test_small_reads_travel_together_and_large_ones_uncopied() -> None:
    small = trio.run(arrivals_of, Reads(cut([100] * 1_000)))
    assert sum(arrival.batch.row_count for arrival in small) == 100_000
    # A thread that the system held up for LINGER_S sends what it has: seldom, so that the mean stays large.
    assert len(small) < 50
    large = cut([65_536, 65_536])
    found = trio.run(arrivals_of, Reads(large))
    assert [id(arrival.batch.rows) for arrival in found] == [id(read.rows) for read in large]


def test_rows_do_not_wait_for_a_reader_that_blocks() -> None:
    reader = Reads([numbers(0, 3), numbers(3, 5), None, numbers(5, 6)])
    # The reader goes on only when the rows before have come out: without the linger this would never end.
    with_release = trio.run(lambda: arrivals_of(reader, when_first=reader.release.set))
    assert sum(arrival.batch.row_count for arrival in with_release) == 6
    assert len(with_release) >= 2


@pytest.mark.parametrize(("epoch_bytes", "reads_together"), [(1, 1), (800 * 10, 9)])
def test_no_more_bytes_than_an_epoch(epoch_bytes: int, reads_together: int) -> None:
    found = trio.run(lambda: arrivals_of(Reads(cut([100] * 40)), epoch_bytes=epoch_bytes))
    assert max(arrival.batch.row_count for arrival in found) <= 100 * (reads_together + 1)
    assert sum(arrival.batch.row_count for arrival in found) == 4_000


def test_dictionaries_that_do_not_fit_together_travel_apart() -> None:
    def words(start: int) -> Read:
        values = pa.array([f"word-{start + n}" for n in range(100)])
        column = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), values)
        rows = pa.RecordBatch.from_arrays([column], ["word"])
        return Read(rows, Origin("words", "memory", start, start + 100), {"rows": start + 100})

    found = trio.run(arrivals_of, Reads([words(0), words(100), words(200)]))
    assert [arrival.offset["rows"] for arrival in found] == [100, 200, 300]
    assert found[2].batch.rows["word"].to_pylist()[-1] == "word-299"


def test_a_failing_reader_is_named_and_closed() -> None:
    reader = Reads([numbers(0, 3), OSError("the cable is out")])
    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(arrivals_of, reader)
    assert caught.group_contains(SourceError, match="numbers: reading failed: OSError: the cable is out")
    assert reader.closed >= 1


def test_cancelled_it_leaves_a_blocked_read_behind() -> None:
    after = numbers(2, 3)
    reader = Reads([numbers(0, 1), None, numbers(1, 2), after])

    async def cancelled() -> None:
        with trio.CancelScope() as scope:
            await arrivals_of(reader, when_first=scope.cancel)
        assert scope.cancelled_caught
        assert reader.closed == 0  # it belongs to the thread that still reads
        reader.release.set()
        assert reader.done.wait(10)

    trio.run(cancelled)
    assert reader.closed == 1
    assert next(reader.reads, "end") == after  # nothing is read that nobody waits for


def test_a_narrow_batch_before_wide_ones() -> None:
    def text(size: int, count: int, start: int) -> Read:
        rows = pa.RecordBatch.from_pydict({"text": ["x" * size] * count})
        return Read(rows, Origin("texts", "memory", start, start + count), {"rows": start + count})

    reads = [text(1, 1, 0), *(text(1 << 20, 1, 1 + n) for n in range(40))]
    found = trio.run(arrivals_of, Reads(reads))
    assert max(arrival.batch.size_bytes for arrival in found) <= reading.TRAVEL_BYTES + (2 << 20)
    assert sum(arrival.batch.row_count for arrival in found) == 41


def test_slices_of_one_table_count_by_their_rows() -> None:
    whole = pa.RecordBatch.from_pydict({"n": pa.array(range(1_000_000), pa.int64())})
    reads = [
        Read(whole.slice(start, 100), Origin("n", "memory", start, start + 100), {"rows": start + 100})
        for start in range(0, 60_000, 100)
    ]
    assert len(trio.run(arrivals_of, Reads(reads))) < 30


def test_empty_batches_without_end_come_back() -> None:
    found = trio.run(arrivals_of, Reads(cut([0] * 10_000)))
    assert sum(arrival.batch.row_count for arrival in found) == 0


def test_the_bounds_are_what_the_head_of_the_file_says() -> None:
    assert reading.TRAVEL_ROWS == 65_536
