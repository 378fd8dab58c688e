"""Draws what goes wrong in one start of a simulated pipeline.

Laws
    - Faults are of two kinds. Those that *refuse* (power, errors, full, short and slow disks) leave every byte as it
      was written, or as a loss of power may leave it: a pipeline must come to its right end once they are over. Those
      that *corrupt* (a flipped bit, a sync that lies) may leave what cannot be mended: there a refusal that names the
      file is right as well.
    - They corrupt only what engine reads again and vouches for: state and logs. Finished files of other formats are
      read by others, and no run looks at them again.
    - They lie about the state, or about a log that is written to, so that what is left proves the loss.
"""

import errno
from collections.abc import Callable, Sequence
from random import Random

from engine.testing.storage_faults import CutPower, FailCall, Fault, FlipBit, LyingSync, ShortWrite, SlowCall

__all__ = ["CORRUPTING", "FaultDraw"]

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EACCES)
CUT_CALLS = ("sync", "rename", "append", "sync_directory")
FAILING_CALLS = ("append", "sync", "sync_directory", "create", "rename", "unlink", "open", "pread", "list", "truncate")
DELAYS_S = (0.1, 30.0, 120.0)
"""A disk that is slow, very slow, or stuck until somebody looks after it."""

CORRUPTING = frozenset({FlipBit.kind, LyingSync.kind})
"""The names under which faults that corrupt are counted."""

MOST_READS = 24
"""A flip is drawn among so many first reads of a start: recovery reads about that much."""


class FaultDraw:
    """The draws for pipelines that make about ``calls`` calls; bits flip in files that match ``flipped``, and syncs lie
    about paths that match ``lied``.
    """

    def __init__(self, calls: int, *, flipped: Sequence[str], lied: Sequence[str]) -> None:
        self._calls = calls
        self._flipped = flipped
        self._lied = lied

    def refusing(self, chance: Random) -> list[Fault]:
        """One that is likely to fire, and a few that may."""
        first: Callable[[Random], Fault] = chance.choice((_cut_anywhere, _cut_at, _fail_anywhere))(self._calls)
        others = (_cut_at, _fail_at, _short, _slow, _full_for_a_while)
        return [first(chance), *(chance.choice(others)(self._calls)(chance) for _ in range(chance.randrange(3)))]

    def corrupting(self, chance: Random, start: int) -> list[Fault]:
        """Lies in the first start, which a loss of power shall bring to light; flips in those that read again."""
        if start > 1:
            return [self._flip(chance), *([self._flip(chance)] if chance.random() < 0.3 else [])]
        late = chance.randrange(self._calls // 4, self._calls + 1)
        if chance.random() < 0.5:
            return [CutPower(nth=late)]
        nth, times = chance.randrange(1, max(2, self._calls // 8)), chance.choice((1, 3, None))
        return [LyingSync(nth=nth, times=times, path=chance.choice(self._lied)), CutPower(nth=late)]

    def free_bytes(self, chance: Random) -> int | None:
        """What a disk still takes that fills up in this start; mostly, None: any amount."""
        return chance.randrange(1 << 16) if chance.random() < 0.08 else None

    def _flip(self, chance: Random) -> Fault:
        return FlipBit(nth=chance.randrange(1, MOST_READS), path=chance.choice(self._flipped))


def _cut_anywhere(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: CutPower(nth=chance.randrange(1, calls + 1))


def _cut_at(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: CutPower(chance.choice(CUT_CALLS), nth=chance.randrange(1, _some(calls)))


def _fail_anywhere(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: FailCall(
        "*", nth=chance.randrange(1, calls + 1), errno=chance.choice(ERRORS), times=chance.choice((1, 1, None))
    )


def _fail_at(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: FailCall(
        chance.choice(FAILING_CALLS), nth=chance.randrange(1, _some(calls)), errno=chance.choice(ERRORS)
    )


def _short(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: ShortWrite(nth=chance.randrange(1, _some(calls)), times=chance.choice((1, 5)))


def _slow(calls: int) -> Callable[[Random], Fault]:
    return lambda chance: SlowCall(
        chance.choice(("sync", "append", "pread", "rename", "*")),
        delay_s=chance.choice(DELAYS_S),
        nth=chance.randrange(1, _some(calls)),
        times=chance.choice((1, 3)),
    )


def _full_for_a_while(calls: int) -> Callable[[Random], Fault]:
    """A full disk that has space again."""
    return lambda chance: FailCall(
        "append", nth=chance.randrange(1, _some(calls)), errno=errno.ENOSPC, times=chance.choice((2, 4))
    )


def _some(calls: int) -> int:
    return max(2, calls // 10)
