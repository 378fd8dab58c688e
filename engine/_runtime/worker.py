"""Worker threads: where kernels, user functions and blocking calls run while the Trio loop moves batches.

Laws:
- All state is touched on the loop's thread only, but for what a thread writes before it posts: a call's outcome.
- Calls wait in one queue, by priority (a lower number first), then by age, for a thread that is idle. Only where calls
  are short, a few go to a busy thread's ring ahead of time: a change of the GIL's owner costs 10 µs and should
  carry many.
- Whoever acquires the lock of a hand-over owns its call: the thread to run it, the loop to withdraw it or, when another
  thread has nothing to do, to take it back. Thus a call starts at most once, and never waits behind a long one in vain.
- A call that has not started is withdrawn by cancellation; one that has started is awaited to its end, because a commit
  or a kernel that goes on behind the caller's back is worse than a late cancellation. Only `abandon_on_cancel=True`
  leaves a call behind, and only on a dedicated thread.
- At the end of the block every thread that holds no abandoned call has ended and is joined.

A thread sleeps on its ring without the GIL; the way there and back is `handoff`. Threads are daemons, so that one which
is stuck in a foreign call cannot hold up the interpreter's end.
"""

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar, TypeVarTuple

import trio

from engine._runtime.handoff import Handoff, Port
from engine.errors import EngineError

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

_AHEAD_NS = 200_000  # calls handed over ahead may last this long together: little beside a batch, much beside a wake-up
_AHEAD_CALLS = 16
_FIRST_GUESS_NS = 1_000_000  # until it is known that calls are short


def usable_cores() -> int:
    """How many cores this process may run on: those of its affinity mask, where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class ThreadStatistics:
    """What one worker thread has done so far; `cpu_s` is as of its last idle moment."""

    name: str
    calls: int
    busy_s: float
    cpu_s: float
    busy: bool


@dataclass(frozen=True, slots=True)
class WorkersStatistics:
    """What the workers are doing: the threads of the pool, then the dedicated ones."""

    threads: tuple[ThreadStatistics, ...]
    queued: int
    """Calls that wait for a thread."""
    withdrawn: int
    """Calls that were cancelled before they started."""
    abandoned: int
    """Calls that were left behind on a dedicated thread."""


@dataclass(slots=True, eq=False)
class _Call:
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    task: trio.lowlevel.Task | None
    """None: nobody waits for it any more."""
    claim: "threading.Lock | None" = None
    """The lock of its last hand-over; None while it is queued or withdrawn."""
    value: Any = None
    error: BaseException | None = None
    busy_ns: int = 0
    raise_cancel: Callable[[], Any] | None = None

    def perform(self) -> None:
        """Runs the function, on the worker's thread."""
        start_ns = time.perf_counter_ns()
        try:
            self.value = self.fn(*self.args)
        except BaseException as error:
            # Without this frame the traceback starts in the user's code.
            below = error.__traceback__.tb_next if error.__traceback__ else None
            self.error = error.with_traceback(below or error.__traceback__)
        self.busy_ns = time.perf_counter_ns() - start_ns

    def result(self) -> Any:
        """What the waiting task gets; an error goes before a cancellation that came meanwhile."""
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        if self.raise_cancel is not None:
            self.raise_cancel()
        return self.value

    def withdraw(self) -> bool:
        """Takes the call out of the queue or out of a thread's ring; False if it has started."""
        if self.claim is not None and not self.claim.acquire(blocking=False):
            return False
        self.claim = None
        return True


class _Handover(NamedTuple):
    call: _Call
    claim: threading.Lock

    @property
    def awaited(self) -> bool:
        return self.call.claim is self.claim and self.call.task is not None


