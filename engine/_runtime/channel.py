"""Channels: the bounded edges between stages, with credit in rows and in bytes.

Laws:
- Items leave in the order in which they were sent; control takes its place among them, but needs no credit, and never
  waits.
- What waits in a channel is at most `max_rows` rows and `max_bytes` bytes, or a single item that is larger by itself.
- Credit is given in the order in which senders asked for it: a small item never overtakes a large one that waits.
- `send` and `receive` are atomic under cancellation: an item is sent or it is not, received or still there.
- While a task waits to receive, nothing is in the channel; while a task waits to send, its item is not in it.

Shape and semantics are those of `trio.open_memory_channel`: one plain state, two thin ends. What is added is credit, as
items of very different sizes are what overruns a memory budget, and the count of who waited for how long: counting
happens at the edges, and nowhere else.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Self, TypeVar

import trio
from outcome import Error, Value

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What is in a channel, who waits at it, and what has passed since it was opened."""

    items: int
    """Items waiting to be received, control included."""
    rows: int
    size_bytes: int
    max_rows: int
    max_bytes: int
    tasks_waiting_to_send: int
    tasks_waiting_to_receive: int
    items_sent: int
    """Items sent so far, without control."""
    rows_sent: int
    bytes_sent: int
    controls_sent: int
    peak_rows: int
    peak_bytes: int
    send_blocked_s: float
    """Time that tasks have waited for credit, those that still do included: back-pressure from behind."""
    receive_blocked_s: float
    """Time that tasks have waited for an item: starvation from before."""


class _Entry(NamedTuple):
    item: Any
    rows: int
    size_bytes: int


class _Waiting(NamedTuple):
    end: "SendChannel[Any] | ReceiveChannel[Any]"
    entry: _Entry | None
    since_s: float


_Waiters = OrderedDict[trio.lowlevel.Task, _Waiting]


@dataclass(slots=True, eq=False)
class _State:
    max_rows: int
    max_bytes: int
    entries: deque[_Entry] = field(default_factory=deque)
    rows: int = 0
    size_bytes: int = 0
    open_senders: int = 0
    open_receivers: int = 0
    senders: _Waiters = field(default_factory=OrderedDict)
    receivers: _Waiters = field(default_factory=OrderedDict)
    items_sent: int = 0
    rows_sent: int = 0
    bytes_sent: int = 0
    controls_sent: int = 0
    peak_rows: int = 0
    peak_bytes: int = 0
    send_blocked_s: float = 0.0
    receive_blocked_s: float = 0.0

    def has_credit(self, entry: _Entry) -> bool:
        """An item passes that is larger than the channel, but alone."""
        if not self.rows and not self.size_bytes:
            return True
        return self.rows + entry.rows <= self.max_rows and self.size_bytes + entry.size_bytes <= self.max_bytes

    def put(self, entry: _Entry) -> None:
        """Hands `entry` to the task that has waited longest for one, or keeps it."""
        if self.receivers:
            task = next(iter(self.receivers))
            self.leave_receivers(task)
            trio.lowlevel.reschedule(task, Value(entry.item))
            return
        self.entries.append(entry)
        self.rows += entry.rows
        self.size_bytes += entry.size_bytes
        self.peak_rows = max(self.peak_rows, self.rows)
        self.peak_bytes = max(self.peak_bytes, self.size_bytes)

    def put_item(self, entry: _Entry) -> None:
        self.items_sent += 1
        self.rows_sent += entry.rows
        self.bytes_sent += entry.size_bytes
        self.put(entry)

    def take(self) -> Any:
        """The oldest entry's item; its credit goes to those who have waited longest."""
        entry = self.entries.popleft()
        self.rows -= entry.rows
        self.size_bytes -= entry.size_bytes
        self.admit()
        return entry.item

    def admit(self) -> None:
        """Puts in what waits, in its order, as far as there is credit."""
        while self.senders:
            task, waiting = next(iter(self.senders.items()))
            assert waiting.entry is not None
            if not self.has_credit(waiting.entry):
                return
            self.leave_senders(task)
            self.put_item(waiting.entry)
            trio.lowlevel.reschedule(task)

    def leave_senders(self, task: trio.lowlevel.Task) -> None:
        self.send_blocked_s += trio.current_time() - self.senders.pop(task).since_s

    def leave_receivers(self, task: trio.lowlevel.Task) -> None:
        self.receive_blocked_s += trio.current_time() - self.receivers.pop(task).since_s

    def statistics(self) -> ChannelStatistics:
        now_s = trio.current_time() if self.senders or self.receivers else 0.0
        return ChannelStatistics(
            items=len(self.entries),
            rows=self.rows,
            size_bytes=self.size_bytes,
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            tasks_waiting_to_send=len(self.senders),
            tasks_waiting_to_receive=len(self.receivers),
            items_sent=self.items_sent,
            rows_sent=self.rows_sent,
            bytes_sent=self.bytes_sent,
            controls_sent=self.controls_sent,
            peak_rows=self.peak_rows,
            peak_bytes=self.peak_bytes,
            send_blocked_s=self.send_blocked_s + sum(now_s - w.since_s for w in self.senders.values()),
            receive_blocked_s=self.receive_blocked_s + sum(now_s - w.since_s for w in self.receivers.values()),
        )


async def _wait(
    waiters: _Waiters,
    end: "SendChannel[Any] | ReceiveChannel[Any]",
    entry: _Entry | None,
    leave: Callable[[trio.lowlevel.Task], None],
) -> Any:
    task = trio.lowlevel.current_task()
    waiters[task] = _Waiting(end, entry, trio.current_time())

    def abort(_: Any) -> trio.lowlevel.Abort:
        leave(task)
        end._withdrawn()
        return trio.lowlevel.Abort.SUCCEEDED

    return await trio.lowlevel.wait_task_rescheduled(abort)


