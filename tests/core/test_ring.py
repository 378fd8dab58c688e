"""The ring: a model, two threads, sleep without lost wake-ups, owned references, full, empty and wrapped around."""

import gc
import sys
import threading
import weakref
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.ring import Ring, WakeFlag, benchmark_handover, benchmark_round_trip, stress_sleep

LAST_INDEX = 2**64 - 1


class Item:
    """Something that can be referred to weakly."""


@given(
    capacity=st.integers(1, 9),
    first_index=st.sampled_from([0, 1, 2**32 - 2, LAST_INDEX - 3, LAST_INDEX]),
    steps=st.lists(st.sampled_from(["push", "push", "pop", "pop_all", "pop_wait"]), max_size=60),
)
def test_equals_a_deque(capacity, first_index, steps):
    ring: Ring[int] = Ring(capacity, first_index=first_index)
    assert ring.capacity in (capacity, *range(capacity, 2 * capacity))
    assert ring.capacity & (ring.capacity - 1) == 0
    model: deque[int] = deque()
    for number, step in enumerate(steps):
        if step == "push":
            assert ring.push(number) == (len(model) < ring.capacity)
            if len(model) < ring.capacity:
                model.append(number)
        elif step == "pop_all":
            assert ring.pop_all() == list(model)
            model.clear()
        elif model:
            assert (ring.pop() if step == "pop" else ring.pop_wait(0)) == model.popleft()
        else:
            with pytest.raises(IndexError if step == "pop" else TimeoutError):
                ring.pop() if step == "pop" else ring.pop_wait(0)
        assert len(ring) == len(model)


@pytest.mark.parametrize("first_index", [0, LAST_INDEX - 1])
def test_full_then_empty_then_full_again(first_index):
    ring: Ring[int] = Ring(4, first_index=first_index)
    for start in (0, 10):
        assert [ring.push(start + at) for at in range(5)] == [True] * 4 + [False]
        assert [ring.pop() for _ in range(4)] == [start, start + 1, start + 2, start + 3]
        with pytest.raises(IndexError):
            ring.pop()
        assert ring.pop_all() == []


@pytest.mark.parametrize("capacity", [0, -1, 2**32 + 1])
def test_refuses_a_capacity_out_of_range(capacity):
    with pytest.raises((ValueError, OverflowError)):
        Ring(capacity)


@pytest.mark.parametrize("timeout_s", [-1, float("nan")])
def test_refuses_a_time_limit_that_is_none(timeout_s):
    with pytest.raises(ValueError):
        Ring(1).pop_wait(timeout_s)


@pytest.mark.parametrize(
    "take", [lambda ring: ring.pop(), lambda ring: ring.pop_all()[0], lambda ring: ring.pop_wait()]
)
def test_moves_one_reference(take):
    ring: Ring[Item] = Ring(2)
    item = Item()
    before = sys.getrefcount(item)
    for _ in range(10):
        assert ring.push(item)
        assert sys.getrefcount(item) == before + 1
        assert take(ring) is item
        assert sys.getrefcount(item) == before
    ring.push(item)
    ring.push(item)
    assert not ring.push(item)
    assert sys.getrefcount(item) == before + 2


def test_keeps_what_it_holds_alive_and_frees_it_with_itself():
    ring: Ring[Item] = Ring(4)
    item = Item()
    watched = weakref.ref(item)
    ring.push(item)
    del item
    gc.collect()
    assert watched() is not None
    del ring
    gc.collect()
    assert watched() is None


def test_pop_wait_keeps_nothing_alive_after_the_last_reference():
    ring: Ring[Item] = Ring(4)
    ring.push(Item())
    watched = weakref.ref(ring.pop_wait())
    assert watched() is None