class _Thread:
    """One worker thread, its ring of calls and its port back."""

    def __init__(self, name: str, handoff: Handoff, finished: Callable[["_Thread", _Handover], None]) -> None:
        self.handed: deque[_Handover] = deque()
        self.calls = 0
        self.busy_ns = 0
        self.cpu_ns = 0
        self._port: Port[_Handover, _Handover] = handoff.open_port(
            _AHEAD_CALLS, lambda handover: finished(self, handover)
        )
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise EngineError(
                f"{name} cannot be started: {error}.\n"
                "  Give the process more threads or memory (ulimit -u, ulimit -v), and run again."
            ) from error

    def hand_over(self, call: _Call) -> None:
        """REQUIRES: fewer than `_AHEAD_CALLS` are handed over."""
        call.claim = threading.Lock()
        handover = _Handover(call, call.claim)
        self.handed.append(handover)
        self._port.send(handover)

    def close(self) -> None:
        """Ends the thread after what it holds."""
        self._port.end()

    def join(self) -> None:
        self._thread.join()
        self._port.close()

    def statistics(self) -> ThreadStatistics:
        return ThreadStatistics(
            name=self._thread.name,
            calls=self.calls,
            busy_s=self.busy_ns / 1e9,
            cpu_s=self.cpu_ns / 1e9,
            busy=bool(self.handed),
        )

    def _serve(self) -> None:
        while True:
            if not self._port.waiting():
                self.cpu_ns = time.thread_time_ns()
            try:
                handover = self._port.receive()
            except EOFError:
                return
            if handover.claim.acquire(blocking=False):
                handover.call.perform()
            self._port.post(handover)
            del handover  # a sleeping thread keeps no batch alive


