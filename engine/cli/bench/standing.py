"""How contests ended, read from what pytest-benchmark wrote down.

A contest is a group of pytest-benchmark; each of its measurements is a contender, the first of them ours. What is not
in pytest-benchmark's own figures is in ``extra_info``: items, unit, the hash of the answer, memory, CPU time, a note,
and which peers are absent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Contender", "Standing", "standings_of"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One who took part: the median seconds of a round, and what else was measured."""

    name: str
    seconds: float
    memory_bytes: int | None = None
    cpu_s: float | None = None
    thread_cpu_s: tuple[float, ...] = ()
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is engine itself, in one of its forms."""
        return self.name.split(",")[0] == "engine"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contest ended. The first contender is the one that the others are compared with."""

    title: str
    items: int
    unit: str
    answer_hash: str
    contenders: tuple[Contender, ...]
    absent: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The title and the size of the work."""
        return f"{self.title}, {self.items:,} {self.unit}s"

    def nanoseconds_each(self, contender: Contender) -> float:
        """Of the contender, for one item."""
        return contender.seconds * 1e9 / self.items

    def ratio(self, contender: Contender) -> float:
        """How much longer than the first it took."""
        return contender.seconds / self.contenders[0].seconds


def standings_of(measured: Iterable[Mapping[str, Any]]) -> list[Standing]:
    """The contests among pytest-benchmark's measurements (``benchmarks`` in its JSON), in the order they were held."""
    contests: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for one in measured:
        facts = one["extra_info"]
        # Measurements of others, made by pytest-benchmark's own fixture, have no items.
        if "items" in facts:
            contests.setdefault((one["group"], facts["items"]), []).append(one)
    return [_standing(title, items, members) for (title, items), members in contests.items()]


def _standing(title: str, items: int, members: list[Mapping[str, Any]]) -> Standing:
    facts = members[0]["extra_info"]
    return Standing(
        title, items, facts["unit"], facts["hash"], tuple(map(_contender, members)), tuple(facts.get("absent", ()))
    )


def _contender(one: Mapping[str, Any]) -> Contender:
    facts = one["extra_info"]
    return Contender(
        one["name"],
        one["stats"]["median"],
        facts.get("memory_bytes"),
        facts.get("cpu_s"),
        tuple(facts.get("thread_cpu_s", ())),
        facts.get("note", ""),
    )
