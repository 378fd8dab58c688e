"""What goes wrong on a simulated disk, and when: the plan that a test gives to ``SimulatedStorage``.

    faults=[FailCall("sync", nth=3, errno=EIO), LyingSync(path="*/manifest-*"), SlowCall("append", delay_s=30.0)]

Laws
    - A fault fires at the ``nth`` call that it matches (the first is 1) and at those after it, ``times`` in all; None
      is for ever. With a ``chance`` below 1 each of them fires or not, by the seed of the storage.
    - A call is named as the method of ``Storage`` or ``File`` that a program calls; ``"*"`` is any. An ``append`` that
      took a part counts again for the rest, as the system call does that it stands for.
    - ``path`` is a pattern of ``fnmatch`` on the absolute path; of a rename, on its source or its target.
    - A plan is a value: one may be used for several storages, each counts for itself.
"""

import errno as numbers
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import ClassVar

__all__ = ["CALLS", "CutPower", "FailCall", "Fault", "FaultPlan", "FlipBit", "LyingSync", "ShortWrite", "SlowCall"]

CALLS = frozenset(
    {
        *("create", "open", "make_directory", "rename", "unlink", "remove_directory", "list", "tree", "size"),
        *("sync_directory", "lock", "check", "append", "pread", "truncate", "sync"),
    }
)
"""The calls that can fail. Questions such as ``exists`` have no error."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """When a fault fires; its kinds say what happens then, and to which calls it may."""

    kind: ClassVar[str] = "fault"
    calls: ClassVar[frozenset[str]] = CALLS

    nth: int = 1
    times: int | None = 1
    path: str = "*"
    chance: float = 1.0

    def name(self, call: str) -> str:
        """The name under which it is counted when it met a call."""
        return self.kind

    def matches(self, call: str, path: str) -> bool:
        """Whether it is about this call."""
        return call in self.calls and fnmatchcase(path, self.path)


@dataclass(frozen=True)
class ChosenCall(Fault):
    """A fault of the call that the test names. Raises ValueError where that cannot fail."""

    call: str

    def __post_init__(self) -> None:
        if self.call != "*" and self.call not in CALLS:
            raise ValueError(f'no call "{self.call}" can fail; there are {", ".join(sorted(CALLS))}, and "*"')

    def matches(self, call: str, path: str) -> bool:
        """Whether it is about this call."""
        return self.call in ("*", call) and super().matches(call, path)


@dataclass(frozen=True)
class FailCall(ChosenCall):
    """The call raises OSError ``errno`` and does nothing. Counted as ``sync EIO``.

    Where the disk is full (ENOSPC, EDQUOT) an ``append`` takes a part first, as a real one does; after a failed
    ``sync`` the dirty bytes are clean in memory and not on the disk, and the next sync succeeds.
    """

    errno: int = numbers.EIO

    def name(self, call: str) -> str:
        """The call that failed, and how."""
        return f"{call} {numbers.errorcode.get(self.errno, self.errno)}"


@dataclass(frozen=True)
class SlowCall(ChosenCall):
    """The call takes ``delay_s`` seconds of the storage's clock. Counted as ``slow sync``."""

    delay_s: float

    def name(self, call: str) -> str:
        """The call that was slow."""
        return f"slow {call}"


@dataclass(frozen=True)
class CutPower(ChosenCall):
    """The power fails at the call: it, and all after it, raise ``PowerLost``; an ``append`` had taken a part."""

    kind = "power cut"

    call: str = "*"


@dataclass(frozen=True)
class ShortWrite(Fault):
    """An ``append`` takes only a part of the bytes at first, and no error is raised."""

    kind = "short write"
    calls = frozenset({"append"})


@dataclass(frozen=True)
class LyingSync(Fault):
    """A ``sync`` or ``sync_directory`` returns well and makes nothing durable."""

    kind = "lying sync"
    calls = frozenset({"sync", "sync_directory"})


@dataclass(frozen=True)
class FlipBit(Fault):
    """A bit of what a ``pread`` reads is flipped on the disk before, and stays so."""

    kind = "bit flip"
    calls = frozenset({"pread"})


class FaultPlan:
    """The faults of one storage, and how often each matched and fired."""

    def __init__(self, faults: tuple[Fault, ...], chance: Random) -> None:
        self._faults = faults
        self._chance = chance
        self._matched = [0] * len(faults)
        self._fired = [0] * len(faults)

    def __bool__(self) -> bool:
        return bool(self._faults)

    def due(self, call: str, *paths: str) -> list[Fault]:
        """What happens to this call, in the order of the plan."""
        due: list[Fault] = []
        for number, fault in enumerate(self._faults):
            if not any(fault.matches(call, path) for path in paths):
                continue
            self._matched[number] += 1
            spent = fault.times is not None and self._fired[number] >= fault.times
            if self._matched[number] < fault.nth or spent:
                continue
            if fault.chance >= 1.0 or self._chance.random() < fault.chance:
                self._fired[number] += 1
                due.append(fault)
        return due
