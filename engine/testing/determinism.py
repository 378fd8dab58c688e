"""Trio with one order of tasks for one seed, in virtual time.

Trio chooses among tasks that are ready by a random generator of its own, and says so: its private switch for tests
makes the batches sorted, and its generator can be seeded. Both are touched here alone.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run as trio_run

from engine.nature import Nature, simulated

__all__ = ["run_deterministically"]

T = TypeVar("T")

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def run_deterministically(seed: int, main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """``trio.run(main, *args)``: tasks, clocks and chance are decided by ``seed``; nobody waits in real time."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    chance = Random(seed)
    nature = Nature(
        random_bytes=chance.randbytes,
        monotonic_s=clock.current_time,
        now=lambda: BEGINNING + timedelta(seconds=clock.current_time()),
    )
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    try:
        with simulated(nature):
            return trio.run(main, *args, clock=clock)
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        trio_run._r.setstate(before[1])
