"""Schema drift of a made stream: from a given batch on, its rows have other columns, types, dictionaries or order.

Law: what a value means never changes, only how it is held; columns that are added hold the event's number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from engine.testing.split_mix import random_words

__all__ = ["Drift", "drift_faults", "drifted"]

WIDENED = (pa.int64(), pa.float64())
"""What ``quantity``, an int32, becomes at the first and the second widening."""


@dataclass(frozen=True, slots=True)
class Drift:
    """From batch number ``batch`` on: a column ``added_1`` (``added_2`` …) behind the others; ``quantity`` int64, then
    float64; ``region`` with its dictionary in another order; or the columns in another order.
    """

    batch: int
    kind: Literal["add", "widen", "dictionary", "reorder"]


def drift_faults(drifts: Sequence[Drift]) -> list[str]:
    """Why there cannot be such drifts."""
    faults = [f"there is no drift {drift.kind!r}" for drift in drifts if drift.kind not in _APPLY]
    if sum(drift.kind == "widen" for drift in drifts) > len(WIDENED):
        faults.append(f"quantity can be widened {len(WIDENED)} times")
    return faults


def drifted(rows: pa.RecordBatch, drifts: Sequence[Drift], stream: int) -> pa.RecordBatch:
    """The same rows behind these drifts, the earliest first. ``stream`` gives the random orders."""
    count: dict[str, int] = {}
    for drift in drifts:
        count[drift.kind] = number = count.get(drift.kind, 0) + 1
        rows = _APPLY[drift.kind](rows, number, stream)
    return rows


def _add(rows: pa.RecordBatch, number: int, stream: int) -> pa.RecordBatch:
    return rows.append_column(f"added_{number}", rows.column("event"))


def _widen(rows: pa.RecordBatch, number: int, stream: int) -> pa.RecordBatch:
    index = rows.schema.get_field_index("quantity")
    return rows.set_column(index, "quantity", rows.column(index).cast(WIDENED[number - 1]))


def _dictionary(rows: pa.RecordBatch, number: int, stream: int) -> pa.RecordBatch:
    index = rows.schema.get_field_index("region")
    column: Any = rows.column(index)
    order = _order(len(column.dictionary), stream, number)
    codes = pa.array(np.argsort(order).astype(np.int8)[column.indices.to_numpy()])
    names: Any = column.dictionary.take(pa.array(order))
    return rows.set_column(index, "region", pa.DictionaryArray.from_arrays(codes, names))


def _reorder(rows: pa.RecordBatch, number: int, stream: int) -> pa.RecordBatch:
    order = _order(rows.num_columns, stream, number)
    return rows.select([rows.schema.names[index] for index in order])


def _order(count: int, stream: int, number: int) -> list[int]:
    """A random order of so many, never the one that is there."""
    order: list[int] = np.argsort(random_words(stream, np.arange(count) + (number << 20))).tolist()
    return order if order != sorted(order) else order[::-1]


_APPLY = {"add": _add, "widen": _widen, "dictionary": _dictionary, "reorder": _reorder}
