"""Chance and clocks: whatever differs from run to run and is no file.

Law: nothing else in the package asks the system for the time, for random bytes or for an id; so a simulation decides
them all.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Nature", "monotonic_s", "random_id", "simulated", "wall_clock"]


@dataclass(frozen=True, slots=True)
class Nature:
    """Chance and clocks of the process."""

    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    monotonic_s: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


_nature = Nature()


@contextmanager
def simulated(nature: Nature) -> Iterator[None]:
    """Let chance and clocks be those of ``nature`` inside of the block, for the whole process."""
    global _nature
    before, _nature = _nature, nature
    try:
        yield
    finally:
        _nature = before


def random_id(bits: int = 128) -> str:
    """An unguessable id of that many bits (a multiple of 8), in hexadecimal digits."""
    return _nature.random_bytes(bits // 8).hex()


def monotonic_s() -> float:
    """Seconds since some moment; never goes back. The only clock that decides anything."""
    return _nature.monotonic_s()


def wall_clock() -> datetime:
    """The time of day in UTC, for people to read; nothing is decided by it."""
    return _nature.now()
