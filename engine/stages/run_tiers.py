"""Which runs to merge: size-tiered, so that runs stay few and every key is rewritten a bounded number of times.

Laws
    - Four adjacent runs, none twice as wide as another, become one (width: the positions that a run covers), but only
      while that is at most a quarter of all: the files and filters that exist twice during a merge are then at most a
      quarter more.
    - Each merge puts a key into a run at least 2.5 times as wide, usually four times: a key is written at most
      1 + log4(width of all / 4 / width of a sealed run) times, usually, and log2.5 at most.
    - Fewer than 16 runs are of the widest kind, and about three of each other. Where widths are odd (memory that changed,
      a budget that did) the narrowest neighbours are merged whatever their widths, once there are ``MANY``.
"""

from collections.abc import Sequence

__all__ = ["FAN_IN", "MANY", "next_merge"]

FAN_IN = 4
MANY = 40


def next_merge(widths: Sequence[int], busy: Sequence[bool]) -> slice | None:
    """The narrowest group that is due, of runs in the order of their positions; those that are ``busy`` stand apart."""
    groups = [slice(at, at + FAN_IN) for at in range(len(widths) - FAN_IN + 1) if not any(busy[at : at + FAN_IN])]
    due = [group for group in groups if _is_due(widths[group], sum(widths))]
    if not due and len(widths) > MANY:
        due = groups
    return min(due, key=lambda group: sum(widths[group]), default=None)


def _is_due(group: Sequence[int], total: int) -> bool:
    return max(group) < 2 * min(group) and FAN_IN * sum(group) <= total
