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
    """When a fault fires; its kinds say what happens then."""

    nth: int = 1
    times: int | None = 1
    path: str = "*"
    chance: float = 1.0

    def name(self, call: str) -> str:
        """The name under which it is counted when it met a call."""
        raise NotImplementedError

    def matches(self, call: str, path: str) -> bool:
        """Whether it is about this call."""
        wanted = getattr(self, "call", "*")
        return wanted in ("*", call) and fnmatchcase(path, self.path)


def _check_call(call: str) -> None:
    if call != "*" and call not in CALLS:
        raise ValueError(f'no call "{call}" can fail; there are {", ".join(sorted(CALLS))}, and "*"')


@dataclass(frozen=True)
class FailCall(Fault):
    """The call raises OSError ``errno`` and does nothing.

    Where the disk is full (ENOSPC, EDQUOT) an ``append`` takes a part first, as a real one does; after a failed
    ``sync`` the dirty bytes are clean in memory and not on the disk, and the next sync succeeds.
    """

    call: str
    errno: int = numbers.EIO

    def __post_init__(self) -> None:
        _check_call(self.call)

    def name(self, call: str) -> str:
        """As ``sync EIO``."""
        return f"{call} {numbers.errorcode.get(self.errno, self.errno)}"


@dataclass(frozen=True)
class SlowCall(Fault):
    """The call takes ``delay_s`` seconds of the storage's clock."""

    call: str
    delay_s: float

    def __post_init__(self) -> None:
        _check_call(self.call)

    def name(self, call: str) -> str:
        """As ``slow sync``."""
        return f"slow {call}"


@dataclass(frozen=True)
class CutPower(Fault):
    """The power fails at the call: it, and all after it, raise ``PowerLost``; an ``append`` had taken a part."""

    call: str = "*"

    def __post_init__(self) -> None:
        _check_call(self.call)

    def name(self, call: str) -> str:
        """``power cut``."""
        return "power cut"


@dataclass(frozen=True)
class ShortWrite(Fault):
    """An ``append`` takes only a part of the bytes at first, and no error is raised."""

    def name(self, call: str) -> str:
        """``short write``."""
        return "short write"

    def matches(self, call: str, path: str) -> bool:
        """Appends only."""
        return call == "append" and super().matches(call, path)


@dataclass(frozen=True)
class LyingSync(Fault):
    """A ``sync`` or ``sync_directory`` returns well and makes nothing durable."""

    def name(self, call: str) -> str:
        """``lying sync``."""
        return "lying sync"

    def matches(self, call: str, path: str) -> bool:
        """Both kinds of sync."""
        return call in ("sync", "sync_directory") and super().matches(call, path)


@dataclass(frozen=True)
class FlipBit(Fault):
    """A bit of what a ``pread`` reads is flipped on the disk before, and stays so."""

    def name(self, call: str) -> str:
        """``bit flip``."""
        return "bit flip"

    def matches(self, call: str, path: str) -> bool:
        """Reads only."""
        return call == "pread" and super().matches(call, path)


class FaultPlan:
    """The faults of one storage, and how often each matched and fired."""

    def __init__(self, faults: tuple[Fault, ...], chance: Random) -> None:
        self._faults = faults
        self._chance = chance
        self._matched = [0] * len(faults)
        self._fired = [0] * len(faults)

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
