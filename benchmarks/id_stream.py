"""A stream of ids of any length with re-deliveries inside a window and outside it; no memory of what came before.

Of each thousand rows some repeat an id of the last ``within`` rows, one brings an id that was last seen before those
(it must be kept: the window has forgotten it), and the others bring new ids, numbered in order. Which rows do what is
the same in every thousand, so the number of any row is arithmetic, and what must be kept is known without asking a set.
Odd numbers are repeated inside the window, even ones once outside it. The first thousand rows have nothing to repeat
and are all kept.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["IdStream"]

PERIOD = 1_000
LATE = 500
"""The row of each thousand that comes after its window."""

EARLY = -(1 << 40)
"""Numbers from here on are those of rows that would repeat something, had there been anything."""

HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class IdStream:
    """Rows of a stream, by position."""

    within: int
    duplicates_percent: int
    kind: Literal["binary", "text"] = "binary"
    seed: int = 1

    def batch(self, start: int, stop: int) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_]]:
        """The rows ``[start, stop)``, and which of them must be kept."""
        rows = np.arange(start, stop, dtype=np.int64)
        kept = ~self._repeats(rows)
        numbers = self._new_before(rows)
        early = ~kept & (rows < PERIOD)
        numbers[early] = EARLY + rows[early]
        kept |= early
        numbers[~kept] = self._inside(rows[~kept])
        late = rows % PERIOD == LATE
        numbers[late] = self._outside(rows[late])
        column = _binary(numbers) if self.kind == "binary" else _text(numbers)
        return pa.RecordBatch.from_arrays([column], ["event_id"]), kept

    def _repeats(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        # 389 and 1,000 have no common divisor: the repeats lie scattered.
        return ((rows * 389) % PERIOD < 10 * self.duplicates_percent) & (rows % PERIOD != LATE)

    def _new_before(self, rows: Numbers) -> Numbers:
        """How many new ids come before each row."""
        pattern = np.arange(PERIOD)
        new = ~self._repeats(pattern) & (pattern != LATE)
        before = np.r_[0, np.cumsum(new)]
        return rows // PERIOD * int(before[-1]) + before[rows % PERIOD]

    def _inside(self, rows: Numbers) -> Numbers:
        """Odd numbers that came first at most ``within`` rows ago."""
        low, high = np.maximum(self._new_before(rows - self.within + 1), 0), self._new_before(rows) - 1
        span = np.maximum(high - low, 1).astype(np.uint64)
        chosen = low + (_mix(rows.astype(np.uint64) + np.uint64(self.seed)) % span).astype(np.int64)
        return np.where(chosen % 2 == 0, chosen + 1, chosen)

    def _outside(self, rows: Numbers) -> Numbers:
        """The last even numbers that came first more than ``within`` rows ago; a thousand rows apart, so each once."""
        return (self._new_before(rows - self.within) - 2) // 2 * 2


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: one to one, so different numbers are different ids."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _octets(numbers: Numbers) -> npt.NDArray[np.uint8]:
    words = np.empty((len(numbers), 2), "<u8")
    words[:, 0] = _mix(numbers.astype(np.uint64))
    words[:, 1] = _mix(words[:, 0] + np.uint64(0x9E3779B97F4A7C15))
    return words.view(np.uint8)


def _binary(numbers: Numbers) -> Any:
    return pa.Array.from_buffers(pa.binary(16), len(numbers), [None, pa.py_buffer(_octets(numbers))])


def _text(numbers: Numbers) -> Any:
    """As UUIDs are written: 36 characters."""
    octets = _octets(numbers)
    text = np.full((len(numbers), 36), ord("-"), np.uint8)
    places = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])
    text[:, places[0::2]] = HEX[octets >> 4]
    text[:, places[1::2]] = HEX[octets & 15]
    ends = np.arange(len(numbers) + 1, dtype=np.int32) * 36
    return pa.Array.from_buffers(pa.utf8(), len(numbers), [None, pa.py_buffer(ends), pa.py_buffer(text)])
