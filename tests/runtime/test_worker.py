"""Worker threads: results and errors, order by priority, cancellation, dedicated threads, the end, statistics."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import traceback
import weakref

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine._core.crc32c import crc32c
from engine._runtime.worker import Workers, usable_cores
from engine.errors import EngineError


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Gate:
    """A call that lasts until it is told to end."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, result: object = None) -> object:
        self.entered.set()
        assert self.opened.wait(30)
        return result

    async def wait_entered(self) -> None:
        assert await trio.to_thread.run_sync(self.entered.wait, 30)


async def test_returns_what_the_function_returns():
    async with Workers(2) as workers:
        assert await workers.run(divmod, 17, 5) == (3, 2)
        assert await workers.run(crc32c, b"123456789", priority=-3) == 0xE3069283
        assert await workers.run(threading.get_ident) != threading.get_ident()


class OddError(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("kind", [ValueError, OddError, SystemExit, KeyboardInterrupt, EOFError])
async def test_delivers_every_kind_of_error(kind):
    def fail() -> None:
        raise kind("why")

    async with Workers(1) as workers:
        for _ in range(3):
            with pytest.raises(kind, match="why") as caught:
                await workers.run(fail)
            assert [frame.name for frame in traceback.extract_tb(caught.tb)][-1] == "fail"
            assert "perform" not in [frame.name for frame in traceback.extract_tb(caught.tb)]
        with pytest.raises(TypeError):
            await workers.run(fail, "one argument too many")
        assert await workers.run(int) == 0


async def test_keeps_nothing_alive():
    class Rows:
        pass

    def give_back(rows: Rows) -> Rows:
        return rows

    def fail(rows: Rows) -> None:
        raise ValueError

    async with Workers(1) as workers:
        rows = Rows()
        freed = threading.Event()
        weakref.finalize(rows, freed.set)
        assert await workers.run(give_back, rows) is rows
        with contextlib.suppress(ValueError):
            await workers.run(fail, rows)
        del rows
        gc.collect()
        assert await trio.to_thread.run_sync(freed.wait, 10)  # the thread may be about to let go


async def test_many_calls_from_many_tasks():
    results = []

    async with Workers(3) as workers, trio.open_nursery() as nursery:

        async def one(start: int) -> None:
            results.extend([await workers.run(abs, -number) for number in range(start, start + 50)])

        for start in range(0, 2000, 50):
            nursery.start_soon(one, start)
    assert sorted(results) == list(range(2000))


async def test_runs_as_many_calls_at_once_as_there_are_threads():
    gates = [Gate() for _ in range(3)]
    async with Workers(3) as workers, trio.open_nursery() as nursery:
        for gate in gates:
            nursery.start_soon(workers.run, gate)
        for gate in gates:
            await gate.wait_entered()
        assert all(thread.busy for thread in workers.statistics().threads)
        for gate in gates:
            gate.opened.set()


async def test_waiting_calls_start_by_priority_then_by_age():
    gate, started = Gate(), []
    async with Workers(1) as workers, trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, gate)
        await wait_all_tasks_blocked()
        for name, priority in (("b1", 0), ("c1", 5), ("a1", -1), ("b2", 0), ("a2", -1), ("c2", 5)):
            nursery.start_soon(
                lambda name=name, priority=priority: workers.run(started.append, name, priority=priority)
            )
            await wait_all_tasks_blocked()
        assert workers.statistics().queued == 6
        gate.opened.set()
    assert started == ["a1", "a2", "b1", "b2", "c1", "c2"]


async def test_a_call_that_has_not_started_is_withdrawn():
    gate, ran = Gate(), []
    async with Workers(1) as workers, trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, gate)
        await gate.wait_entered()
        with trio.move_on_after(0) as scope:
            await workers.run(ran.append, 1)
        assert scope.cancelled_caught
        gate.opened.set()
        await workers.run(ran.append, 2)
        assert workers.statistics().withdrawn == 0  # the deadline had passed before: nothing was queued
    assert ran == [2]


