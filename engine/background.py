"""Work beside the caller's: cut into short steps, on a thread that exists while there is some.

Laws
    - Work is a generator: each ``next`` is a step, what it returns is the result. Of all jobs the one with the lowest
      priority number takes the next step, the oldest of equals: urgent work waits for one step of the other.
    - ``cancel`` ends a job between two steps and closes its generator, whose ``finally`` cleans up; when it returns, no
      step is under way and none follows. Nothing else discards a job.
    - A failure stays in the job until its owner asks for the result: it is raised there, nowhere else.
    - The thread ends with the last job. It is a daemon: one that is stuck in the system cannot hold up the
      interpreter's end.
"""

import itertools
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from engine.errors import EngineError

__all__ = ["Background", "BackgroundThread", "Job", "Steps"]

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""Work, one step at a time."""


class Job(Generic[T]):
    """Work that was submitted. ``take_step`` belongs to whoever runs it, the rest to its owner."""

    value: T | None
    """What the work returned; None before, and after a failure."""

    def __init__(self, steps: Steps[T], priority: int) -> None:
        self.priority = priority
        self.done = False
        self._steps = steps
        self.value = None
        self._error: BaseException | None = None

    def take_step(self) -> None:
        """Do one step; the last one sets ``done``."""
        try:
            next(self._steps)
        except StopIteration as end:
            self.value = end.value
            self.done = True
        except BaseException as error:
            self._error = error
            self.done = True

    def drop(self) -> None:
        """Close the work. REQUIRES: no step is under way."""
        self.done = True
        self._steps.close()

    def result(self) -> T:
        """What the work returned, or raise what it raised. REQUIRES: done."""
        if self._error is not None:
            raise self._error
        return cast(T, self.value)


class Background(Protocol):
    """Runs jobs."""

    def submit(self, steps: Steps[T], *, priority: int) -> Job[T]:
        """Take work; a lower ``priority`` goes first."""

    def wait(self, job: Job[Any]) -> None:
        """Return when the job is done."""

    def cancel(self, job: Job[Any]) -> None:
        """End the job, done or not."""


class BackgroundThread:
    """A ``Background`` with a thread of its own. Any thread may call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._jobs: list[tuple[int, int, Job[Any]]] = []
        self._ages = itertools.count()
        self._running: Job[Any] | None = None
        self._thread: threading.Thread | None = None

    def submit(self, steps: Steps[T], *, priority: int) -> Job[T]:
        """Take work; a lower ``priority`` goes first. Raises EngineError where the system gives no thread for it."""
        job = Job(steps, priority)
        with self._changed:
            self._jobs.append((priority, next(self._ages), job))
            if self._thread is None or not self._thread.is_alive():  # a forked child has no thread
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:
                    self._thread = None
                    self._jobs = [entry for entry in self._jobs if entry[2] is not job]
                    raise EngineError(
                        f"{self._name} cannot be started: {error}.\n"
                        "  Give the process more threads or memory (ulimit -u, ulimit -v), and go on."
                    ) from error
        return job

    def wait(self, job: Job[Any]) -> None:
        """Return when the job is done."""
        self._wait_until(lambda: job.done)

    def cancel(self, job: Job[Any]) -> None:
        """End the job, done or not."""
        with self._changed:
            self._jobs = [entry for entry in self._jobs if entry[2] is not job]
        self._wait_until(lambda: self._running is not job)
        job.drop()

    def join(self) -> None:
        """Return when every job is done and the thread has ended."""
        with self._changed:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(reached)

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._running = min(self._jobs, key=lambda entry: entry[:2])[2]
            job.take_step()
            with self._changed:
                self._running = None
                if job.done:
                    self._jobs = [entry for entry in self._jobs if entry[2] is not job]
                self._changed.notify_all()
