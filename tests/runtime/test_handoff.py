"""The hand-off: every completion once and in order, few wake-ups, and no write after the end."""

import os
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine._core.ring import WakeFlag
from engine._runtime import handoff as handoff_module
from engine._runtime.handoff import Handoff


class Echo:
    """A thread that posts back what it is sent."""

    def __init__(self, handoff: Handoff, capacity: int = 64) -> None:
        self.delivered: list[int] = []
        self.arrived = trio.Event()
        self.wanted = 0
        self.port = handoff.open_port(capacity, self._deliver)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                self.port.post(self.port.receive())
            except EOFError:
                return

    def _deliver(self, number: int) -> None:
        self.delivered.append(number)
        if len(self.delivered) >= self.wanted:
            self.arrived.set()

    async def wait_for(self, count: int) -> None:
        self.wanted, self.arrived = count, trio.Event()
        if len(self.delivered) < count:
            await self.arrived.wait()

    def end(self) -> None:
        self.port.end()
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.port.close()


@pytest.fixture(params=["event", "socket"])
def _every_bell(request, monkeypatch):
    if request.param == "socket" or not hasattr(os, "eventfd"):
        monkeypatch.setattr(handoff_module, "_open_bell", handoff_module._SocketBell)


@pytest.mark.usefixtures("_every_bell")
async def test_one_round_trip_after_the_other():
    async with Handoff() as handoff:
        echo = Echo(handoff)
        for number in range(300):
            echo.port.send(number)
            await echo.wait_for(number + 1)
        echo.end()
    assert echo.delivered == list(range(300))


@pytest.mark.usefixtures("_every_bell")
async def test_several_threads_lose_nothing():
    async with Handoff() as handoff:
        echoes = [Echo(handoff, capacity=128) for _ in range(4)]
        for start in range(0, 2000, 100):
            for echo in echoes:
                for number in range(start, start + 100):
                    echo.port.send(number)
            for echo in echoes:
                await echo.wait_for(start + 100)
        for echo in echoes:
            echo.end()
    assert [echo.delivered for echo in echoes] == [list(range(2000))] * 4


async def test_many_completions_need_one_wake_up():
    async with Handoff() as handoff:
        delivered: list[int] = []
        port = handoff.open_port(1000, delivered.append)
        await wait_all_tasks_blocked()
        for number in range(1000):
            port.post(number)
        await wait_all_tasks_blocked()
        assert delivered == list(range(1000))
        assert handoff.wakes == 1


async def test_a_completion_that_comes_just_before_the_loop_sleeps_is_seen():
    """The look between arming and sleeping is what sees it: its poster found the flag unarmed, and rang no bell."""
    async with Handoff() as handoff:
        arrived = trio.Event()
        port = handoff.open_port(1, lambda _: arrived.set())
        late = [port]

        class LateFlag(WakeFlag):
            def arm(self) -> None:
                while late:
                    late.pop().post("at the last moment")
                super().arm()

        handoff._flag = LateFlag()
        with trio.fail_after(20):
            await arrived.wait()
        assert handoff.wakes == 0


async def test_delivers_while_everything_is_cancelled():
    async with Handoff() as handoff:
        echo = Echo(handoff)
        with trio.CancelScope() as scope:
            scope.cancel()
            echo.port.send(1)
            with trio.CancelScope(shield=True):
                await echo.wait_for(1)
        echo.end()
    assert echo.delivered == [1]


async def test_delivery_may_open_and_close_ports():
    async with Handoff() as handoff:
        seen: list[str] = []
        arrived = trio.Event()

        def first(what: str) -> None:
            seen.append(what)
            port.close()
            handoff.open_port(1, second).post("second")

        def second(what: str) -> None:
            seen.append(what)
            arrived.set()

        port = handoff.open_port(1, first)
        port.post("first")
        await arrived.wait()
        port.post("never delivered")
    assert seen == ["first", "second"]


async def test_refuses_more_than_its_capacity():
    async with Handoff() as handoff:
        port = handoff.open_port(2, lambda _: None)
        for direction in (port.send, port.post):
            direction(1)
            direction(2)
            with pytest.raises(BufferError):
                direction(3)


async def test_a_post_after_the_end_writes_to_no_descriptor():
    async with Handoff() as handoff:
        port = handoff.open_port(8, lambda _: None)
        await wait_all_tasks_blocked()
    # Whatever opens next gets the number of the descriptor that was just closed.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        handoff._flag.arm()
        port.post(1)
        with pytest.raises(BlockingIOError):
            os.read(reading, 8)
    finally:
        os.close(reading)
        os.close(writing)


async def test_the_descriptor_is_closed_when_the_block_fails():
    with pytest.raises(KeyError):
        async with Handoff() as handoff:
            raise KeyError
    assert handoff._bell is None