async def learn_that_calls_are_short(workers: Workers) -> None:
    for _ in range(100):
        await workers.run(int)


@pytest.mark.parametrize("short_before", [False, True])
async def test_waiting_calls_are_withdrawn_wherever_they_wait(short_before):
    """In the queue, or, where calls have been short, already in the ring of a busy thread."""
    gate, ran = Gate(), []
    async with Workers(1) as workers:
        if short_before:
            await learn_that_calls_are_short(workers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, gate)
            await gate.wait_entered()
            async with trio.open_nursery() as waiting:
                for number in range(40):
                    waiting.start_soon(workers.run, ran.append, number)
                await wait_all_tasks_blocked()
                assert (workers.statistics().queued < 40) == short_before
                waiting.cancel_scope.cancel()
            assert workers.statistics().withdrawn == 40
            assert workers.statistics().queued == 0
            gate.opened.set()
            await workers.run(ran.append, "after")
    assert ran == ["after"]


async def test_short_calls_do_not_wait_behind_a_long_one_while_a_thread_is_idle():
    """Calls that were given to a thread ahead of time are taken back by the other thread."""
    long, other = Gate(), Gate()
    async with Workers(2) as workers:
        await learn_that_calls_are_short(workers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, long)
            nursery.start_soon(workers.run, other)
            await long.wait_entered()
            await other.wait_entered()
            results: list[int] = []
            async with trio.open_nursery() as short:
                for number in range(20):
                    short.start_soon(lambda number=number: workers.run(results.append, number))
                await wait_all_tasks_blocked()
                other.opened.set()  # all of them run on this thread
            assert sorted(results) == list(range(20))
            assert not long.opened.is_set()
            long.opened.set()


async def test_a_call_that_has_started_is_awaited_to_its_end():
    gate, events = Gate(), []
    async with Workers(1) as workers, trio.open_nursery() as nursery:

        async def cancelled() -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_and_open, scope)
                try:
                    await workers.run(gate)
                finally:
                    events.append("call ended")
            assert scope.cancelled_caught

        async def cancel_and_open(scope: trio.CancelScope) -> None:
            await gate.wait_entered()
            scope.cancel()
            await wait_all_tasks_blocked()
            events.append("opened")
            gate.opened.set()

        nursery.start_soon(cancelled)
    assert events == ["opened", "call ended"]


async def test_the_error_of_a_cancelled_call_is_not_lost():
    gate, errors = Gate(), []

    def fail() -> None:
        gate()
        raise ValueError("after all")

    async with Workers(1) as workers, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def cancelled() -> None:
            with scope:
                try:
                    await workers.run(fail)
                except ValueError as error:
                    errors.append(str(error))

        nursery.start_soon(cancelled)
        await gate.wait_entered()
        scope.cancel()
        await wait_all_tasks_blocked()
        gate.opened.set()
    assert errors == ["after all"]


async def test_a_stop_iteration_cannot_pass_through_a_coroutine():
    async with Workers(1) as workers:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await workers.run(next, iter([]))


async def test_a_dedicated_thread_is_one_thread_and_keeps_the_order():
    async with Workers(1) as workers:
        reader = workers.dedicated("reader")
        names, order = set(), []

        def note(number: int) -> None:
            names.add(threading.current_thread().name)
            order.append(number)

        async with trio.open_nursery() as nursery:
            gate = Gate()
            nursery.start_soon(reader.run, gate)
            await gate.wait_entered()
            for number in range(5):
                nursery.start_soon(reader.run, note, number)
                await wait_all_tasks_blocked()
            assert await workers.run(int) == 0  # the pool goes on
            gate.opened.set()
        assert names == {"reader"}
        assert order == [0, 1, 2, 3, 4]


