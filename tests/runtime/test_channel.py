"""Channels: credit by rows and bytes, order, control, fairness, cancellation, both ways of closing, statistics."""

import random
from collections import deque

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine._runtime.channel import open_channel


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


async def test_items_come_out_in_order():
    send, receive = open_channel(10, 1000)
    for number in range(5):
        await send.send(number, rows=2, size_bytes=1)
    send.close()
    assert [item async for item in receive] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("rows", "size_bytes"), [(4, 1), (1, 40)])
async def test_waits_when_full_by_rows_or_by_bytes(rows, size_bytes):
    send, receive = open_channel(10, 100)
    for number in range(2):
        await send.send(number, rows=rows, size_bytes=size_bytes)
    if rows == 1:
        assert receive.statistics().rows == 2
    async with trio.open_nursery() as nursery:

        async def third() -> None:
            await send.send(2, rows=rows, size_bytes=size_bytes)

        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        assert receive.statistics().tasks_waiting_to_send == 1
        with pytest.raises(trio.WouldBlock):
            send.send_nowait(3, rows=0, size_bytes=0)  # not even this overtakes
        assert await receive.receive() == 0
        await wait_all_tasks_blocked()
        assert receive.statistics().tasks_waiting_to_send == 0
    assert [receive.receive_nowait(), receive.receive_nowait()] == [1, 2]


async def test_exactly_full_is_not_over():
    send, receive = open_channel(10, 100)
    send.send_nowait("a", rows=5, size_bytes=50)
    send.send_nowait("b", rows=5, size_bytes=50)
    with pytest.raises(trio.WouldBlock):
        send.send_nowait("c", rows=1, size_bytes=0)
    assert receive.statistics().rows == 10


async def test_an_item_larger_than_the_channel_passes_alone():
    send, receive = open_channel(10, 100)
    send.send_nowait("small", rows=1, size_bytes=1)
    with pytest.raises(trio.WouldBlock):
        send.send_nowait("large", rows=500, size_bytes=5000)
    assert receive.receive_nowait() == "small"
    send.send_nowait("large", rows=500, size_bytes=5000)
    with pytest.raises(trio.WouldBlock):
        send.send_nowait("next", rows=1, size_bytes=1)
    assert receive.receive_nowait() == "large"
    assert receive.statistics().peak_rows == 500


async def test_control_needs_no_credit_and_keeps_its_place():
    send, receive = open_channel(1, 1)
    await send.send("item", rows=1, size_bytes=1)
    for number in range(100):
        send.send_control(number)
    assert await receive.receive() == "item"
    assert [await receive.receive() for _ in range(100)] == list(range(100))
    assert receive.statistics().controls_sent == 100


async def test_control_goes_straight_to_a_waiting_receiver():
    send, receive = open_channel(1, 1)
    received = []
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            received.append(await receive.receive())

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        assert receive.statistics().tasks_waiting_to_receive == 1
        send.send_control("barrier")
    assert received == ["barrier"]


async def test_senders_are_served_in_the_order_in_which_they_came():
    send, receive = open_channel(10, 1000)
    await send.send("first", rows=10, size_bytes=1)
    async with trio.open_nursery() as nursery:
        for name, rows in (("large", 8), ("small", 1), ("medium", 5)):

            async def waiting(name: str = name, rows: int = rows) -> None:
                await send.send(name, rows=rows, size_bytes=1)

            nursery.start_soon(waiting)
            await wait_all_tasks_blocked()
        assert [await receive.receive() for _ in range(4)] == ["first", "large", "small", "medium"]


async def test_a_cancelled_send_is_not_sent_and_lets_the_next_one_in():
    send, receive = open_channel(10, 1000)
    await send.send("first", rows=5, size_bytes=1)
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:

        async def large() -> None:
            with scope:
                await send.send("large", rows=8, size_bytes=1)

        async def small() -> None:
            await send.send("small", rows=5, size_bytes=1)

        nursery.start_soon(large)
        await wait_all_tasks_blocked()
        nursery.start_soon(small)
        await wait_all_tasks_blocked()
        assert receive.statistics().tasks_waiting_to_send == 2
        scope.cancel()
        await wait_all_tasks_blocked()
        assert receive.statistics().tasks_waiting_to_send == 0
    send.close()
    assert [item async for item in receive] == ["first", "small"]


async def test_a_cancelled_receive_takes_nothing():
    send, receive = open_channel(10, 1000)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def take() -> None:
            with scope:
                await receive.receive()

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        await send.send("kept", rows=1, size_bytes=1)
    assert await receive.receive() == "kept"


