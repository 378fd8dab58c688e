"""The machine under a simulated storage: its power, its disk, its clock, its faults, and the account of all calls.

Laws
    - Whatever a program asks for comes by ``begin`` (or ``note``) and whatever changes the disk by ``change``: so all
      is in the trace, and every change can be replayed.
    - Without power every call raises ``PowerLost``.
"""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, NoReturn

from engine.testing.disk import Change, Disk
from engine.testing.storage_faults import CutPower, FailCall, Fault, FaultPlan, SlowCall

__all__ = ["Begun", "Call", "Machine", "PowerLost", "fail"]


class PowerLost(BaseException):
    """The machine, or the process, is gone; go on with the storage that ``crash`` or ``kill`` gives."""


class Call(NamedTuple):
    """One call: its name, the path, and the bytes where it is about bytes."""

    name: str
    path: str
    size: int = 0


class Begun(NamedTuple):
    """A call that is under way, and the faults that meet it."""

    call: Call
    faults: list[Fault]


class Machine:
    """State that the storage shares with its open files.

    A call begins without ``mutex``, as it may be a slow one and others go on meanwhile; hold it from then on.
    """

    def __init__(
        self, seed: int, disk: Disk, faults: Sequence[Fault], sleep: Callable[[float], None] | None, *, record: bool
    ) -> None:
        self.mutex = threading.RLock()
        self.chance = Random(seed)
        self.disk = disk
        self.trace: list[Call] = []
        self.fired: Counter[str] = Counter()
        self.changes = 0
        self.recorded: list[tuple[Call, Change]] = []
        self.recorded_from = disk.copy() if record else None
        self.sleep = sleep
        self.gone = False
        self._plan = FaultPlan(tuple(faults), self.chance)

    def check_power(self) -> None:
        """Raise PowerLost where there is none."""
        if self.gone:
            raise PowerLost

    def note(self, name: str, path: str, *, also: str = "", size: int = 0) -> Begun:
        """Begin a call that handles its own faults, but for the wait for a slow one. ``also``: a second path."""
        begun = Begun(Call(name, path, size), [])
        with self.mutex:
            self.check_power()
            self.trace.append(begun.call)
            if not self._plan:
                return begun
            begun.faults.extend(self._plan.due(name, path, *([also] if also else [])))
        for fault in begun.faults:
            if isinstance(fault, SlowCall):
                with self.mutex:
                    self.fired[fault.name(name)] += 1
                if self.sleep is not None:
                    self.sleep(fault.delay_s)
        self.check_power()
        return begun

    def begin(self, name: str, path: str, *, also: str = "", size: int = 0) -> Begun:
        """Begin a call. Raises what the plan says."""
        begun = self.note(name, path, also=also, size=size)
        if begun.faults:
            self.fail_as_planned(begun)
        return begun

    def fail_as_planned(self, begun: Begun) -> None:
        """Cut the power, or raise the OSError of the first fault that has one."""
        with self.mutex:
            for fault in begun.faults:
                if isinstance(fault, CutPower):
                    self.fired[fault.name(begun.call.name)] += 1
                    self.gone = True
                    raise PowerLost
                if isinstance(fault, FailCall):
                    self.fired[fault.name(begun.call.name)] += 1
                    fail(fault.errno, begun.call.path)

    def fires(self, begun: Begun, kind: type[Fault]) -> bool:
        """Whether a fault of that kind meets the call; it is counted then."""
        for fault in begun.faults:
            if isinstance(fault, kind):
                self.fired[fault.name(begun.call.name)] += 1
                return True
        return False

    def change(self, begun: Begun, change: Change) -> None:
        """Let it happen to the disk. Raises PowerLost where the power went while the call was waiting."""
        self.check_power()
        self.disk.apply(change)
        self.changes += 1
        if self.recorded_from is not None:
            self.recorded.append((begun.call, change))


def fail(number: int, path: str, target: str | None = None) -> NoReturn:
    """Raise the OSError that the system would."""
    if target is not None:
        raise OSError(number, os.strerror(number), path, None, target)
    raise OSError(number, os.strerror(number), path)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk that took a part first."""
