"""Tells a callable how a run goes on, a few times a second."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from engine._runtime.scheduler import Scheduler
from engine.nature import monotonic_s
from engine.report import Statistics

__all__ = ["watch"]

PERIOD_S = 0.2
RATE_PERIODS = 10
"""The rate shown is that of the last so many periods."""


@asynccontextmanager
async def watch(
    scheduler: Scheduler, name: str, memory_limit_bytes: int, progress: Callable[[Statistics], None] | None
) -> AsyncIterator[None]:
    """Call ``progress`` while the block runs, and once more at its end. What it raises ends the run."""
    if progress is None:
        yield
        return
    watcher = _Watcher(scheduler, name, memory_limit_bytes, progress)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        try:
            yield
        except BaseException as error:
            # Held until the nursery is left, so that it is not wrapped in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    watcher.tell()


class _Watcher:
    def __init__(
        self, scheduler: Scheduler, name: str, memory_limit_bytes: int, progress: Callable[[Statistics], None]
    ) -> None:
        self._scheduler = scheduler
        self._name = name
        self._memory_limit_bytes = memory_limit_bytes
        self._progress = progress
        self._started_s = monotonic_s()
        self._seen: deque[tuple[float, int]] = deque([(self._started_s, 0)], maxlen=RATE_PERIODS)

    async def run(self) -> None:
        while True:
            await trio.sleep(PERIOD_S)
            self.tell()

    def tell(self) -> None:
        scheduler, coordinator = self._scheduler, self._scheduler.coordinator
        now_s, rows_in = monotonic_s(), scheduler.counters.rows_in
        then_s, rows_then = self._seen[0]
        self._seen.append((now_s, rows_in))
        committed_at_s = coordinator.committed_at_s if coordinator is not None else None
        duplicates, null_keys = scheduler.duplicates()
        self._progress(
            Statistics(
                pipeline=self._name,
                rows_in=rows_in,
                rows_out=scheduler.counters.rows_out,
                duplicates=duplicates,
                null_keys=null_keys,
                rows_per_s=(rows_in - rows_then) / max(now_s - then_s, 1e-9),
                epoch=coordinator.committed if coordinator is not None else 0,
                seconds_since_commit=now_s - committed_at_s if committed_at_s is not None else None,
                memory_bytes=scheduler.memory_bytes(),
                memory_limit_bytes=self._memory_limit_bytes,
                waiting=scheduler.waiting(),
                elapsed_s=now_s - self._started_s,
            )
        )
