"""The pool: alignment, padding, recycling, the bound on idle bytes, and its use from many threads at once."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core import pool

LARGE = 1 << 20
DEFAULT_LIMIT = 128 << 20


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    pool.trim()
    yield
    pool.set_limit(DEFAULT_LIMIT)
    pool.trim()


def address(buffer: pool.Buffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@given(st.integers(1, 1 << 21))
def test_buffers_are_aligned_padded_and_writable(size: int) -> None:
    buffer = pool.Buffer(size)
    start = address(buffer)
    assert start % 64 == 0
    assert len(buffer) == buffer.nbytes == memoryview(buffer).nbytes == size
    ctypes.memset(start, 0xAB, size + 64)
    assert bytes(buffer) == b"\xab" * size
    assert not buffer.readonly


def test_an_empty_buffer_is_a_buffer() -> None:
    assert bytes(pool.Buffer(0)) == b""


def test_a_released_block_is_handed_out_again() -> None:
    buffer = pool.Buffer(LARGE)
    first = address(buffer)
    before = pool.statistics()
    del buffer
    assert pool.statistics()["idle_bytes"] == LARGE
    again = pool.Buffer(LARGE - 1000)
    after = pool.statistics()
    assert address(again) == first
    assert after["hits"] == before["hits"] + 1
    assert after["misses"] == before["misses"]
    assert after["idle_bytes"] == 0


def test_in_use_bytes_rise_and_fall() -> None:
    before = pool.statistics()["in_use_bytes"]
    buffers = [pool.Buffer(LARGE), pool.Buffer(100)]
    assert pool.statistics()["in_use_bytes"] == before + LARGE + 100
    buffers.clear()
    assert pool.statistics()["in_use_bytes"] == before


def test_a_block_wastes_at_most_a_quarter() -> None:
    for size in range(LARGE, 2 * LARGE, 77_777):
        before = pool.statistics()["in_use_bytes"]
        buffer = pool.Buffer(size)
        taken = pool.statistics()["in_use_bytes"] - before
        assert size <= taken <= size * 1.25
        del buffer


def test_idle_bytes_never_exceed_the_limit_and_the_oldest_leave() -> None:
    pool.set_limit(3 * LARGE)
    buffers = [pool.Buffer(LARGE) for _ in range(4)]
    addresses = [address(buffer) for buffer in buffers]
    while buffers:
        buffers.pop(0)
        assert pool.statistics()["idle_bytes"] <= 3 * LARGE
    kept = [pool.Buffer(LARGE) for _ in range(3)]
    assert {address(buffer) for buffer in kept} == set(addresses[1:])


def test_blocks_of_a_size_that_nobody_wants_any_more_leave() -> None:
    pool.set_limit(4 * LARGE)
    old = [pool.Buffer(LARGE) for _ in range(4)]
    old.clear()
    new = [pool.Buffer(2 * LARGE) for _ in range(2)]
    new.clear()
    before = pool.statistics()["hits"]
    again = [pool.Buffer(2 * LARGE) for _ in range(2)]
    assert pool.statistics()["hits"] == before + len(again)


def test_lowering_the_limit_and_trim_give_memory_back() -> None:
    buffers = [pool.Buffer(LARGE) for _ in range(4)]
    buffers.clear()
    pool.set_limit(2 * LARGE)
    assert pool.statistics()["idle_bytes"] == 2 * LARGE
    assert pool.trim() == 2 * LARGE
    assert pool.statistics()["idle_bytes"] == 0
    pool.set_limit(0)
    pool.Buffer(LARGE)
    assert pool.statistics()["idle_bytes"] == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 18)), max_size=60))
def test_any_order_of_use_keeps_the_books(steps: list[tuple[bool, int]]) -> None:
    pool.trim()
    pool.set_limit(1 << 19)
    start = pool.statistics()["in_use_bytes"]
    alive: list[tuple[pool.Buffer, bytes]] = []
    for take, size in steps:
        if take or not alive:
            mark = bytes([len(alive) + 1]) * size
            buffer = pool.Buffer(size)
            memoryview(buffer)[:] = mark
            alive.append((buffer, mark))
        else:
            alive.pop(size % len(alive))
        now = pool.statistics()
        assert now["idle_bytes"] <= 1 << 19
        assert now["in_use_bytes"] - start >= sum(len(mark) for _, mark in alive)
        assert all(bytes(buffer) == mark for buffer, mark in alive)
    alive = []
    buffer = pool.Buffer(0)
    assert pool.statistics()["in_use_bytes"] == start


def test_threads_share_it() -> None:
    before = pool.statistics()["in_use_bytes"]
    failures: list[int] = []

    def use(mark: int) -> None:
        for round_ in range(200):
            buffer = pool.Buffer((16 << 10) + (round_ % 7) * 4096)
            view = memoryview(buffer)
            view[:] = bytes([mark]) * len(view)
            if bytes(view) != bytes([mark]) * len(view):
                failures.append(mark)
            view.release()

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pool.statistics()["in_use_bytes"] == before


@pytest.mark.parametrize("size", [-1, -(1 << 40)])
def test_a_negative_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        pool.Buffer(size)
    with pytest.raises(ValueError, match="negative"):
        pool.set_limit(size)


def test_memory_that_does_not_exist_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no memory for a buffer"):
        pool.Buffer(1 << 60)


def test_a_child_of_a_fork_does_not_find_it_locked() -> None:
    """Forks while another thread takes thousands of blocks out of the pool, which keeps it locked."""
    blocks, forks, begins = 8_000, 10, threading.Barrier(2)

    def trim_again_and_again() -> None:
        for _ in range(forks):
            held = [pool.Buffer(16 << 10) for _ in range(blocks)]
            held.clear()
            begins.wait()
            pool.trim()

    thread = threading.Thread(target=trim_again_and_again, daemon=True)
    thread.start()
    for _ in range(forks):
        begins.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            pool.Buffer(LARGE)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


@pytest.mark.parametrize("size", [32 * LARGE, 64 * LARGE])
def test_a_fresh_block_is_filled_at_once(size: int) -> None:
    if not _fills_at_once():
        return  # this system fills pages as they are touched
    buffer = pool.Buffer(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ctypes.memset(address(buffer), 1, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < size // mmap.PAGESIZE // 4


def _fills_at_once() -> bool:
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        try:
            pages.madvise(23)  # MADV_POPULATE_WRITE
        except (OSError, AttributeError):
            return False
    return True
