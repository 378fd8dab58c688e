"""Ours and the peers on the same work, in turns, with their answers checked.

Laws
    - Contenders take turns, each round beginning with another one, so that a slow spell of the machine hits them all.
    - Only ``run`` is timed. Its ``answer`` is taken after every round and must equal ``expected``: nobody is measured
      on wrong work.
    - The figure of a contender is the median of its rounds.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Contender", "Contest", "Standing", "standings_table"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part: ``run`` does the work, ``answer`` makes of its result what can be compared."""

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a contest ended: the median seconds of each contender, in the order in which they were named."""

    title: str
    items: int
    unit: str
    seconds: dict[str, float]
    answer: Any


@dataclass(slots=True)
class Contest:
    """Holds contests and remembers how they ended."""

    rounds: int
    standings: list[Standing] = field(default_factory=list)

    def hold(
        self,
        title: str,
        contenders: Sequence[Contender],
        *,
        items: int,
        expected: Any,
        unit: str = "row",
        repeat: int = 1,
    ) -> Standing:
        """Let the contenders work on ``items`` items, ``repeat`` times a round. AssertionError for a wrong answer."""
        taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for turn in range(self.rounds):
            for place in range(len(contenders)):
                contender = contenders[(turn + place) % len(contenders)]
                gc.collect()
                began_s = time.perf_counter()
                for _ in range(repeat):
                    result = contender.run()
                taken[contender.name].append((time.perf_counter() - began_s) / repeat)
                answer = contender.answer(result)
                assert answer == expected, f"{title}: {contender.name} answers {answer!r}, not {expected!r}"
                del result
        seconds = {name: statistics.median(times) for name, times in taken.items()}
        standing = Standing(title, items, unit, seconds, expected)
        self.standings.append(standing)
        return standing


def standings_table(standings: Sequence[Standing]) -> list[str]:
    """Lines of text: who took how long an item, how many items a second, and how much longer than the first."""
    lines = [f"{'benchmark':<42} {'contender':<26} {'ns each':>10} {'each/s':>9} {'ratio':>6}  answer"]
    for standing in standings:
        first_s = next(iter(standing.seconds.values()))
        for index, (name, taken_s) in enumerate(standing.seconds.items()):
            title = f"{standing.title}, {standing.items:,} {standing.unit}s" if index == 0 else ""
            each_ns = taken_s * 1e9 / standing.items
            per_s = f"{standing.items / taken_s / 1e6:,.2f} M"
            answer = str(standing.answer)[:40] if index == 0 else ""
            lines.append(
                f"{title:<42} {name:<26} {each_ns:>10,.1f} {per_s:>9} {taken_s / first_s:>5.1f}x  {answer}".rstrip()
            )
    return lines
