"""The hand-off between threads and the Trio loop: a ring in each direction, and one wake-up descriptor for all.

Laws:
- Each port belongs to one thread; its rings have one producer and one consumer, the thread and the loop.
- A completion is delivered exactly once, on the loop's thread, in the order of its port; never after `close`.
- The loop arms the flag only after a look that found every ring empty, and looks once more before it sleeps. While it
  is awake, posting costs no system call; when it sleeps, exactly one poster writes to the descriptor.
- A thread asleep is woken with the GIL let go, for it needs it; hence only once per drain, when there is work for all.
- The descriptor is written under a lock and never after it is closed: a thread that outlives the engine must not write
  to a file that has got the same number since.

Why not `trio.from_thread` or `run_sync_soon`: one wake-up for each completion, and twice the latency of an eventfd.
"""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import trio

from engine._core.ring import Ring, WakeFlag

In = TypeVar("In")
Out = TypeVar("Out")


class _EventBell:
    """A Linux eventfd: one descriptor, and any number of rings cost one read."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _SocketBell:
    """A pair of sockets, where there is no eventfd."""

    def __init__(self) -> None:
        self._far, self._near = socket.socketpair()
        self._far.setblocking(False)
        self._near.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def ring(self) -> None:
        self._far.send(b"!")

    def hush(self) -> None:
        self._near.recv(4096)

    def close(self) -> None:
        self._far.close()
        self._near.close()


def _open_bell() -> _EventBell | _SocketBell:
    return _EventBell() if hasattr(os, "eventfd") else _SocketBell()


class Port(Generic[In, Out]):
    """What one thread shares with the loop: a ring of what it is sent, a ring of what it posts back.

    Opened by `Handoff.open_port`. For the loop: `send`, `end`, `close`; for the thread: `receive`, `waiting`, `post`.
    """

    def __init__(self, handoff: "Handoff", capacity: int, deliver: Callable[[Out], None]) -> None:
        self._handoff = handoff
        self._inbound: Ring[In] = Ring(capacity)
        self._outbound: Ring[Out] = Ring(capacity)
        self._deliver = deliver

    def send(self, item: In) -> None:
        """Gives `item` to the thread. Inside `deliver` the thread is woken once, after all completions are delivered.

        Raises:
          BufferError: the thread has not received `capacity` earlier ones.
        """
        if not self._inbound.push(item):
            raise BufferError(f"{self._inbound.capacity} items wait to be received")
        if self._handoff._draining:
            self._handoff._to_wake[self._inbound] = None
        else:
            self._inbound.wake()

    def end(self) -> None:
        """No more is sent: `receive` raises EOFError after what is there."""
        self._inbound.close()

    def close(self) -> None:
        """Forgets the port; what the thread has posted and what it posts from now on is not delivered."""
        self._handoff._ports = tuple(port for port in self._handoff._ports if port is not self)

    def waiting(self) -> bool:
        """Whether `receive` would return at once."""
        return len(self._inbound) > 0

    def receive(self) -> In:
        """The next item sent; sleeps without the GIL until there is one.

        Raises:
          EOFError: `end` was called, and nothing is left.
        """
        return self._inbound.pop_wait()

    def post(self, completion: Out) -> None:
        """Hands `completion` to the loop, which calls `deliver` with it. Does nothing once the hand-off is closed.

        Raises:
          BufferError: `capacity` earlier ones have not been delivered.
        """
        if not self._outbound.push(completion):
            raise BufferError(f"{self._outbound.capacity} completions wait to be delivered")
        self._handoff._wake()


class Handoff:
    """Brings completions from threads into the Trio loop: `async with Handoff() as handoff`.

    One system task waits on one descriptor; every wake-up drains all ports. Being a system task it goes on delivering
    while the caller's scopes are cancelled, so that a task can wait for its thread to the end.
    """

    def __init__(self) -> None:
        self.wakes = 0
        """How often the loop was woken through the descriptor."""
        self._ports: tuple[Port[Any, Any], ...] = ()  # replaced, never changed: `deliver` may open and close ports
        self._draining = False
        self._to_wake: dict[Ring[Any], None] = {}  # each once: it may be asleep again before we are through
        self._flag = WakeFlag()
        self._bell: _EventBell | _SocketBell | None = None
        self._bell_lock = threading.Lock()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def __aenter__(self) -> Self:
        self._bell = _open_bell()
        trio.lowlevel.spawn_system_task(self._serve, self._bell, name="engine-handoff")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def open_port(self, capacity: int, deliver: Callable[[Out], None]) -> Port[Any, Out]:
        """A port for one thread, with room for `capacity` items under way in each direction.

        `deliver` runs on the loop's thread and must neither block nor raise: it reschedules the waiting task.
        """
        port = Port[Any, Out](self, capacity, deliver)
        self._ports += (port,)
        return port

    def _wake(self) -> None:
        if self._flag.take():
            with self._bell_lock:
                if self._bell is not None:
                    self._bell.ring()

    def _drain(self) -> bool:
        """Delivers all completions, then wakes the threads that were sent something meanwhile."""
        found = False
        self._draining = True
        for port in self._ports:
            for completion in port._outbound.pop_all():
                found = True
                port._deliver(completion)
        self._draining = False
        for ring in self._to_wake:
            ring.wake()
        self._to_wake.clear()
        return found

    async def _serve(self, bell: _EventBell | _SocketBell) -> None:
        try:
            with self._scope:
                while True:
                    # The tasks that were just woken often bring the next completion: one more turn of the loop is
                    # cheaper than going to sleep and being woken.
                    while self._drain():
                        await trio.lowlevel.checkpoint()
                    self._flag.arm()
                    if any(len(port._outbound) for port in self._ports):
                        self._flag.disarm()
                        continue
                    await trio.lowlevel.wait_readable(bell)
                    self.wakes += 1
                    bell.hush()
        finally:
            self._flag.disarm()
            with self._bell_lock:
                self._bell = None
                bell.close()
            self._ended.set()
