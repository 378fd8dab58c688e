"""Seeded event streams as a broker delivers them: skewed keys, late event times, rows that arrive again.

``generate`` makes a synthetic stream of any length; ``redeliver`` injects re-deliveries into a real table.

Laws
    - An *event* has a number (0, 1, 2 … in order of first delivery) and every column of it is a function of the seed
      and that number alone; ``seq`` also counts the earlier events of the same key. So the same seed gives the same
      rows whatever the size of a batch, and a row that is delivered again is equal to its first delivery but for the
      column that counts deliveries.
    - Which rows are re-deliveries, and of which event, is a function of the seed and the row's position. Every stretch
      of ``1 / share`` rows holds exactly one, so the share is exact to one row at every length.
    - A re-delivery comes at most ``max_distance`` rows after the first delivery of its event.
    - Memory does not grow with the number of rows: 4 bytes for each row of ``max_distance``, 8 more in ``generate``,
      and a table of the keys.

``split_mix`` makes the random numbers, by counter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.testing.split_mix import Integers, random_words, stream_of, unit

__all__ = ["generate", "redeliver"]

Column: TypeAlias = "pa.Array[Any]"

# The unit in which rows are computed: small enough for its columns to stay in cache, and the usual size of a batch.
BLOCK_ROWS = 65_536

# Event times begin here: 2025-06-15 15:06:40 UTC, in microseconds.
FIRST_TIME_US = 1_750_000_000_000_000

ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789 =/&?_-.", dtype=np.uint8)
HEX_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)

# Payloads are cut from a text so long that a compressor's window (32 to 64 KiB) rarely sees a piece twice.
TEXT_BYTES = 1 << 22
PAYLOAD_MIN_BYTES, PAYLOAD_MAX_BYTES = 30, 50


def generate(
    rows: int,
    *,
    seed: int,
    keys: int = 100_000,
    skew: float = 1.0,
    redeliveries: float = 0.1,
    max_distance: int = 1_000_000,
    lateness_s: float = 0.0,
    rate_per_s: float = 10_000.0,
    id: Literal["binary", "uuid"] = "binary",
    batch_rows: int = 65_536,
) -> Iterator[pa.RecordBatch]:
    """Stream ``rows`` rows, re-deliveries among them, in batches of ``batch_rows`` (the last may be shorter).

    Columns: ``event_id`` fixed_size_binary[16] (with ``id="uuid"``: utf8, 36 characters; the same ids), unique but for
    re-deliveries; ``key`` utf8, Zipf-distributed with exponent ``skew`` over ``keys`` values (0: uniform); ``seq``
    int64, 0, 1, 2 … per key in order of first delivery; ``ts`` timestamp[us], the event time; ``amount`` float64, gamma
    distributed, two decimals; ``payload`` utf8, 30 to 50 ASCII characters; ``delivery`` int32, 0 for the first delivery
    of an event, then 1, 2 …

    ``redeliveries`` is the share of all rows that are re-deliveries, at most 0.5; each comes at most ``max_distance``
    rows after the first delivery. New events arrive ``rate_per_s`` a second in event time; an event's time lies up to
    ``lateness_s`` before its arrival (mostly far less), so with 0 the times of first deliveries never go back.
    Raises ValueError for arguments outside these bounds.
    """
    if rows < 0 or batch_rows < 1 or keys < 1:
        raise ValueError("rows must be at least 0, batch_rows and keys at least 1")
    if skew < 0 or lateness_s < 0 or rate_per_s <= 0:
        raise ValueError("skew and lateness_s must not be negative, rate_per_s must be positive")
    if id not in ("binary", "uuid"):
        raise ValueError(f'id must be "binary" or "uuid", not {id!r}')
    plan = _Plan(stream_of(seed, _PLAN), redeliveries, max_distance)
    events = _Events(seed, keys, skew, lateness_s, rate_per_s, id, plan.window_rows)
    return _cut(_blocks(plan, events, rows), batch_rows)


def redeliver(
    table: pa.Table, *, seed: int, share: float, max_distance: int, delivery_column: str | None = "delivery"
) -> pa.Table:
    """The rows of ``table`` in order, with re-deliveries of earlier rows in between.

    ``share`` is the share of re-deliveries among the rows of the result, at most 0.5; each comes at most
    ``max_distance`` rows after the row that it repeats. ``delivery_column`` (int32; None: no such column) is added
    behind the others and holds 0 for a first delivery, then 1, 2 … Raises ValueError for arguments outside these
    bounds, and where the table has a column of that name already.
    """
    if delivery_column is not None and delivery_column in table.column_names:
        raise ValueError(f'the table has a column "{delivery_column}" already; choose another delivery_column')
    plan = _Plan(stream_of(seed, _PLAN), share, max_distance)
    events: list[Integers] = [np.empty(0, np.int64)]
    deliveries: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    start, missing = 0, table.num_rows
    while missing:
        block = plan.block(start, start + BLOCK_ROWS)
        fresh = block.deliveries == 0
        # Ends with the last row of the table: re-deliveries behind it are left out.
        stop = BLOCK_ROWS if np.count_nonzero(fresh) < missing else int(np.flatnonzero(fresh)[missing - 1]) + 1
        missing -= int(np.count_nonzero(fresh[:stop]))
        events.append(block.events[:stop])
        deliveries.append(block.deliveries[:stop])
        start += stop
    result = table.combine_chunks().take(_indices(np.concatenate(events)))
    if delivery_column is None:
        return result
    return result.append_column(delivery_column, pa.array(np.concatenate(deliveries)))


_PLAN, _ID_HIGH, _ID_LOW, _KEY, _TIME, _LATENESS, _AMOUNT, _PAYLOAD, _TABLES = range(9)


@dataclass(frozen=True, slots=True)
class _Block:
    """For each row of a stretch: the event that it delivers, and for which time (0: the first)."""

    events: Integers
    deliveries: npt.NDArray[np.int32]


class _Plan:
    """Which row delivers which event.

    Rows are cut into strata of ``1 / share`` rows; one random row of each is a re-delivery, all others deliver the next
    new event. A stratum has at least 2 rows, so of three rows in succession one delivers a new event: with a distance
    of 2 or more there is always one to repeat.
    """

    def __init__(self, stream: int, share: float, max_distance: int) -> None:
        if not 0 <= share <= 0.5:
            raise ValueError(f"the share of re-deliveries must lie between 0 and 0.5, not {share}")
        if max_distance < 2:
            raise ValueError(f"max_distance must be at least 2 rows, not {max_distance}")
        self._stream = stream
        self._choice = stream ^ 0x5851F42D4C957F2D
        self._share = share
        self._max_distance = max_distance
        self.window_rows = max_distance + BLOCK_ROWS
        self._delivered = np.zeros(self.window_rows, np.int32)

    def block(self, start: int, stop: int) -> _Block:
        """Plan rows ``[start, stop)``, at most BLOCK_ROWS. Called for adjoining stretches, from row 0."""
        rows = np.arange(start, stop, dtype=np.int64)
        if not self._share:
            return _Block(rows, np.zeros(len(rows), np.int32))
        events, again = self._new_before(rows)
        deliveries = np.zeros(len(rows), np.int32)
        self._delivered[events[~again] % self.window_rows] = 0
        repeats = rows[again]
        first, _ = self._new_before(np.maximum(repeats - self._max_distance, 0))
        span = (events[again] - first).astype(np.uint64)
        chosen = first + (random_words(self._choice, repeats) % span).astype(np.int64)
        events[again] = chosen
        deliveries[again] = self._count(chosen)
        return _Block(events, deliveries)

    def _new_before(self, rows: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """How many new events come before each row, and whether the row itself is a re-delivery."""
        stratum = (rows * self._share).astype(np.int64)
        # The product may round across the border of a stratum; the borders themselves are exact.
        stratum -= self._border(stratum) > rows
        stratum += self._border(stratum + 1) <= rows
        begin = self._border(stratum)
        size = (self._border(stratum + 1) - begin).astype(np.uint64)
        # Row 0 cannot repeat anything: the first stratum draws from its other rows.
        skip = (stratum == 0).astype(np.uint64)
        repeat = begin + (random_words(self._stream, stratum) % (size - skip) + skip).astype(np.int64)
        return rows - stratum - (repeat < rows), repeat == rows

    def _border(self, stratum: Integers) -> Integers:
        return np.ceil(stratum / self._share).astype(np.int64)

    def _count(self, events: Integers) -> npt.NDArray[np.int32]:
        """The number of each of these deliveries, in order, and remember them."""
        rank = _rank(events)
        slots = events % self.window_rows
        deliveries = self._delivered[slots] + rank.astype(np.int32) + np.int32(1)
        np.maximum.at(self._delivered, slots, deliveries)
        return deliveries


def _rank(values: Integers) -> Integers:
    """How many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[: len(values)]
    starts = np.repeat(first, np.diff(np.r_[first, len(values)]))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - starts
    return rank


