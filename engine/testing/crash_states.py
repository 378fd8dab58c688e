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

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from engine.testing.disk import NOISE_BYTES, Disk, Loss, Write
from engine.testing.machine import Call
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import Fault

__all__ = ["CrashState", "count_ends", "crash_states"]

ROUNDS = 3
"""Of drawing as many as are wanted: the same state is drawn again and again where there are few."""


@dataclass(frozen=True, slots=True)
class CrashState:
    """One end of the run: ``changes`` were made whole, then ``taken_bytes`` of the next, a write; then the power
    failed, and ``choice`` says what survived. ``last`` is the call that was under way, or the last that was done.
    ``digest`` is the same for states in which programs see the same.
    """

    changes: int
    taken_bytes: int
    choice: tuple[int, ...]
    last: Call | None
    digest: bytes
    loss: Loss

    @property
    def disk(self) -> Disk:
        """What is found, made when it is asked for, and shared: only ``storage`` gives one that may change."""
        return self.loss.image(self.choice)

    def digests(self) -> dict[str, bytes]:
        """Those of the disk, which need not be made for them."""
        return self.loss.digests(self.choice)

    def storage(self, seed: int = 0, *, faults: Sequence[Fault] = (), record: bool = False) -> SimulatedStorage:
        """The storage that a reboot finds; each call gives another one."""
        return SimulatedStorage(seed, faults=faults, record=record, disk=self.disk.copy())

    def __repr__(self) -> str:
        place = f"changes={self.changes}, taken_bytes={self.taken_bytes}"
        return f"CrashState({place}, choice={self.choice}, last={self.last})"


def crash_states(
    recorded: SimulatedStorage, *, most: int | None, seed: int = 0, since: int = 0
) -> Iterator[CrashState]:
    """Distinct ends of what a storage with ``record=True`` recorded: all, if they are no more than ``most``, or it is
    None. ``since``: only ends behind so many changes, and within the next.
    """
    chance = Random(seed)
    noise = chance.randbytes(NOISE_BYTES)
    moments = _moments(recorded, noise, since)
    ends = [0 if most is None else moment.count(most) for moment in moments]
    few = most is None or sum(ends) <= most
    seen = _Seen()
    visited = 0
    for number, moment in enumerate(moments):
        share = None if few or most is None else most * (number + 1) // len(moments) - visited
        whole = share is None or ends[number] <= share
        choices = moment.all_choices() if whole else moment.drawn(share or 0, chance)
        for state in moment.states(choices, seen, share):
            visited += 1
            yield state


def count_ends(recorded: SimulatedStorage, *, since: int = 0) -> int:
    """How many ends there are, equal ones counted each."""
    return sum(moment.count(None) for moment in _moments(recorded, bytes(NOISE_BYTES), since))


def _moments(recorded: SimulatedStorage, noise: bytes, since: int) -> "list[_Moment]":
    disk, steps = recorded.recording
    moments = [_Moment(disk.copy(), 0, None, None, noise)]
    for number, (call, change) in enumerate(steps, 1):
        before, disk = disk, disk.copy()
        disk.apply(change)
        if isinstance(change, Write) and len(change.data) > 1:
            moments.append(_Moment(before, number - 1, call, change, noise))
        moments.append(_Moment(disk, number, call, None, noise))
    return [moment for moment in moments if moment.changes >= since]


class _Seen:
    """Which images were given for the count of changes that is being visited; those of earlier ones are forgotten."""

    def __init__(self) -> None:
        self._changes = 0
        self._digests: set[bytes] = set()

    def is_new(self, changes: int, digest: bytes) -> bool:
        if changes != self._changes:
            self._changes, self._digests = changes, set()
        before = len(self._digests)
        self._digests.add(digest)
        return len(self._digests) > before


@dataclass(frozen=True)
class _Moment:
    """The power fails here: after so many ``changes``, or within the write that would be the next."""

    disk: Disk
    changes: int
    call: Call | None
    torn: Write | None
    noise: bytes

    @property
    def cuts(self) -> range:
        """How many bytes of the write may have been taken, when it was neither not begun nor done."""
        return range(1) if self.torn is None else range(1, len(self.torn.data))

    def loss(self, taken_bytes: int) -> Loss:
        """What may be left where the program came so far."""
        disk = self.disk
        if self.torn is not None:
            disk = disk.copy()
            disk.apply(Write(self.torn.file, self.torn.offset, self.torn.data[:taken_bytes]))
        return Loss(disk, self.noise)

    def count(self, most: int | None) -> int:
        """How many ends there are, equal ones counted each; where there are more than ``most``, some such number."""
        ends = 0
        for taken_bytes in self.cuts if most is None or len(self.cuts) <= most else ():
            ends += self.loss(taken_bytes).count
            if most is not None and ends > most:
                break
        return max(ends, len(self.cuts))

    def all_choices(self) -> "Iterator[_Choices]":
        """Every cut, and whatever may survive it."""
        for taken_bytes in self.cuts:
            loss = self.loss(taken_bytes)
            yield taken_bytes, loss, loss.choices()

    def drawn(self, states: int, chance: Random) -> "Iterator[_Choices]":
        """Some ends, first those that keep nothing and everything; enough for that many distinct ones, if there are."""
        first = 0 if states > len(_EXTREMES) else chance.randrange(len(_EXTREMES) + 1)
        for extreme in _EXTREMES[first:]:
            taken_bytes = chance.choice(self.cuts)
            loss = self.loss(taken_bytes)
            yield taken_bytes, loss, [tuple(extreme(way) for way in loss.ways)]
        for _ in range(ROUNDS):
            taken = Counter(chance.choices(self.cuts, k=states))
            for taken_bytes in chance.sample(sorted(taken), len(taken)):
                loss = self.loss(taken_bytes)
                yield taken_bytes, loss, (_drawn(loss.ways, chance) for _ in range(taken[taken_bytes]))

    def states(self, choices: "Iterable[_Choices]", seen: _Seen, most: int | None) -> Iterator[CrashState]:
        """Those of the choices, up to ``most``, that were not seen."""
        given = 0
        for taken_bytes, loss, some in choices:
            for choice in some:
                if given == most:
                    return
                digest = loss.digest(choice)
                if seen.is_new(self.changes, digest):
                    given += 1
                    yield CrashState(self.changes, taken_bytes, choice, self.call, digest, loss)


_Choices: TypeAlias = tuple[int, Loss, Iterable[tuple[int, ...]]]
"""So many bytes of a write were taken, what may be left then, and some ways in which it may be."""

_EXTREMES: tuple[Callable[[int], int], ...] = (lambda ways: 0, lambda ways: ways - 1)


def _drawn(ways: Sequence[int], chance: Random) -> tuple[int, ...]:
    return tuple(int(chance.random() * way) for way in ways)