async def test_an_abandoned_read_holds_up_nobody():
    gate = Gate()
    async with Workers(1) as workers:
        reader = workers.dedicated("reader")
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                await reader.run(gate, abandon_on_cancel=True)

            nursery.start_soon(read)
            await gate.wait_entered()
            nursery.cancel_scope.cancel()
        assert workers.statistics().abandoned == 1
        with trio.move_on_after(0.01) as scope:
            await reader.run(int)
        assert scope.cancelled_caught  # its thread is still busy
    gate.opened.set()  # the block was left before


async def test_a_dedicated_thread_serves_on_when_the_abandoned_call_returns():
    gate = Gate()
    async with Workers(1) as workers:
        reader = workers.dedicated("reader")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: reader.run(gate, "lost", abandon_on_cancel=True))
            await gate.wait_entered()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            gate_opened = trio.Event()

            async def next_read() -> None:
                assert await reader.run(abs, -3) == 3
                gate_opened.set()

            nursery.start_soon(next_read)
            await wait_all_tasks_blocked()
            assert not gate_opened.is_set()
            gate.opened.set()
            await gate_opened.wait()


def threads_named(prefix: str) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(prefix))


async def test_threads_have_names_and_end_with_the_block():
    async with Workers(2) as workers:
        workers.dedicated("engine-io")
        assert threads_named("engine-") == ["engine-io", "engine-worker-0", "engine-worker-1"]
    assert threads_named("engine-") == []
    with pytest.raises(ZeroDivisionError):
        async with Workers(2):
            raise ZeroDivisionError
    assert threads_named("engine-") == []


async def test_leaving_the_block_ends_waiting_calls_and_awaits_started_ones():
    gate, outcomes = Gate(), []
    async with trio.open_nursery() as nursery:
        async with Workers(1) as workers:

            async def started() -> None:
                outcomes.append(await workers.run(gate, "finished"))

            async def waiting() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await workers.run(outcomes.append, "never")
                gate.opened.set()

            nursery.start_soon(started)
            await gate.wait_entered()
            nursery.start_soon(waiting)
            await wait_all_tasks_blocked()
        assert threads_named("engine-worker") == []
    assert outcomes == ["finished"]
    with pytest.raises(trio.ClosedResourceError):
        await workers.run(int)


async def test_works_on_a_mock_clock(autojump_clock):
    async with Workers(2) as workers:
        assert await workers.run(sum, [1, 2, 3]) == 6
        await trio.sleep(1000)
        assert await workers.run(sum, [4, 5, 6]) == 15


async def test_statistics():
    async with Workers(1) as workers:
        reader = workers.dedicated("reader")
        for _ in range(3):
            await workers.run(crc32c, bytes(4_000_000))
        await reader.run(int)
        pool, dedicated = workers.statistics().threads
        assert (pool.name, pool.calls, pool.busy) == ("engine-worker-0", 3, False)
        assert (dedicated.name, dedicated.calls) == ("reader", 1)
        assert pool.busy_s > 0
        assert dedicated.busy_s >= 0
        with pytest.raises(AttributeError):
            pool.calls = 0
    assert workers.statistics().threads[0].cpu_s > 0  # as of its last idle moment, which is certain now


async def test_a_thread_that_the_system_refuses(monkeypatch):
    begin, begun = threading.Thread.start, []

    def refused_later(thread):
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refused_later)
    with pytest.raises(EngineError, match="engine-worker-2 cannot be started: can't start new thread"):
        async with Workers(4):
            pytest.fail("there are too few threads")
    assert len(begun) == 2
    assert not any(thread.is_alive() for thread in begun)


def test_refuses_no_threads_at_all():
    with pytest.raises(ValueError):
        Workers(0)
    assert Workers().threads == usable_cores() >= 1


def test_a_stuck_thread_does_not_hold_up_the_end_of_the_process():
    program = """
import threading, trio
from engine._runtime.worker import Workers

async def main():
    async with Workers(1) as workers:
        stuck = threading.Event()
        with trio.move_on_after(0.05):
            await workers.dedicated("reader").run(stuck.wait, abandon_on_cancel=True)
    raise SystemExit(7)

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")
