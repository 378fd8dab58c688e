"""When a failed call is tried again, and after how long."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from engine.errors import PipelineError

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Up to ``attempts`` calls, with exponential back-off between them, for the exceptions in ``on`` alone.

    The n-th wait is ``first_s * factor ** (n - 1)`` seconds, at most ``max_s``, times a seeded jitter between 0.5 and
    1. Raises PipelineError for figures that make no sense.
    """

    attempts: int = 3
    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 30.0
    on: tuple[type[Exception], ...] = (OSError, TimeoutError)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise PipelineError(f"Retry: attempts must be at least 1, found {self.attempts}")
        if self.first_s < 0 or self.max_s < 0 or self.factor < 1:
            raise PipelineError("Retry: first_s and max_s must not be negative, and factor not below 1")

    def waits_s(self, random: Random) -> Iterator[float]:
        """The waits between the attempts, in seconds: one fewer than there are attempts."""
        for retry in range(self.attempts - 1):
            yield min(self.max_s, self.first_s * self.factor**retry) * random.uniform(0.5, 1.0)


NO_RETRY = Retry(attempts=1)