def _indices(rows: Integers) -> Any:
    return pa.array(rows)


def _buffer(values: Any) -> pa.Buffer:
    return pa.py_buffer(values)


class _Events:
    """The columns of any event that is new or at most ``window_rows`` old."""

    def __init__(
        self, seed: int, keys: int, skew: float, lateness_s: float, rate_per_s: float, id: str, window_rows: int
    ) -> None:
        self._stream = [stream_of(seed, purpose) for purpose in range(_TABLES)]
        self._lateness_us, self._gap_us, self._uuid = lateness_s * 1e6, 1e6 / rate_per_s, id == "uuid"
        draw = np.random.Generator(np.random.PCG64(stream_of(seed, _TABLES)))
        weight = 1.0 / np.arange(1, keys + 1) ** skew
        self._cumulative = np.cumsum(weight / weight.sum())
        self._key_of_rank = draw.permutation(keys)
        digits = max(6, len(str(keys - 1)))
        self._names = pa.array([f"user-{key:0{digits}}" for key in range(keys)], pa.utf8())
        self._text = ALPHABET[draw.integers(0, len(ALPHABET), TEXT_BYTES, dtype=np.uint8)]
        self._events_of_key = np.zeros(keys, np.int64)
        self._seq = np.zeros(window_rows, np.int64)

    def columns(self, events: Integers, new: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """The columns of these events; the new ones in order, without a gap, each exactly once."""
        rank = np.searchsorted(self._cumulative, unit(random_words(self._stream[_KEY], events)), side="right")
        key = self._key_of_rank[np.minimum(rank, len(self._key_of_rank) - 1)]
        fresh = key[new]
        slots = events % len(self._seq)
        self._seq[slots[new]] = self._events_of_key[fresh] + _rank(fresh)
        self._events_of_key += np.bincount(fresh, minlength=len(self._events_of_key))
        return {
            "event_id": self._ids(events),
            "key": self._names.take(_indices(key)),
            "seq": pa.array(self._seq[slots]),
            "ts": self._times(events),
            "amount": self._amounts(events),
            "payload": self._payloads(events),
        }

    def _ids(self, events: Integers) -> Column:
        raw = np.empty((len(events), 2), np.uint64)
        raw[:, 0] = random_words(self._stream[_ID_HIGH], events)
        raw[:, 1] = random_words(self._stream[_ID_LOW], events)
        octets = raw.astype("<u8", copy=False).view(np.uint8).reshape(-1, 16)
        # A random UUID (version 4, variant 1), so that both forms name the same id.
        octets[:, 6] = octets[:, 6] & 0x0F | 0x40
        octets[:, 8] = octets[:, 8] & 0x3F | 0x80
        if not self._uuid:
            return pa.Array.from_buffers(pa.binary(16), len(events), [None, _buffer(octets)])
        text = np.full((len(events), 36), ord("-"), np.uint8)
        places = [place for place in range(36) if place not in (8, 13, 18, 23)]
        for octet in range(16):
            text[:, places[2 * octet]] = HEX_DIGITS[octets[:, octet] >> 4]
            text[:, places[2 * octet + 1]] = HEX_DIGITS[octets[:, octet] & 15]
        ends = np.arange(len(events) + 1, dtype=np.int32) * 36
        return pa.Array.from_buffers(pa.utf8(), len(events), [None, _buffer(ends), _buffer(text)])

    def _times(self, events: Integers) -> Column:
        arrival = (events + unit(random_words(self._stream[_TIME], events))) * self._gap_us
        if self._lateness_us:
            # The cube keeps most rows nearly on time and makes a few as late as is allowed.
            arrival -= unit(random_words(self._stream[_LATENESS], events)) ** 3 * self._lateness_us
        times = FIRST_TIME_US + np.floor(arrival).astype(np.int64)
        return pa.array(times).cast(pa.timestamp("us"))

    def _amounts(self, events: Integers) -> Column:
        # The sum of two exponentials is a gamma distribution with shape 2; it comes from two halves of one number.
        words = random_words(self._stream[_AMOUNT], events)
        one = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
        two = ((words & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) * 2.0**-32
        return pa.array(np.round(-30.0 * np.log(one * two), 2))

    def _payloads(self, events: Integers) -> Column:
        words = random_words(self._stream[_PAYLOAD], events)
        sizes = (words % np.uint64(PAYLOAD_MAX_BYTES + 1 - PAYLOAD_MIN_BYTES)).astype(np.int32) + PAYLOAD_MIN_BYTES
        quads = self._text.view(np.int32)
        starts = (words >> np.uint64(32)).astype(np.int64) % (len(quads) - PAYLOAD_MAX_BYTES)
        # Arrow's view layout: size, first four bytes, buffer, offset. Making it plain copies each piece once.
        views = np.zeros((len(events), 4), np.int32)
        views[:, 0] = sizes
        views[:, 1] = quads[starts]
        views[:, 3] = starts * 4
        buffers = [None, _buffer(views), _buffer(self._text)]
        return pa.Array.from_buffers(pa.string_view(), len(events), buffers).cast(pa.utf8())


def _blocks(plan: _Plan, events: _Events, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, BLOCK_ROWS):
        block = plan.block(start, min(start + BLOCK_ROWS, rows))
        columns = events.columns(block.events, block.deliveries == 0)
        yield pa.RecordBatch.from_pydict(columns | {"delivery": pa.array(block.deliveries)})


def _cut(blocks: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ``batch_rows``."""
    held: list[pa.RecordBatch] = []
    held_rows = 0
    for block in blocks:
        held.append(block)
        held_rows += block.num_rows
        if held_rows < batch_rows:
            continue
        whole = _joined(held) if len(held) > 1 else block
        cut = held_rows - held_rows % batch_rows
        for start in range(0, cut, batch_rows):
            yield whole.slice(start, batch_rows)
        held, held_rows = ([whole.slice(cut)], held_rows - cut) if cut < held_rows else ([], 0)
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    joined: pa.RecordBatch = pa.concat_batches(batches)  # type: ignore[attr-defined]  # the stubs lack it
    return joined
