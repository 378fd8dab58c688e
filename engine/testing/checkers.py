"""What must be true of the rows that a pipeline left, whatever happened to it on the way.

Each checker gives complaints, none where all is well; they know nothing of faults.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["CHECKERS", "Output", "Row", "no_duplicate", "no_loss", "order_per_key", "state_equals_model"]

Row: TypeAlias = Hashable
"""What is equal to a row that has the same values, such as an ``ExactRow``."""

Output: TypeAlias = Mapping[int, Sequence[Row]]
"""The rows by partition, in the order in which they were committed."""

KeyOf: TypeAlias = Callable[[Any], Hashable]

SHOWN = 3


def no_loss(found: Output, expected: Output, key_of: KeyOf) -> list[str]:
    """Every expected row is in its partition."""
    return _differences("lost", expected, found)


def no_duplicate(found: Output, expected: Output, key_of: KeyOf) -> list[str]:
    """No row is there more often than expected, or where none was."""
    return _differences("not expected", found, expected)


def order_per_key(found: Output, expected: Output, key_of: KeyOf) -> list[str]:
    """The rows of a key follow each other as they should."""
    complaints = []
    for partition, rows in found.items():
        ours, theirs = _by_key(rows, key_of), _by_key(expected.get(partition, ()), key_of)
        for key, sequence in ours.items():
            if Counter(sequence) == Counter(theirs.get(key, ())) and sequence != theirs[key]:
                complaints.append(f"partition {partition}: the rows of key {key!r} are out of order")
    return complaints


def state_equals_model(dropped: Sequence[bool], model: Sequence[bool | None]) -> list[str]:
    """A restored window drops the rows that the model drops, and keeps the others; None: either is right."""
    if len(dropped) != len(model):
        return [f"the state answers for {len(dropped):,} rows, the model for {len(model):,}"]
    wrong = [row for row, (ours, theirs) in enumerate(zip(dropped, model, strict=True)) if theirs not in (None, ours)]
    if not wrong:
        return []
    word = "drops" if dropped[wrong[0]] else "keeps"
    return [f"the state answers otherwise than the model for {len(wrong):,} rows (first: it {word} row {wrong[0]:,})"]


CHECKERS: tuple[Callable[[Output, Output, KeyOf], list[str]], ...] = (no_loss, no_duplicate, order_per_key)


def _differences(what: str, some: Output, others: Output) -> list[str]:
    complaints = []
    for partition, rows in some.items():
        more = Counter(rows) - Counter(others.get(partition, ()))
        if more:
            shown = ", ".join(str(row) for row in list(more)[:SHOWN])
            complaints.append(f"partition {partition}: {more.total():,} rows {what} (first: {shown})")
    return complaints


def _by_key(rows: Sequence[Row], key_of: KeyOf) -> dict[Hashable, list[Row]]:
    by_key: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[key_of(row)].append(row)
    return by_key