def _fail(
    waiters: _Waiters,
    leave: Callable[[trio.lowlevel.Task], None],
    error: type[Exception],
    end: "SendChannel[Any] | ReceiveChannel[Any] | None" = None,
) -> None:
    """Ends the wait of all tasks, or of those at one end."""
    for task in [task for task, waiting in waiters.items() if end is None or waiting.end is end]:
        leave(task)
        trio.lowlevel.reschedule(task, Error(error()))


class SendChannel(trio.abc.AsyncResource, Generic[T]):
    """The end of a channel where items go in. Opened by `open_channel`; `clone` it for further senders."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._closed = False
        state.open_senders += 1

    def statistics(self) -> ChannelStatistics:
        """The channel's statistics; to be called on the loop's thread."""
        return self._state.statistics()

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, item: T, *, rows: int, size_bytes: int) -> None:
        """As `send`, without waiting.

        Raises:
          trio.WouldBlock: there is no credit for the item, or others wait for credit already.
        """
        self._check_open()
        entry = _checked(item, rows, size_bytes)
        if self._state.senders or not self._state.has_credit(entry):
            raise trio.WouldBlock
        self._state.put_item(entry)

    @trio.lowlevel.enable_ki_protection
    async def send(self, item: T, *, rows: int, size_bytes: int) -> None:
        """Sends `item`, which counts as `rows` rows and `size_bytes` bytes; waits while there is no credit for it.

        An item that is larger than the whole channel waits until nothing else is in it. Cancelled: it is not sent.

        Raises:
          trio.BrokenResourceError: the receiving end is closed; the item may be lost.
          trio.ClosedResourceError: this end is closed.
          ValueError: `rows` or `size_bytes` is negative.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.send_nowait(item, rows=rows, size_bytes=size_bytes)
        except trio.WouldBlock:
            entry = _Entry(item, rows, size_bytes)
            await _wait(self._state.senders, self, entry, self._state.leave_senders)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    def send_control(self, item: T) -> None:
        """Sends `item` behind all that this sender has sent; needs no credit and never waits.

        Raises:
          trio.BrokenResourceError: the receiving end is closed.
          trio.ClosedResourceError: this end is closed.
        """
        self._check_open()
        self._state.controls_sent += 1
        self._state.put(_Entry(item, 0, 0))

    def clone(self) -> "SendChannel[T]":
        """One more sender; the receiver sees the end when all are closed.

        Raises:
          trio.ClosedResourceError: this end is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return SendChannel(self._state)

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Closes this end: tasks that wait on it get `trio.ClosedResourceError`, the receiver what was sent before."""
        if self._closed:
            return
        self._closed = True
        state = self._state
        _fail(state.senders, state.leave_senders, trio.ClosedResourceError, self)
        state.admit()
        state.open_senders -= 1
        if not state.open_senders:
            _fail(state.receivers, state.leave_receivers, trio.EndOfChannel)

    async def aclose(self) -> None:
        """As `close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if not self._state.open_receivers:
            raise trio.BrokenResourceError

    def _withdrawn(self) -> None:
        self._state.admit()  # the next one in the line may fit where this one did not


class ReceiveChannel(trio.abc.ReceiveChannel[T]):
    """The end of a channel where items come out. Opened by `open_channel`; iterate over it with `async for`."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._closed = False
        state.open_receivers += 1

    def statistics(self) -> ChannelStatistics:
        """The channel's statistics; to be called on the loop's thread."""
        return self._state.statistics()

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> T:
        """As `receive`, without waiting.

        Raises:
          trio.WouldBlock: there is nothing to receive.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._state.entries:
            return self._state.take()  # type: ignore[no-any-return]
        if not self._state.open_senders:
            raise trio.EndOfChannel
        raise trio.WouldBlock

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> T:
        """The oldest item; waits until there is one. Cancelled: nothing is taken.

        Raises:
          trio.EndOfChannel: all senders are closed, and everything was received.
          trio.ClosedResourceError: this end is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            item = self.receive_nowait()
        except trio.WouldBlock:
            return await _wait(  # type: ignore[no-any-return]
                self._state.receivers, self, None, self._state.leave_receivers
            )
        await trio.lowlevel.cancel_shielded_checkpoint()
        return item

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Closes this end: what is in the channel is dropped, and senders get `trio.BrokenResourceError`."""
        if self._closed:
            return
        self._closed = True
        state = self._state
        _fail(state.receivers, state.leave_receivers, trio.ClosedResourceError)
        state.open_receivers -= 1
        _fail(state.senders, state.leave_senders, trio.BrokenResourceError)
        state.entries.clear()
        state.rows = state.size_bytes = 0

    async def aclose(self) -> None:
        """As `close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _withdrawn(self) -> None:
        """A receiver that gives up frees nothing."""


def _checked(item: Any, rows: int, size_bytes: int) -> _Entry:
    if rows < 0 or size_bytes < 0:
        raise ValueError(f"rows and size_bytes must not be negative, but are {rows} and {size_bytes}")
    return _Entry(item, rows, size_bytes)


def open_channel(max_rows: int, max_bytes: int) -> tuple[SendChannel[Any], ReceiveChannel[Any]]:
    """A channel in which at most `max_rows` rows and `max_bytes` bytes wait: (its sending end, its receiving end).

    Raises:
      ValueError: a limit is less than 1.
    """
    if max_rows < 1 or max_bytes < 1:
        raise ValueError(f"max_rows and max_bytes must be at least 1, but are {max_rows} and {max_bytes}")
    state = _State(max_rows, max_bytes)
    return SendChannel(state), ReceiveChannel(state)
