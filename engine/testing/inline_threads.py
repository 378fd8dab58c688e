"""Worker threads and background work as tasks of the one thread there is, in an order that a seed decides.

Laws
    - A call waits for other tasks or a moment of virtual time, as for a thread, and then runs at once: whatever may run
      at the same time on threads runs in some order here, and every order is some seed's.
    - Background work goes on a few steps at a time beside those calls, and to its end where somebody waits for it.
    - What a slow disk takes is owed by the call that met it: it returns so much later, and others go on meanwhile.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Self, TypeVar

import trio

from engine.background import Job, Steps

__all__ = ["Delay", "InlineBackground", "InlineWorkers"]

T = TypeVar("T")

MEAN_WAIT_S = 0.001
AT_ONCE_SHARE = 0.6
"""Calls that begin as soon as tasks that are ready have had their turn; the others wait for a while."""

MOST_STEPS = 3


class InlineBackground:
    """What ``BackgroundThread`` is, without a thread."""

    def __init__(self) -> None:
        self._jobs: list[Job[Any]] = []

    def submit(self, steps: Steps[T], *, priority: int) -> Job[T]:
        """Take work; a lower ``priority`` goes first."""
        job = Job(steps, priority)
        self._jobs.append(job)
        return job

    def take_steps(self, count: int) -> None:
        """Go on by so many steps."""
        while count > 0 and self._jobs:
            job = min(self._jobs, key=lambda job: job.priority)
            job.take_step()
            count -= 1
            if job.done:
                self._jobs.remove(job)

    def wait(self, job: Job[Any]) -> None:
        """Go on until the job is done."""
        while not job.done:
            self.take_steps(1)

    def cancel(self, job: Job[Any]) -> None:
        """End the job, done or not."""
        self._jobs = [other for other in self._jobs if other is not job]
        job.drop()

    def join(self) -> None:
        """Go on until every job is done."""
        while self._jobs:
            self.take_steps(1)


class Delay:
    """The seconds that calls of a slow disk still owe."""

    def __init__(self) -> None:
        self._owed_s = 0.0

    def add(self, seconds: float) -> None:
        """A call took so long: ``sleep`` for a simulated storage."""
        self._owed_s += seconds

    async def pass_by(self) -> None:
        """Wait for all that is owed; as a call on a thread does, to the end."""
        owed_s, self._owed_s = self._owed_s, 0.0
        if owed_s:
            with trio.CancelScope(shield=True):
                await trio.sleep(owed_s)


class InlineWorkers:
    """What ``Workers`` are, without threads: also each ``Dedicated`` that they give."""

    def __init__(self, chance: Random, background: InlineBackground, delay: Delay) -> None:
        self._chance = chance
        self._background = background
        self._delay = delay

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def run(self, fn: Callable[..., T], *args: Any, priority: int = 0, abandon_on_cancel: bool = False) -> T:
        """Run ``fn(*args)`` some time later."""
        if self._chance.random() < AT_ONCE_SHARE:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self._chance.expovariate(1 / MEAN_WAIT_S))
        try:
            self._background.take_steps(self._chance.randrange(MOST_STEPS))
            return fn(*args)
        finally:
            await self._delay.pass_by()

    def dedicated(self, name: str) -> Self:
        """The same: there is one thread."""
        return self
