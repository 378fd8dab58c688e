"""Which runs to merge: size-tiered, so that runs stay few and every key is rewritten a bounded number of times.

Laws
    - Adjacent runs of which none is twice as wide as another become one (width: the positions that a run covers):
      four of them, or, where that makes one of the widest, two. It may cover at most a quarter of all positions,
      and all merges that are under way a third: so much more files and filters there are at most while old and new
      ones exist.
    - A merge of four puts a key into a run about four times as wide, one of two happens when all has doubled: a key is
      written about 1 + log4(all / width of a sealed run) times, and at most 1 + log2 of that.
    - Runs wider than an eighth of all are fewer than eight; there are about three of each other kind. Where widths
      are odd (memory that changed, a window that shrank) the narrowest neighbours are merged whatever their widths,
      once there are ``MANY``.
"""

from collections.abc import Sequence

__all__ = ["MANY", "next_merge"]

MANY = 40

_FAN_IN = 4
_WIDEST = 4
"""The widest runs cover at least half a quarter of all positions, and at most a quarter."""

_UNDER_WAY = 3


def next_merge(widths: Sequence[int], busy: Sequence[bool]) -> slice | None:
    """The narrowest group that is due, of runs in the order of their positions; those that are ``busy`` stand apart."""

    def width_of(group: slice) -> int:
        return sum(widths[group])

    total = sum(widths)
    groups = [
        slice(start, start + size)
        for size in (2, _FAN_IN)
        for start in range(len(widths) - size + 1)
        if not any(busy[start : start + size])
    ]
    free = total // _UNDER_WAY - sum(width for width, is_busy in zip(widths, busy, strict=True) if is_busy)
    due = [group for group in groups if width_of(group) <= free and _is_due(widths[group], total)]
    if not due and len(widths) > MANY:
        due = [group for group in groups if group.stop - group.start == _FAN_IN]
    return min(due, key=width_of, default=None)


def _is_due(group: Sequence[int], total: int) -> bool:
    width = sum(group) * _WIDEST
    return max(group) < 2 * min(group) and width <= total and (len(group) == _FAN_IN or 2 * width > total)
