"""Ours and the peers on the same work, in turns, with their answers checked.

pytest-benchmark measures one function at a time, all its rounds in a row: a slow spell of a shared machine then hits
one contender alone, and ratios lie. So a contest plays the rounds itself, contender by contender, and books each
contender with pytest-benchmark afterwards (``booking``): its JSON, its storage and its comparisons work as for any
other benchmark.

Laws
    - Contenders take turns, each round beginning with another one, so that a slow spell of the machine hits them all.
    - Only ``run`` is timed. Its ``answer`` is taken after every round and must equal ``expected``: nobody is measured
      on wrong work. The hash of the answer stands in the table, one for all contenders of a contest.
    - The figure of a contender is the median of its rounds; its memory is the most of all rounds.
"""

import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Contender", "Contest", "Player", "Round", "hash_of"]


@dataclass(frozen=True, slots=True)
class Round:
    """What one contender did in one round. What was not measured is None, not zero."""

    seconds: float
    answer: Any
    note: str = ""
    memory_bytes: int | None = None
    """The most anonymous resident memory."""

    cpu_s: float | None = None
    thread_cpu_s: tuple[float, ...] = ()
    """The CPU time of each thread that used any, the busiest first."""


class Player(Protocol):
    """Who takes part in a contest: a ``Contender`` of this process, or one of its own (``child``)."""

    @property
    def name(self) -> str:
        """Unique in the contest; those of ours begin with "engine"."""

    def round(self, repeat: int) -> Round:
        """Work once more; ``repeat`` times, where the work is short: the seconds are those of one time."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part: ``run`` does the work, ``answer`` makes of its result what can be compared.

    What ``prepare`` gives is the argument of ``run``, made anew for each round and not timed. ``note`` says in a few
    words what else is worth knowing of the result.
    """

    name: str
    run: Callable[..., Any]
    answer: Callable[[Any], Any]
    prepare: Callable[[], Any] | None = None
    note: Callable[[Any], str] | None = None

    def round(self, repeat: int) -> Round:
        """Prepare, work, answer."""
        arguments = () if self.prepare is None else (self.prepare(),)
        gc.collect()
        began_s = time.perf_counter()
        for _ in range(repeat):
            result = self.run(*arguments)
        seconds = (time.perf_counter() - began_s) / repeat
        return Round(seconds, self.answer(result), "" if self.note is None else self.note(result))


@dataclass(frozen=True, slots=True)
class Contest:
    """Holds contests and books what each contender did."""

    rounds: int
    book: Callable[[str, str, Sequence[Round], dict[str, Any]], None]
    """Called with the title, the contender's name, its rounds, and what is the same for the whole contest."""

    absent: Sequence[str] = ()
    """Who would take part but is not installed."""

    def hold(
        self,
        title: str,
        contenders: Sequence[Player],
        *,
        items: int,
        expected: Any,
        unit: str = "row",
        repeat: int = 1,
        rounds: int | None = None,
    ) -> None:
        """Let the contenders work on ``items`` items, ``repeat`` times a round. AssertionError for a wrong answer."""
        played: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
        for turn in range(rounds or self.rounds):
            for place in range(len(contenders)):
                contender = contenders[(turn + place) % len(contenders)]
                one = contender.round(repeat)
                assert one.answer == expected, f"{title}: {contender.name} answers {one.answer!r}, not {expected!r}"
                played[contender.name].append(one)
        shared = {"items": items, "unit": unit, "hash": hash_of(expected), "absent": list(self.absent)}
        for name, each in played.items():
            self.book(title, name, each, shared)


def hash_of(answer: Any) -> str:
    """A few digits that differ where answers do."""
    return hashlib.blake2b(repr(answer).encode(), digest_size=4).hexdigest()
