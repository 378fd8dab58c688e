"""Interrupting a call within: at the n-th function that it calls, Python's or C's.

Laws
    - The interruption is raised in the caller's thread, before the n-th function begins; other threads go on.
    - Destructors and the callbacks of weak references are left alone, and no garbage is collected meanwhile: what they
      raise is lost. So are imports: what ends within one keeps its lock, and every other thread that imports waits.
    - It is no ``Exception``: code that retries on errors does not take it for one. What is not Python may, such as a
      database that reads rows from us: an error behind the interruption is the interruption.
"""

import gc
import sys
from collections.abc import Callable
from types import FrameType

__all__ = ["Interrupted", "count_calls", "interrupt"]

_LEFT_ALONE = {"weakref", "_weakrefset", "importlib._bootstrap"}


class Interrupted(BaseException):
    """The process is gone, as far as the interrupted call can tell."""


def count_calls(fn: Callable[[], object]) -> int:
    """Call ``fn`` and count at how many places it could have been interrupted."""
    return _profiled(fn, sys.maxsize)


def interrupt(fn: Callable[[], object], at: int) -> bool:
    """Call ``fn`` and interrupt it before the ``at``-th function that it calls, from 0 on; whether it came so far."""
    try:
        return _profiled(fn, at) > at
    except Interrupted:
        return True


def _profiled(fn: Callable[[], object], at: int) -> int:
    """How many calls there were; raises Interrupted at the ``at``-th."""
    calls = 0

    def count(frame: FrameType, event: str, function: object) -> None:
        nonlocal calls
        if event not in ("call", "c_call") or frame is own or _left_alone(frame):
            return
        calls += 1
        if calls == at + 1:
            raise Interrupted

    own = sys._getframe()
    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(count)
    try:
        fn()
    except Exception as error:
        if calls > at:
            raise Interrupted from error
        raise
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return calls


def _left_alone(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in _LEFT_ALONE:
            return True
        frame = frame.f_back
    return False
