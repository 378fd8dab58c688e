"""What a reader finds after a loss of power, asked once for all disks that show it the same.

Laws
    - An answer is kept by the digests of all that it may depend on: the names below ``within``, and the bytes of those
      files that the reader ``opens``. The account of its calls proves that it looked at nothing else, and changed
      nothing.
    - An error is an answer too, and is raised each time.
"""

from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from engine.testing.crash_states import CrashState
from engine.testing.storage import SimulatedStorage

Answer = TypeVar("Answer")


class Remembered(Generic[Answer]):
    """A reader whose answers are kept. ``read`` is given a storage, and whatever ``answer`` is given besides."""

    def __init__(
        self,
        read: Callable[..., Answer],
        *,
        within: str,
        opens: Callable[[str], bool] = lambda path: True,
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._read = read
        self._within = within.strip("/")
        self._opens = opens
        self._failures = failures
        self._answers: dict[Hashable, Answer | Exception] = {}

    @property
    def asked(self) -> int:
        """How many answers were worked out."""
        return len(self._answers)

    def answer(self, state: CrashState, digests: dict[str, bytes], *given: Any) -> Answer:
        """Raises ``failures`` as ``read`` does. ``digests`` are those of the state's disk."""
        shown = [
            b"%b\0%b" % (path.encode(), digest if not digest or self._opens(path) else b"file")
            for path, digest in digests.items()
            if path.startswith(self._within)
        ]
        key = blake2b(b"".join(shown), digest_size=16).digest(), given
        if key not in self._answers:
            self._answers[key] = self._work_out(state.storage(), *given)
        found = self._answers[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _work_out(self, storage: SimulatedStorage, *given: Any) -> Answer | Exception:
        try:
            return self._read(storage, *given)
        except (AssertionError, *self._failures) as error:
            return error
        finally:
            assert storage.changes == 0
            for call in storage.trace:
                path = call.path.strip("/")
                assert path.startswith(self._within) or self._within.startswith(path), call
                assert call.name in LISTING or self._opens(path), call


LISTING = {"list", "tree"}
"""Calls that see names only."""


def share_of(most: int) -> float:
    """How many of so many states are checked the dear way too: some hundreds, or one in fifty."""
    return max(1 / 50, min(1.0, 300 / most))
