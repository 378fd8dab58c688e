"""Enters the rounds of a contest in pytest-benchmark's session, as if its own fixture had measured them.

The group is the contest. ``extra_info`` has what ``engine.cli.bench.standing`` reads for the table: items and unit, the
hash of the answer, who was absent, a note, and where they were measured, memory, CPU time, and CPU time by thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from contest import Round
from pytest_benchmark.stats import Metadata

__all__ = ["book"]


@dataclass(slots=True)
class _Measured:
    """What pytest-benchmark asks of the fixture that measured."""

    name: str
    fullname: str
    group: str
    extra_info: dict[str, Any]
    param: str | None = None
    params: dict[str, Any] | None = None
    has_error: bool = False
    cprofile_stats: None = field(default=None)


def book(item: pytest.Item, title: str, name: str, rounds: Sequence[Round], shared: dict[str, Any]) -> None:
    """Enter one contender of the contest ``title``, held by the test ``item``."""
    median = sorted(rounds, key=lambda each: each.seconds)[(len(rounds) - 1) // 2]
    facts = shared | {
        "note": median.note,
        "memory_bytes": max((each.memory_bytes for each in rounds if each.memory_bytes is not None), default=None),
        "cpu_s": median.cpu_s,
        "thread_cpu_s": list(median.thread_cpu_s),
    }
    measured = _Measured(name, f"{item.nodeid}::{title}::{name}", title, facts)
    entry = Metadata(measured, iterations=1, options={"in_turns": True})
    for each in rounds:
        entry.update(each.seconds)
    item.config._benchmarksession.benchmarks.append(entry)