async def test_already_cancelled_does_nothing():
    send, receive = open_channel(10, 1000)
    with trio.CancelScope() as scope:
        scope.cancel()
        await send.send("never", rows=1, size_bytes=1)
    assert scope.cancelled_caught
    send.send_nowait("kept", rows=1, size_bytes=1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive.receive()
    assert receive.receive_nowait() == "kept"


async def test_the_end_comes_after_all_senders_and_all_items():
    send, receive = open_channel(10, 1000)
    other = send.clone()
    await send.send("a", rows=1, size_bytes=1)
    send.close()
    await other.send("b", rows=1, size_bytes=1)
    assert [await receive.receive(), await receive.receive()] == ["a", "b"]
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()
    async with trio.open_nursery() as nursery:

        async def wait_for_the_end() -> None:
            with pytest.raises(trio.EndOfChannel):
                await receive.receive()

        nursery.start_soon(wait_for_the_end)
        await wait_all_tasks_blocked()
        await other.aclose()
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()
    for closed in (send, other):
        closed.close()
        with pytest.raises(trio.ClosedResourceError):
            await closed.send("late", rows=1, size_bytes=1)
        with pytest.raises(trio.ClosedResourceError):
            closed.send_control("late")
        with pytest.raises(trio.ClosedResourceError):
            closed.clone()


async def test_senders_learn_that_the_receiver_is_gone():
    send, receive = open_channel(1, 1)
    await send.send("first", rows=1, size_bytes=1)
    async with trio.open_nursery() as nursery:

        async def blocked() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await send.send("second", rows=1, size_bytes=1)

        nursery.start_soon(blocked)
        await wait_all_tasks_blocked()
        await receive.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await send.send("third", rows=1, size_bytes=1)
    with pytest.raises(trio.BrokenResourceError):
        send.send_control("barrier")
    with pytest.raises(trio.ClosedResourceError):
        await receive.receive()
    assert receive.statistics().items == receive.statistics().rows == receive.statistics().size_bytes == 0


async def test_closing_an_end_wakes_those_who_wait_on_it():
    send, receive = open_channel(1, 1)
    other = send.clone()
    await send.send("first", rows=1, size_bytes=1)
    async with trio.open_nursery() as nursery:

        async def send_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await send.send("second", rows=1, size_bytes=1)

        async def send_open() -> None:
            await other.send("third", rows=1, size_bytes=1)

        nursery.start_soon(send_closed)
        await wait_all_tasks_blocked()
        nursery.start_soon(send_open)
        await wait_all_tasks_blocked()
        send.close()
        assert [await receive.receive(), await receive.receive()] == ["first", "third"]

        async def receive_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await receive.receive()

        nursery.start_soon(receive_closed)
        await wait_all_tasks_blocked()
        receive.close()


async def test_ends_close_with_their_block():
    send, receive = open_channel(1, 1)
    with send:
        pass
    async with receive:
        with pytest.raises(trio.EndOfChannel):
            await receive.receive()
    with pytest.raises(trio.ClosedResourceError):
        receive.receive_nowait()


async def test_statistics_count_what_passed_and_who_waited(clock):
    send, receive = open_channel(10, 100)
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            assert await receive.receive() == "a"

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        clock.jump(3)
        assert receive.statistics().receive_blocked_s == pytest.approx(3)
        await send.send("a", rows=1, size_bytes=10)
    await send.send("b", rows=9, size_bytes=20)
    send.send_control("c")
    async with trio.open_nursery() as nursery:

        async def blocked() -> None:
            await send.send("d", rows=2, size_bytes=30)

        nursery.start_soon(blocked)
        await wait_all_tasks_blocked()
        clock.jump(5)
        now = send.statistics()
        assert (now.items, now.rows, now.size_bytes) == (2, 9, 20)
        assert (now.items_sent, now.rows_sent, now.bytes_sent, now.controls_sent) == (2, 10, 30, 1)
        assert now.send_blocked_s == pytest.approx(5)
        assert receive.receive_nowait() == "b"
    now = send.statistics()
    assert (now.items, now.rows, now.size_bytes, now.peak_rows, now.peak_bytes) == (2, 2, 30, 9, 30)
    assert (now.items_sent, now.rows_sent, now.bytes_sent) == (3, 12, 60)
    assert (now.send_blocked_s, now.receive_blocked_s) == (pytest.approx(5), pytest.approx(3))
    with pytest.raises(AttributeError):
        now.rows = 0


async def test_refuses_senseless_numbers():
    for limits in ((0, 1), (1, 0)):
        with pytest.raises(ValueError):
            open_channel(*limits)
    send, _ = open_channel(1, 1)
    for rows, size_bytes in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError):
            await send.send("x", rows=rows, size_bytes=size_bytes)


@pytest.mark.parametrize("seed", range(20))
async def test_random_traffic_keeps_the_limits_and_loses_nothing(seed):
    """Several senders, some cancelled at random moments, against one receiver and a model of what was sent."""
    random_ = random.Random(seed)
    send, receive = open_channel(20, 200)
    sent: dict[int, deque[int]] = {}
    received: dict[int, list[int]] = {}

    async def sender(name: int, end) -> None:
        sent[name] = deque()
        with end:
            for number in range(40):
                with trio.CancelScope() as scope:
                    if random_.random() < 0.2:
                        scope.cancel()
                    if random_.random() < 0.2:
                        end.send_control((name, number))
                    else:
                        rows = random_.choice([0, 1, 5, 15, 30])
                        await end.send((name, number), rows=rows, size_bytes=random_.randrange(150))
                    sent[name].append(number)
                for _ in range(random_.randrange(3)):
                    await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for name in range(4):
            nursery.start_soon(sender, name, send.clone())
        send.close()
        async for name, number in receive:
            received.setdefault(name, []).append(number)
            now = receive.statistics()
            assert now.rows <= 30
            assert now.size_bytes <= 200
            assert not (now.items and now.tasks_waiting_to_receive)
            for _ in range(random_.randrange(3)):
                await trio.lowlevel.checkpoint()
    assert received == {name: list(numbers) for name, numbers in sent.items()}
