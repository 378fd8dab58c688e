"""The exchange against a plain model: rows reach their partition whole and in order, in large pieces, and wait for
others only so long. Virtual time and no threads."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine import Pipeline, sinks, sources
from engine._core.partition import Partitioner
from engine._runtime import exchange
from engine._runtime.channel import open_channel
from engine._runtime.exchange import HELD_ROWS, LINGER_S, Exchange
from engine.batch import Batch, Origin
from engine.errors import StageError
from engine.progress import Barrier

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64())])


def batch(start: int, stop: int, *, keys: int = 7, without: int | None = None) -> Batch:
    """Rows numbered from ``start``; every ``without``-th is no longer wanted."""
    rows = pa.RecordBatch.from_pydict(
        {"key": [f"key-{n % keys}" for n in range(start, stop)], "n": range(start, stop)}, schema=SCHEMA
    )
    whole = Batch(rows, Origin("numbers", "memory", start, stop))
    if without is None:
        return whole
    selection = bytes(n % without != 0 for n in range(start, stop))
    return whole.narrowed(selection, sum(selection))


def wanted(items: list[Batch | Barrier | float]) -> list[tuple[str, int]]:
    gathered = [item.gathered().rows for item in items if isinstance(item, Batch)]
    return [(key, n) for rows in gathered for key, n in zip(*rows.to_pydict().values(), strict=True)]


async def inline(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


async def exchanged(
    items: list[Batch | Barrier | float], partitions: int, memory_bytes: int = 1 << 30
) -> list[list[tuple[float, Batch | Barrier]]]:
    """What each lane receives, with the time; a number among ``items`` is a pause in seconds."""
    send, receive = open_channel(max_rows=1 << 30, max_bytes=1 << 40)
    lanes = [open_channel(max_rows=1 << 30, max_bytes=1 << 40) for _ in range(partitions)]
    found: list[list[tuple[float, Batch | Barrier]]] = [[] for _ in lanes]

    async def feed() -> None:
        async with send:
            for item in items:
                if isinstance(item, Barrier):
                    send.send_control(item)
                elif isinstance(item, Batch):
                    await send.send(item, rows=item.row_count, size_bytes=item.size_bytes)
                else:
                    await trio.sleep(item)

    async def collect(lane: int) -> None:
        async for item in lanes[lane][1]:
            found[lane].append((trio.current_time(), item))

    cutting = Exchange([0], [lane[0] for lane in lanes], inline, name="key_by key", memory_bytes=memory_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        nursery.start_soon(cutting.run, receive)
        for lane in range(partitions):
            nursery.start_soon(collect, lane)
    return found


def run(*args: Any) -> list[list[tuple[float, Batch | Barrier]]]:
    return trio.run(exchanged, *args, clock=trio.testing.MockClock(autojump_threshold=0))


ITEMS = st.one_of(
    st.builds(lambda size, without: (size, without), st.integers(0, 3_000), st.sampled_from([None, 1, 2, 5])),
    st.just("barrier"),
    st.sampled_from([0.001, LINGER_S * 2]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEMS, max_size=12), st.sampled_from([1, 3, 8, 64]), st.sampled_from([1, 50_000, 1 << 30]))
def test_every_row_in_its_partition_in_order_before_its_barrier(
    shapes: list[Any], partitions: int, memory: int
) -> None:
    items: list[Batch | Barrier | float] = []
    start = epoch = 0
    for shape in shapes:
        if shape == "barrier":
            epoch += 1
            items.append(Barrier(epoch))
        elif isinstance(shape, float):
            items.append(shape)
        elif shape[0]:
            items.append(batch(start, start + shape[0], without=shape[1]))
            start += shape[0]
    lanes = run(items, partitions, memory)
    partitioner = engine.HashPartitioner("key", partitions=partitions)
    for partition, received in enumerate(lanes):
        expected: list[Any] = []
        for item in items:
            if isinstance(item, Barrier):
                expected.append(item.epoch)
            elif isinstance(item, Batch):
                expected += zip(
                    *partitioner.partition(item.gathered().rows)[partition].to_pydict().values(), strict=True
                )
        assert _flat([item for _, item in received]) == expected


def _flat(items: list[Batch | Barrier]) -> list[Any]:
    flat: list[Any] = []
    for item in items:
        flat += [item.epoch] if isinstance(item, Barrier) else wanted([item])
    return flat


def test_small_batches_leave_in_one_piece() -> None:
    lanes = run([batch(start, start + 100) for start in range(0, 10_000, 100)], 4)
    assert [len(received) for received in lanes if received] == [1] * sum(bool(received) for received in lanes)


def test_a_batch_waits_no_longer_than_the_linger() -> None:
    ((first, second),) = run([batch(0, 10), LINGER_S * 10, batch(10, 20), LINGER_S * 10], 1)
    assert first[0] == pytest.approx(LINGER_S, abs=LINGER_S / 10)
    assert second[0] == pytest.approx(LINGER_S * 11, abs=LINGER_S / 10)


def test_a_trickle_does_not_put_it_off() -> None:
    trickle = [each for n in range(40) for each in (batch(n, n + 1), LINGER_S / 4)]
    (received,) = run(trickle, 1)
    assert 8 <= len(received) <= 12


def test_bounds_in_rows_and_in_bytes() -> None:
    large = [batch(start, start + 50_000) for start in range(0, 1_000_000, 50_000)]
    (received,) = run(large, 1)
    assert len(received) == 20  # one batch is enough for one partition
    lanes = run(large, 64)
    assert all(len(received) == 2 for received in lanes if received)
    assert HELD_ROWS == 524_288
    lanes = run(large, 64, 60_000 * 16)
    assert all(len(received) >= 10 for received in lanes if received)


def test_texts_that_do_not_fit_into_one_column_are_split_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "GROUP_BYTES", 3 * batch(0, 1_000).size_bytes)
    (received,) = run([batch(start, start + 1_000) for start in range(0, 9_000, 1_000)], 1)
    assert [item.row_count for _, item in received if isinstance(item, Batch)] == [3_000, 3_000, 3_000]


def test_dictionaries_that_do_not_fit_together_still_arrive() -> None:
    def words(start: int) -> Batch:
        values = pa.array([f"word-{start + n}" for n in range(100)])
        column = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), values)
        return Batch(pa.RecordBatch.from_arrays([column], ["key"]), Origin("words", "memory", start, start + 100))

    (received,) = run([words(start) for start in range(0, 500, 100)], 1)
    found = [word for _, item in received for word in item.rows["key"].to_pylist()]
    assert found == [f"word-{n}" for n in range(500)]


@pytest.mark.parametrize("error", [MemoryError("std::bad_alloc"), NotImplementedError("no such type")])
def test_what_cannot_be_split_is_an_error_of_the_stage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*args: Any) -> Any:
        raise error

    class Failing(Partitioner):
        partition_all = failing

    monkeypatch.setattr(exchange, "Partitioner", Failing)
    rows = batch(0, 10).rows
    pipeline = Pipeline("split").read(sources.memory(rows, id="rows")).key_by("key", partitions=2)
    with pytest.raises(
        StageError, match=f"key_by key failed: {type(error).__name__}: {error}\n  .*rows 0-10"
    ) as raised:
        engine.run(pipeline.write(sinks.call(lambda rows, token: None)))
    assert raised.value.stage == "key_by key"
    assert raised.value.__cause__ is error
