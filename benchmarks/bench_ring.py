"""The ring: hand-over between two threads, beside the queues of the standard library."""

import queue
import threading
from collections import deque

import pytest
from contest import Contender

from engine._core.ring import Ring, benchmark_handover, benchmark_round_trip


@pytest.mark.parametrize("batch", [1, 32])
def bench_two_native_threads(contest, rows, batch):
    """Checks order and completeness by itself; one core makes it a test of the scheduler."""
    items = rows * 5
    run = Contender("engine", lambda: benchmark_handover(items, batch), lambda each_ns: each_ns > 0)
    contest.hold(f"ring, native threads, by {batch}", [run], items=items, expected=True, unit="item")


def bench_round_trip(contest, rows):
    """From one native thread to another and back, both spinning: the latency of the ring without any sleep."""
    trips = rows // 2
    run = Contender("engine", lambda: benchmark_round_trip(trips), lambda each_ns: each_ns > 0)
    contest.hold("ring, native threads, there and back", [run], items=trips, expected=True, unit="trip")


def handed_over(put, get, items):
    """Objects from a thread to this one; whether they came in order."""
    work = list(range(items))

    def produce():
        for item in work:
            put(item)

    thread = threading.Thread(target=produce)
    thread.start()
    received = []
    while len(received) < items:
        received += get()
    thread.join()
    return received == work


def ring_contender(items):
    def run():
        ring = Ring(1_024)
        full = threading.Event()

        def put(item):
            while not ring.push(item):
                ring.wake()
                full.wait(0.0001)
            ring.wake()

        return handed_over(put, lambda: [ring.pop_wait(), *ring.pop_all()], items)

    return Contender("engine", run, bool)


def simple_queue_contender(items):
    def run():
        waiting = queue.SimpleQueue()
        return handed_over(waiting.put, lambda: [waiting.get()], items)

    return Contender("SimpleQueue", run, bool)


def bench_python_objects(contest, rows):
    items = min(rows, 200_000)
    contenders = [ring_contender(items), simple_queue_contender(items)]
    contest.hold("ring, objects, two threads", contenders, items=items, expected=True, unit="item")


def bench_one_thread(contest, rows):
    items = min(rows, 500_000)
    work = list(range(512))

    def through(put, get_all):
        count = 0
        for _ in range(items // 512):
            for item in work:
                put(item)
            count += len(get_all())
        return count

    def ring():
        both = Ring(512)
        return through(both.push, both.pop_all)

    def double_ended():
        both = deque(maxlen=512)

        def get_all():
            taken = list(both)
            both.clear()
            return taken

        return through(both.append, get_all)

    expected = items // 512 * 512
    contenders = [Contender("engine", ring, int), Contender("deque", double_ended, int)]
    contest.hold("ring, objects, one thread", contenders, items=expected, expected=expected, unit="item")
