"""The hand-off: how soon a sleeping loop gets what a thread posts, and what a completion costs when it never sleeps."""

import os
import threading
import time

import pytest
import trio

from engine._runtime import handoff as handoff_module
from engine._runtime.handoff import Handoff

CAPACITY = 4_096


class CountingBell:
    """The engine's own bell; `writes` are the system calls by which threads woke the loop."""

    def __init__(self):
        self.writes = 0
        self._bell = handoff_module._open_bell()
        self.fileno, self.hush, self.close = self._bell.fileno, self._bell.hush, self._bell.close

    def ring(self):
        self.writes += 1
        self._bell.ring()


class CountedHandoff(Handoff):
    """A hand-off whose bell counts."""

    async def __aenter__(self):
        self.bell = self._bell = CountingBell()
        trio.lowlevel.spawn_system_task(self._serve, self._bell)
        return self


async def wake_latencies_ns(wakes):
    """From just before `post` in a thread to `deliver` in the loop, which slept; and how often the bell was written."""
    latencies_ns = []
    ended = trio.Event()

    def deliver(posted_ns):
        latencies_ns.append(time.perf_counter_ns() - posted_ns)
        if len(latencies_ns) == wakes:
            ended.set()

    async with CountedHandoff() as handoff:
        port = handoff.open_port(wakes, deliver)

        def post():
            for _ in range(wakes):
                time.sleep(0.0005)  # the loop goes to sleep
                port.post(time.perf_counter_ns())

        thread = threading.Thread(target=post)
        thread.start()
        await ended.wait()
        thread.join()
        return latencies_ns, handoff.bell.writes


async def saturated(completions):
    """Seconds for completions that a thread posts as fast as the loop takes them, and how often the bell was written.

    The loop always has something to do: another task that is never idle.
    """
    delivered = 0
    ended = trio.Event()

    def deliver(_):
        nonlocal delivered
        delivered += 1
        if delivered % (CAPACITY // 2) == 0:
            port.send(CAPACITY // 2)
        if delivered == completions:
            ended.set()

    async def busy():
        while not ended.is_set():
            await trio.lowlevel.checkpoint()

    def post():
        credit = CAPACITY
        for number in range(completions):
            if credit == 0:
                credit = port.receive()
            credit -= 1
            port.post(number)

    async with CountedHandoff() as handoff, trio.open_nursery() as nursery:
        port = handoff.open_port(CAPACITY, deliver)
        nursery.start_soon(busy)
        await trio.lowlevel.checkpoint()
        thread = threading.Thread(target=post)
        before, began_s = handoff.bell.writes, time.perf_counter()
        thread.start()
        await ended.wait()
        took_s = time.perf_counter() - began_s
        thread.join()
        assert delivered == completions
        return took_s, handoff.bell.writes - before


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="sockets are slower; the figures are those of an eventfd")
def bench_wake_of_an_idle_loop(rows, lines):
    wakes = min(rows // 100, 5_000)
    latencies_ns, writes = trio.run(wake_latencies_ns, wakes)
    latencies_ns.sort()
    p50, p99 = (latencies_ns[int(wakes * part)] / 1e3 for part in (0.5, 0.99))
    lines.append(f"hand-off, idle loop, {wakes:,} wakes: p50 {p50:.1f} µs, p99 {p99:.1f} µs, {writes:,} writes")
    assert writes <= wakes


def bench_saturated_loop(rows, lines):
    completions = rows * 5
    took_s, writes = trio.run(saturated, completions)
    each_ns = took_s * 1e9 / completions
    lines.append(f"hand-off, saturated, {completions:,} completions: {each_ns:,.0f} ns each, {writes:,} writes")
    assert writes * 1_000 <= completions, "a loop that is awake costs no system call"
