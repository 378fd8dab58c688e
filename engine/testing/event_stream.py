"""A stream of events as a value: how fast, how skewed, what comes again, late, out of order, poisoned or changed.

``workload.generate`` makes long streams for benchmarks; an ``EventStream`` is for tests that have to know what is in
it: beside each batch there is the ``Truth`` about its rows.

Laws
    - A batch, and the truth about it, is a function of the description and the batch's number: batches can be made in
      any order, in any process, without those before.
    - An event has a number: the offset of its first delivery. All its columns but ``offset`` are a function of the seed
      and that number, so a row that comes again is equal to the first one but for ``offset`` (and for drift).
    - A knob changes what it says and nothing else: each draws from a stream of random numbers of its own. Only drift
      depends on where batches begin.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.testing.schema_drift import Drift, drift_faults, drifted
from engine.testing.split_mix import Integers, Words, random_words, stream_of, unit

__all__ = ["Bursts", "EventStream", "Truth"]

Flags: TypeAlias = npt.NDArray[np.bool_]
Column: TypeAlias = "pa.Array[Any]"

FIRST_TIME_US = 1_750_000_000_000_000
"""Event times begin at 2025-06-15 15:06:40 UTC."""

MOST_DELAY_MEANS = 20
"""An exponential delay is cut at so many times its mean."""

REGIONS = ("africa", "antarctica", "asia", "europe", "north america", "oceania", "south america")
NO_PRICE = ("", "n/a")
HEX_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)

_ID_HIGH, _ID_LOW, _KEY, _HOT, _LATE, _LATENESS, _PRICE, _QUANTITY, _REGION, _PAYLOAD = range(10)
_AGAIN, _DELAY, _DISORDER, _POISON, _DRIFT = range(10, 15)


@dataclass(frozen=True, slots=True)
class Bursts:
    """Every ``every_s`` seconds end with ``length_s`` seconds in which rows come ``factor`` times as fast."""

    every_s: float
    length_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Truth:
    """What is so about the rows of a batch, row by row."""

    offsets: Integers
    events: Integers
    """The number of the event that each row delivers."""

    duplicates: Flags
    """Rows whose event has arrived before, in this batch or an earlier one."""

    poison: npt.NDArray[np.int8]
    """0 for a sound row, else one more than the index of its kind in ``EventStream.poison_kinds``."""

    late: Flags
    arrival_s: npt.NDArray[np.float64]
    """When each row arrives, in seconds since the beginning; ascending."""

    keys: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStream:
    """``rows`` rows, re-deliveries among them, in batches of ``batch_rows`` (the last may be shorter).

    Columns: ``offset`` int64, the place in the stream; ``event`` int64; ``event_id`` fixed_size_binary[16]; ``key``
    utf8; ``ts`` timestamp[us], the event time; ``price`` utf8, a number with two decimals; ``quantity`` int32, 1 to
    100; ``region`` dictionary<int8, utf8>; ``payload`` utf8, 32 characters. Raises ValueError for what cannot be.
    """

    rows: int
    seed: int
    batch_rows: int = 8_192
    keys: int = 1_000
    skew: float = 1.0
    """The exponent of Zipf's law over the keys; 0: all alike."""

    hot_share: float = 0.0
    """The share of events of the one key ``hot``, which is none of the others."""

    rate_per_s: float = 10_000.0
    bursts: Bursts | None = None
    redeliveries: float = 0.0
    """The share of rows that are re-deliveries, at most 0.9."""

    delay: Literal["fixed", "uniform", "exponential"] = "exponential"
    delay_rows: int = 1_000
    """How many offsets before a re-delivery the same event stands, first or again: the mean."""

    late: float = 0.0
    """The share of events whose time lies before their arrival, by up to ``lateness_s`` seconds, all alike likely."""

    lateness_s: float = 10.0
    disorder: float = 0.0
    """The share of rows that change places with others of the same ``disorder_rows``: offsets arrive out of order."""

    disorder_rows: int = 64
    poison: float = 0.0
    """The share of events that make a user's function fail."""

    poison_kinds: tuple[Literal["price", "quantity", "utf8"], ...] = ("price", "quantity")
    """How: ``price`` is no number, ``quantity`` is zero, ``payload`` is not UTF-8. All alike likely."""

    drifts: tuple[Drift, ...] = ()

    def __post_init__(self) -> None:
        faults = [*self._out_of_bounds(), *drift_faults(self.drifts)]
        if self.delay not in ("fixed", "uniform", "exponential"):
            faults.append(f"there is no delay {self.delay!r}")
        if not set(self.poison_kinds) <= {"price", "quantity", "utf8"} or (self.poison and not self.poison_kinds):
            faults.append(f"poison_kinds is {self.poison_kinds!r}; there are price, quantity and utf8")
        bursts = self.bursts
        if bursts is not None and not (0 < bursts.length_s < bursts.every_s and bursts.factor > 0):
            faults.append(f"{bursts!r}: length_s must lie between 0 and every_s, and factor above 0")
        if faults:
            raise ValueError("; ".join(faults))

    def _out_of_bounds(self) -> Iterator[str]:
        for name, most in (("redeliveries", 0.9), ("hot_share", 1), ("late", 1), ("disorder", 1), ("poison", 1)):
            share = getattr(self, name)
            if not 0 <= share <= most:
                yield f"{name} is {share}; it must lie between 0 and {most}"
        least = {"rows": 0, "seed": 0, "batch_rows": 1, "keys": 1, "delay_rows": 1, "disorder_rows": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                yield f"{name} is {getattr(self, name)}; it must be at least {minimum}"
        if self.skew < 0 or self.lateness_s < 0 or self.rate_per_s <= 0:
            yield "skew and lateness_s must not be negative, rate_per_s must be above 0"

    # The stream.

    @property
    def batch_count(self) -> int:
        """How many batches there are."""
        return -(-self.rows // self.batch_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches in order."""
        return map(self.batch, range(self.batch_count))

    def batch(self, number: int) -> pa.RecordBatch:
        """One batch, from 0 on. Raises IndexError."""
        offsets = self._offsets(*self._range(number))
        rows = self._columns(offsets, self._events(offsets))
        past = sorted((drift for drift in self.drifts if drift.batch <= number), key=lambda drift: drift.batch)
        return drifted(rows, past, stream_of(self.seed, _DRIFT))

    # What is so about it.

    def truths(self) -> Iterator[Truth]:
        """The truth about all batches in order."""
        return map(self.truth, range(self.batch_count))

    def truth(self, number: int) -> Truth:
        """The truth about one batch. Raises IndexError."""
        start, stop = self._range(number)
        offsets = self._offsets(start, stop)
        events = self._events(offsets)
        return Truth(
            offsets=offsets,
            events=events,
            duplicates=self._duplicates(start, stop),
            poison=self._poison(events),
            late=self._is_late(events),
            arrival_s=self._arrival_s(np.arange(start, stop, dtype=np.int64)),
            keys=self._keys(events),
        )

    def order_by_key(self, *, poison: bool = True) -> dict[str, list[int]]:
        """The events of each key in the order in which they first arrive: what leaves an exactly-once pipeline.

        Without ``poison``: those that a user's function lets pass.
        """
        order: dict[str, list[int]] = {}
        for truth in self.truths():
            wanted = ~truth.duplicates if poison else ~truth.duplicates & (truth.poison == 0)
            keys: list[Any] = truth.keys.filter(pa.array(wanted)).to_pylist()
            for key, event in zip(keys, truth.events[wanted].tolist(), strict=True):
                order.setdefault(key, []).append(event)
        return order

    # Which row is what: by arrival, by offset, by event.

    def _range(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self.batch_count:
            raise IndexError(f"there is no batch {number}; there are {self.batch_count}")
        start = number * self.batch_rows
        return start, min(start + self.batch_rows, self.rows)

    def _words(self, purpose: int, counters: Integers) -> Words:
        return random_words(stream_of(self.seed, purpose), counters)

    def _unit(self, purpose: int, counters: Integers) -> npt.NDArray[np.float64]:
        return unit(self._words(purpose, counters))

    def _group_of(self, places: Integers) -> Integers:
        """Rows change places within a group, never between two."""
        groups: Integers = places // (self.disorder_rows if self.disorder else 1)
        return groups

    def _widened(self, start: int, stop: int) -> tuple[int, int]:
        """Whole groups that hold these arrivals."""
        size = self.disorder_rows if self.disorder else 1
        return start // size * size, min(-(-stop // size) * size, self.rows)

    def _offsets(self, start: int, stop: int) -> Integers:
        """The offsets of the rows that arrive at the places [start, stop)."""
        first, last = self._widened(start, stop)
        offsets = np.arange(first, last, dtype=np.int64)
        if self.disorder:
            moving = offsets[self._unit(_DISORDER, offsets) < self.disorder]
            # Sorted by group, and within a group by chance: who moves takes the place of another one who moves.
            shuffled = np.lexsort((self._words(_DISORDER, ~moving), self._group_of(moving)))
            offsets[moving - first] = moving[shuffled]
        return offsets[start - first : stop - first]

    def _is_redelivery(self, offsets: Integers) -> Flags:
        return (self._unit(_AGAIN, offsets) < self.redeliveries) & (offsets > 0)

    def _events(self, offsets: Integers) -> Integers:
        """The events that are delivered at these offsets."""
        events = offsets.copy()
        if not self.redeliveries:
            return events
        again = np.flatnonzero(self._is_redelivery(events))
        while len(again):
            repeats = events[again]
            # The offset that is delivered again may itself be a re-delivery: then of the same event.
            events[again] = repeats - 1 - (self._delays(repeats) - 1) % repeats
            again = again[self._is_redelivery(events[again])]
        return events

    def _delays(self, offsets: Integers) -> Integers:
        if self.delay == "fixed":
            return np.full(len(offsets), self.delay_rows, np.int64)
        uniform = self._unit(_DELAY, offsets)
        if self.delay == "uniform":
            return 1 + (uniform * (2 * self.delay_rows - 1)).astype(np.int64)
        cut = np.minimum(-np.log1p(-uniform), MOST_DELAY_MEANS)
        delays: Integers = 1 + np.rint(cut * (self.delay_rows - 1)).astype(np.int64)
        return delays

    def _duplicates(self, start: int, stop: int) -> Flags:
        """Whether the event of each arrival has arrived before."""
        first, last = self._widened(start, stop)
        events = self._events(self._offsets(first, last))
        # An event's first delivery is in the group of its number, as are all that may arrive before it.
        at_home = np.flatnonzero(self._group_of(events) == self._group_of(np.arange(first, last, dtype=np.int64)))
        duplicates = np.ones(last - first, np.bool_)
        _, firsts = np.unique(events[at_home], return_index=True)
        duplicates[at_home[firsts]] = False
        return duplicates[start - first : stop - first]

    def _poison(self, events: Integers) -> npt.NDArray[np.int8]:
        words = self._words(_POISON, events)
        kinds = 1 + words % np.uint64(max(1, len(self.poison_kinds)))
        return np.where(unit(words) < self.poison, kinds, 0).astype(np.int8)

    def _is_late(self, events: Integers) -> Flags:
        return self._unit(_LATE, events) < self.late

    def _arrival_s(self, places: Integers) -> npt.NDArray[np.float64]:
        if self.bursts is None:
            return places / self.rate_per_s
        every_s, burst_s, factor = self.bursts.every_s, self.bursts.length_s, self.bursts.factor
        calm_s = every_s - burst_s
        calm_rows = calm_s * self.rate_per_s
        period, within = np.divmod(places, calm_rows + burst_s * factor * self.rate_per_s)
        in_burst = np.maximum(within - calm_rows, 0) / (factor * self.rate_per_s)
        return period * every_s + np.minimum(within, calm_rows) / self.rate_per_s + in_burst

    # The columns.

    def _columns(self, offsets: Integers, events: Integers) -> pa.RecordBatch:
        poison = self._poison(events)
        kinds = {kind: poison == index + 1 for index, kind in enumerate(self.poison_kinds)}
        clean = np.zeros(len(events), np.bool_)
        quantity = 1 + (self._words(_QUANTITY, events) % np.uint64(100)).astype(np.int32)
        quantity[kinds.get("quantity", clean)] = 0
        codes = (self._words(_REGION, events) % np.uint64(len(REGIONS))).astype(np.int8)
        return pa.RecordBatch.from_pydict(
            {
                "offset": pa.array(offsets),
                "event": pa.array(events),
                "event_id": self._ids(events),
                "key": self._keys(events),
                "ts": self._times(events),
                "price": self._prices(events, kinds.get("price", clean)),
                "quantity": pa.array(quantity),
                "region": pa.DictionaryArray.from_arrays(_array(codes), _array(REGIONS)),
                "payload": self._payloads(events, kinds.get("utf8", clean)),
            }
        )

    def _ids(self, events: Integers) -> Column:
        words = np.stack([self._words(_ID_HIGH, events), self._words(_ID_LOW, events)], axis=1)
        return pa.Array.from_buffers(pa.binary(16), len(events), [None, _buffer(words.astype("<u8"))])

    def _keys(self, events: Integers) -> Column:
        names, cumulative = _zipf(self.keys, self.skew)
        rank = np.searchsorted(cumulative, self._unit(_KEY, events), side="right")
        key = np.minimum(rank, self.keys - 1)
        key[self._unit(_HOT, events) < self.hot_share] = self.keys
        found: Column = names.take(_array(key))
        return found

    def _times(self, events: Integers) -> Column:
        time_us = self._arrival_s(events) * 1e6
        if self.late:
            time_us -= np.where(self._is_late(events), self._unit(_LATENESS, events) * self.lateness_s * 1e6, 0)
        return pa.array(FIRST_TIME_US + np.floor(time_us).astype(np.int64)).cast(pa.timestamp("us"))

    def _prices(self, events: Integers, poison: Flags) -> Column:
        words = self._words(_PRICE, events)
        cents = (words % np.uint64(1_000_000)).astype(np.int64)
        whole: Any = pa.array(cents // 100).cast(pa.utf8())
        rest: Any = pc.utf8_lpad(pa.array(cents % 100).cast(pa.utf8()), 2, "0")
        prices: Any = pc.binary_join_element_wise(whole, rest, ".")
        none = _array(NO_PRICE).take(_array((words >> np.uint64(63)).astype(np.int8)))
        found: Column = pc.if_else(_array(poison), none, prices)
        return found

    def _payloads(self, events: Integers, poison: Flags) -> Column:
        words = np.stack([self._words(_PAYLOAD, events), self._words(_PAYLOAD, ~events)], axis=1)
        octets = words.astype("<u8").view(np.uint8)
        text = np.stack([HEX_DIGITS[octets >> 4], HEX_DIGITS[octets & 15]], axis=2).reshape(-1, 32)
        text[poison, 16] = 0xFF
        ends = np.arange(len(events) + 1, dtype=np.int32) * 32
        return pa.Array.from_buffers(pa.utf8(), len(events), [None, _buffer(ends), _buffer(text)])


def _array(values: Any) -> Any:
    return pa.array(values)


def _buffer(values: Any) -> pa.Buffer:
    return pa.py_buffer(values)


@lru_cache(maxsize=8)
def _zipf(keys: int, skew: float) -> tuple[Any, npt.NDArray[np.float64]]:
    """The names of the keys, ``hot`` behind them, and the cumulative share of the ranks."""
    weight = 1.0 / np.arange(1, keys + 1) ** skew
    names = pa.array([*(f"key-{key:06}" for key in range(keys)), "hot"])
    return names, np.cumsum(weight / weight.sum())
