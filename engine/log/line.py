"""Who may write: one thread at a time, in the order of arrival. The first one may do the work of those behind it.

    join ─► waits to be first ─► is first, and leads a group ─► leaves: the group is served, the next one is first
                └──────────────► was served by one before it

Laws
    - A place is served, or becomes the first, exactly once; then it is woken, and by nobody else.
    - Nothing is held while a thread waits or leads but its place: those behind it can join meanwhile.

The scheme is the writers' queue of LevelDB (DBImpl::Write): a sync serves all who came while the one before it went on.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Line", "Place"]


class Place:
    """A thread's place in a line."""

    __slots__ = ("_woken", "served")

    def __init__(self) -> None:
        self.served = False
        """Whether one before it did its work."""

        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self) -> None:
        """Until it is woken."""
        self._woken.acquire()

    def wake(self) -> None:
        """Once."""
        self._woken.release()


P = TypeVar("P", bound=Place)


class Line(Generic[P]):
    """A line of places. Any thread may call."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._places: deque[P] = deque()

    def join(self, place: P) -> bool:
        """Wait behind all others; say whether the place is the first one now. If not, it was served."""
        with self._mutex:
            self._places.append(place)
            first = len(self._places) == 1
        if not first:
            place.wait()
        return not place.served

    def waiting(self) -> list[P]:
        """All who are in the line now, the first one included."""
        with self._mutex:
            return list(self._places)

    def leave(self, group: Sequence[P]) -> None:
        """The first one leaves with those next to it that it served; call it with all of them, the first one first."""
        with self._mutex:
            for place in group:
                assert self._places[0] is place
                self._places.popleft()
            following = self._places[0] if self._places else None
        for place in group[1:]:
            place.served = True
            place.wake()
        if following is not None:
            following.wake()

    @contextmanager
    def alone(self, place: P) -> Iterator[None]:
        """Be the first one for a while, and serve nobody else."""
        self.join(place)
        try:
            yield
        finally:
            self.leave([place])