def in_thread(target) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def _frequent_switches():
    """Threads take turns every few bytecodes: more interleavings, and no waiting for the other's turn to end."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("batched", [False, True])
def test_two_threads_lose_nothing_and_keep_the_order(batched):
    count = 100_000
    ring: Ring[int] = Ring(256, first_index=LAST_INDEX - 1000)
    received: list[int] = []

    def consume() -> None:
        while len(received) < count:
            received.append(ring.pop_wait())
            if batched:
                received.extend(ring.pop_all())

    consumer = in_thread(consume)
    for number in range(count):
        while not ring.push(number):
            ring.wake()
    ring.wake()
    consumer.join(60)
    assert received == list(range(count))


def test_a_sleeper_is_woken_for_every_item():
    """Each side sleeps on each item: one lost wake-up, and the exchange stands still."""
    there: Ring[int] = Ring(1)
    back: Ring[int] = Ring(1)

    def answer() -> None:
        while True:
            try:
                number = there.pop_wait()
            except EOFError:
                return
            back.push(number)
            back.wake()

    thread = in_thread(answer)
    for number in range(5_000):
        there.push(number)
        there.wake()
        assert back.pop_wait(30) == number
    there.close()
    thread.join(30)
    assert not thread.is_alive()


def test_sleeps_without_the_gil():
    ring: Ring[int] = Ring(1)
    received: list[int] = []
    thread = in_thread(lambda: received.append(ring.pop_wait(60)))
    gc.collect()  # this thread goes on
    ring.push(7)
    ring.wake()
    thread.join(30)
    assert received == [7]


def test_close_wakes_the_sleeper_and_leaves_the_rest():
    ring: Ring[int] = Ring(4)
    outcome: list[type[BaseException]] = []

    def consume() -> None:
        try:
            ring.pop_wait()
        except EOFError as error:
            outcome.append(type(error))

    thread = in_thread(consume)
    ring.close()
    thread.join(30)
    assert outcome == [EOFError]

    rest: Ring[int] = Ring(4)
    rest.push(1)
    rest.close()
    rest.close()
    assert rest.closed
    with pytest.raises(ValueError):
        rest.push(2)
    assert rest.pop_wait() == 1
    with pytest.raises(EOFError):
        rest.pop_wait()


def test_time_limit():
    ring: Ring[int] = Ring(1)
    with pytest.raises(TimeoutError):
        ring.pop_wait(0.001)
    ring.push(1)
    assert ring.pop_wait(0.001) == 1


def test_flag_tells_one_producer_to_wake():
    flag = WakeFlag()
    assert not flag.take()
    flag.arm()
    assert flag.take()
    assert not flag.take()
    flag.arm()
    flag.disarm()
    assert not flag.take()


def test_flag_is_taken_once_for_each_time_it_is_armed():
    """Producers race for the flag; as many win as it was armed, or armings are lost or doubled."""
    flag = WakeFlag()
    wins: list[int] = []
    ended = threading.Event()

    def produce() -> None:
        won = 0
        while not ended.is_set():
            won += flag.take()
        wins.append(won)

    threads = [in_thread(produce) for _ in range(3)]
    armed = 200
    for _ in range(armed):
        flag.arm()
        wins.append(flag.take())  # or a producer was faster
    ended.set()
    for thread in threads:
        thread.join(30)
    assert sum(wins) == armed


@pytest.mark.parametrize(("batch", "capacity"), [(1, 1024), (32, 1024), (7, 8), (1, 1)])
def test_native_threads_hand_over_in_order(batch, capacity):
    assert benchmark_handover(2_000_000 if capacity > 8 else 20_000, batch, capacity=capacity) > 0


def test_native_threads_send_and_answer():
    assert benchmark_round_trip(20_000) > 0


@pytest.mark.parametrize(("batch", "capacity", "seed"), [(1, 1, 1), (1, 2, 2), (32, 8, 3), (32, 64, 4), (1, 64, 5)])
def test_native_threads_lose_no_wake_up(batch, capacity, seed):
    count = 30_000 * batch
    trial = stress_sleep(count, batch=batch, capacity=capacity, seed=seed, limit_s=20)
    assert trial["seen"] == count
    assert 0 < trial["sleeps"] <= trial["wakes"] + 1  # the close wakes too


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"capacity": 0}, {"pause_every": 0}, {"pause_every": 3}])
def test_refuses_a_trial_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        stress_sleep(1, **wrong)