class _Pool:
    """Threads that share one queue."""

    def __init__(self) -> None:
        self.threads: list[_Thread] = []
        self.withdrawn = 0
        self.abandoned = 0
        self._idle: list[_Thread] = []
        self._queue: list[tuple[int, int, _Call]] = []
        self._ages = itertools.count()
        self._usual_ns = _FIRST_GUESS_NS
        self._closed = False
        self._quiet = trio.Event()

    def start(self, name: str, handoff: Handoff) -> None:
        """Adds a thread."""
        thread = _Thread(name, handoff, self._finished)
        self.threads.append(thread)
        self._idle.append(thread)

    @property
    def queued(self) -> int:
        return sum(call.task is not None for _, _, call in self._queue)

    async def run(self, fn: Callable[..., Any], args: tuple[Any, ...], priority: int, abandon: bool) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise trio.ClosedResourceError("the worker threads have ended")
        call = _Call(fn, args, trio.lowlevel.current_task())
        self._admit(call, priority)

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            if call.withdraw():
                self.withdrawn += 1
                call.args = ()
            elif abandon:
                self.abandoned += 1
            else:
                call.raise_cancel = raise_cancel
                return trio.lowlevel.Abort.FAILED
            call.task = None
            self._note_quiet()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return call.result()

    def close(self) -> None:
        """Refuses new calls, and ends those that have not started with `trio.ClosedResourceError`."""
        self._closed = True
        waiting = [call for _, _, call in self._queue]
        for thread in self.threads:
            waiting += [handover.call for handover in thread.handed if handover.awaited]
        for call in waiting:
            if call.task is not None and call.withdraw():
                call.error = trio.ClosedResourceError("the worker threads have ended")
                trio.lowlevel.reschedule(call.task)
                call.task = None
        self._queue.clear()
        self._note_quiet()

    async def join(self) -> None:
        """Waits for every call that somebody waits for, then ends the threads. Shield it."""
        await self._quiet.wait()
        for thread in self.threads:
            thread.close()
        for thread in self.threads:
            if not self.abandoned or not thread.handed:
                thread.join()

    def _learn(self, busy_ns: int) -> None:
        """A moving average; one call that the system held up does not make all calls long."""
        self._usual_ns += (min(busy_ns, 8 * self._usual_ns + 10_000) - self._usual_ns) // 8

    def _ahead(self) -> int:
        return max(1, min(_AHEAD_CALLS, _AHEAD_NS // (self._usual_ns + 1)))

    def _admit(self, call: _Call, priority: int) -> None:
        if self._idle:
            self._idle.pop().hand_over(call)
            return
        if not self._queue:
            thread = min(self.threads, key=lambda thread: len(thread.handed))
            if len(thread.handed) < self._ahead():
                thread.hand_over(call)
                return
        heapq.heappush(self._queue, (priority, next(self._ages), call))

    def _finished(self, thread: _Thread, handover: _Handover) -> None:
        thread.handed.popleft()
        call = handover.call
        if call.claim is handover.claim:
            thread.calls += 1
            thread.busy_ns += call.busy_ns
            self._learn(call.busy_ns)
            if call.task is not None:
                trio.lowlevel.reschedule(call.task)
        ahead = self._ahead()
        while self._queue and len(thread.handed) < ahead:
            following = heapq.heappop(self._queue)[2]
            if following.task is not None:
                thread.hand_over(following)
        if not thread.handed:
            taken_back = self._take_back()
            if taken_back is not None:
                thread.hand_over(taken_back)
            else:
                self._idle.append(thread)
        self._note_quiet()

    def _take_back(self) -> _Call | None:
        """The latest call that another thread was given ahead; its oldest one has started or is about to."""
        for thread in self.threads:
            for handover in list(thread.handed)[:0:-1]:
                if handover.awaited and handover.call.withdraw():
                    return handover.call
        return None

    def _note_quiet(self) -> None:
        if self._closed and not any(handover.awaited for thread in self.threads for handover in thread.handed):
            self._quiet.set()


class Dedicated:
    """One thread of its own, for calls that block (reading, writing). Opened by `Workers.dedicated`."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        fn: Callable[[*Args], Result],
        *args: *Args,
        priority: int = 0,
        abandon_on_cancel: bool = False,
    ) -> Result:
        """As `Workers.run`, on this thread.

        With `abandon_on_cancel` a cancelled call is left behind and its result is lost: only for reads, which change
        nothing. The thread serves the next call when the lost one returns; the engine's end does not wait for it.
        """
        return await self._pool.run(fn, args, priority, abandon_on_cancel)  # type: ignore[no-any-return]


@dataclass(eq=False)
class Workers:
    """The engine's worker threads: `async with Workers() as workers`.

    `threads` is their number; by default one for each core that the process may use. Leaving the block waits for the
    calls that have started (but not for abandoned ones) and ends the threads.

    Raises:
      ValueError: `threads` is less than 1.
      EngineError: the system gives no more threads.
    """

    threads: int = field(default_factory=usable_cores)
    handoff: Handoff = field(init=False, default_factory=Handoff)
    _pools: list[_Pool] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")

    async def __aenter__(self) -> Self:
        await self.handoff.__aenter__()
        try:
            self._open_pool([f"engine-worker-{index}" for index in range(self.threads)])
        except BaseException:  # the system gives no more threads: end those that run
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for pool in self._pools:
            pool.close()
        with trio.CancelScope(shield=True):
            for pool in self._pools:
                await pool.join()
            await self.handoff.__aexit__(*exc_info)

    @trio.lowlevel.enable_ki_protection
    async def run(self, fn: Callable[[*Args], Result], *args: *Args, priority: int = 0) -> Result:
        """Runs `fn(*args)` on the next idle thread and returns what it returns.

        Waiting calls start in the order of `priority` (a lower number first: give later stages lower ones), then of
        their age. Cancellation withdraws a call that has not started; one that has started is awaited to its end, then
        `trio.Cancelled` is raised, unless the call failed: then its error is.

        Raises:
          BaseException: whatever `fn` raises, `SystemExit` and `KeyboardInterrupt` included.
          trio.ClosedResourceError: the block of the workers was left before the call started.
        """
        return await self._pools[0].run(fn, args, priority, False)  # type: ignore[no-any-return]

    def dedicated(self, name: str) -> Dedicated:
        """Starts one more thread, called `name`, that serves only the object returned."""
        return Dedicated(self._open_pool([name]))

    def statistics(self) -> WorkersStatistics:
        """Counters of all threads since they started."""
        return WorkersStatistics(
            threads=tuple(thread.statistics() for pool in self._pools for thread in pool.threads),
            queued=sum(pool.queued for pool in self._pools),
            withdrawn=sum(pool.withdrawn for pool in self._pools),
            abandoned=sum(pool.abandoned for pool in self._pools),
        )

    def _open_pool(self, names: list[str]) -> _Pool:
        pool = _Pool()
        self._pools.append(pool)
        for name in names:
            pool.start(name, self.handoff)
        return pool
