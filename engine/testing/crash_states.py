"""Every state in which a loss of power may leave the disk under a recorded run; all of them, or a sample.

    storage = SimulatedStorage(record=True)
    ...                                             # the run; note ``storage.changes`` whenever it promised something
    for state in crash_states(storage, most=2000, seed=7):
        after = state.storage()                     # one reboot; ask again for another
        ...                                         # what was promised by ``state.changes`` must be there

Laws
    - The power fails after each change of the disk, and within each write after each byte of it; then what was not
      synced is there or not, as ``engine.testing.disk`` says.
    - Where there are no more than ``most`` such ends, each is visited. Else every moment gets its share of ``most``,
      first the end that keeps nothing and the one that keeps everything, then what the seed draws.
    - No state is given twice for the same promise: each differs in what programs see, or in ``changes``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from random import Random

from engine.testing.disk import Disk, Write
from engine.testing.machine import Call
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import Fault

__all__ = ["CrashState", "crash_states"]

TRIES_PER_STATE = 3
"""Draws for one state: the same one is drawn again and again where there are few."""


@dataclass(frozen=True)
class CrashState:
    """One end of the run: ``changes`` were made whole, then ``taken_bytes`` of the next, a write; then the power
    failed, and ``choice`` says what survived. ``last`` is the call that was under way, or the last that was done.
    """

    changes: int
    taken_bytes: int
    choice: tuple[int, ...]
    last: Call | None
    disk: Disk

    def storage(self, seed: int = 0, *, faults: Sequence[Fault] = (), record: bool = False) -> SimulatedStorage:
        """The storage that a reboot finds; each call gives another one."""
        return SimulatedStorage(seed, faults=faults, record=record, disk=self.disk.copy())

    def __repr__(self) -> str:
        place = f"changes={self.changes}, taken_bytes={self.taken_bytes}"
        return f"CrashState({place}, choice={self.choice}, last={self.last})"


def crash_states(recorded: SimulatedStorage, *, most: int, seed: int = 0) -> Iterator[CrashState]:
    """Distinct ends of what a storage with ``record=True`` recorded: all, if they are no more than ``most``."""
    moments = _moments(recorded)
    chance = Random(seed)
    ends = [moment.count(most) for moment in moments]
    seen: set[tuple[int, bytes]] = set()
    visited = 0
    for number, moment in enumerate(moments):
        share = (most if sum(ends) <= most else most * (number + 1) // len(moments)) - visited
        states = moment.all_ends() if ends[number] <= share else moment.drawn(share, chance)
        for state in islice(_distinct(states, seen), share):
            visited += 1
            yield state


def _moments(recorded: SimulatedStorage) -> "list[_Moment]":
    disk, steps = recorded.recording
    moments = [_Moment(disk.copy(), 0, None, None)]
    for number, (call, change) in enumerate(steps, 1):
        before, disk = disk, disk.copy()
        disk.apply(change)
        if isinstance(change, Write) and len(change.data) > 1:
            moments.append(_Moment(before, number - 1, call, change))
        moments.append(_Moment(disk, number, call, None))
    return moments


def _distinct(states: Iterable[CrashState], seen: set[tuple[int, bytes]]) -> Iterator[CrashState]:
    for state in states:
        key = state.changes, state.disk.digest()
        if key not in seen:
            seen.add(key)
            yield state


@dataclass(frozen=True)
class _Moment:
    """The power fails here: after so many ``changes``, or within the write that would be the next."""

    disk: Disk
    changes: int
    call: Call | None
    torn: Write | None

    @property
    def cuts(self) -> range:
        """How many bytes of the write may have been taken, when it was neither not begun nor done."""
        return range(1) if self.torn is None else range(1, len(self.torn.data))

    def disks(self, cuts: Iterable[int]) -> Iterator[Disk]:
        """The disk as the program left it, for each of the cuts."""
        for taken_bytes in cuts:
            disk = self.disk
            if self.torn is not None:
                disk = disk.copy()
                disk.apply(Write(self.torn.file, self.torn.offset, self.torn.data[:taken_bytes]))
            yield disk

    def count(self, most: int) -> int:
        """How many ends there are, equal ones counted each; where there are more than ``most``, some such number."""
        ends = 0
        for disk in self.disks(self.cuts if len(self.cuts) <= most else ()):
            ends += prod(disk.choices())
            if ends > most:
                break
        return max(ends, len(self.cuts))

    def all_ends(self) -> Iterator[CrashState]:
        """Every cut, and whatever may survive it."""
        for taken_bytes, disk in zip(self.cuts, self.disks(self.cuts), strict=True):
            for choice in product(*map(range, disk.choices())):
                yield self._end(taken_bytes, disk, choice, Random(0))

    def drawn(self, states: int, chance: Random) -> Iterator[CrashState]:
        """Some ends, first those that keep nothing and everything; enough for that many distinct ones, if there are."""
        first = 0 if states > len(_EXTREMES) else chance.randrange(len(_EXTREMES) + 1)
        for number in range(first, first + states * TRIES_PER_STATE):
            taken_bytes = chance.choice(self.cuts)
            (disk,) = self.disks([taken_bytes])
            ways = disk.choices()
            if number < len(_EXTREMES):
                choice = [_EXTREMES[number](way) for way in ways]
            else:
                choice = [chance.randrange(way) for way in ways]
            yield self._end(taken_bytes, disk, tuple(choice), chance)

    def _end(self, taken_bytes: int, disk: Disk, choice: tuple[int, ...], noise: Random) -> CrashState:
        return CrashState(self.changes, taken_bytes, choice, self.call, disk.image(choice, noise))


_EXTREMES: tuple[Callable[[int], int], ...] = (lambda ways: 0, lambda ways: ways - 1)
