"""What flows: one Arrow record batch with where it came from and which of its rows are still wanted.

Laws
    - A batch is never changed in place; a stage makes a new one.
    - ``selection`` is one byte a row (1: wanted), or None for all rows. Stages that drop rows only narrow the
      selection; the next gather (an exchange, a map, a sink) copies the wanted rows, so that columns are touched once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from engine._core.partition import gather, gather_all, joinable

__all__ = ["Batch", "Origin", "Selection", "zero_rows"]

KERNEL_ROWS = 512
"""Rows a batch from which it pays to cross to our kernel, which copies into recycled memory; pyarrow crosses faster."""

Selection = Any
"""A buffer of one byte a row, 1 for a row that is still wanted."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows came from: rows ``[start, stop)`` of ``location`` (a file, or the source itself)."""

    source: str
    location: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.location} rows {self.start:,}-{self.stop:,}"

    def through(self, other: "Origin") -> "Origin":
        """The origin of rows from here to ``other``, for pieces that travel together."""
        if other.location == self.location:
            return replace(self, start=min(self.start, other.start), stop=max(self.stop, other.stop))
        return replace(self, location=f"{self.location} … {other.location}", stop=other.stop)


@dataclass(frozen=True, slots=True)
class Batch:
    """A record batch, its origin, and its selection."""

    rows: pa.RecordBatch
    origin: Origin
    selection: Selection | None = None
    selected: int = -1
    """How many rows are wanted; -1 stands for all of them."""

    _size_bytes: int = field(default=-1, init=False, repr=False, compare=False)

    @property
    def row_count(self) -> int:
        """The number of rows that are still wanted."""
        return self.rows.num_rows if self.selected < 0 else self.selected

    @property
    def size_bytes(self) -> int:
        """Bytes of the Arrow data, wanted or not: what the batch keeps in memory."""
        if self._size_bytes < 0:
            object.__setattr__(self, "_size_bytes", int(self.rows.nbytes))
        return self._size_bytes

    def measured(self) -> "Batch":
        """Itself, its bytes added up: on a worker that is done beside the loop, which else has to do it."""
        _ = self.size_bytes
        return self

    def narrowed(self, selection: Selection, selected: int) -> "Batch":
        """The same rows with a narrower selection."""
        if selected == self.rows.num_rows:
            selection, selected = None, -1
        narrowed = replace(self, selection=selection, selected=selected)
        object.__setattr__(narrowed, "_size_bytes", self._size_bytes)
        return narrowed

    def gathered(self) -> "Batch":
        """The wanted rows alone, copied once; itself where all are wanted."""
        if self.selection is None:
            return self
        return Batch(gather(self.rows, self.selection), self.origin)

    def with_rows(self, rows: pa.RecordBatch) -> "Batch":
        """Other rows made of these, all of them wanted."""
        return Batch(rows, self.origin)

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "list[Batch]":
        """The wanted rows of all in one batch, copied; apart where their dictionaries or texts do not fit into one."""
        if len(batches) < 2:
            return list(batches)
        schema = batches[0].rows.schema
        origin = batches[0].origin.through(batches[-1].origin)
        rows = sum(batch.rows.num_rows for batch in batches)
        by_kernel = (
            rows >= KERNEL_ROWS * len(batches)
            and joinable(schema)
            and all(batch.rows.schema.equals(schema) for batch in batches[1:])
        )
        try:
            if by_kernel:
                return [cls(gather_all([b.rows for b in batches], [b.selection for b in batches]), origin)]
            whole = pa.concat_batches([batch.gathered().rows for batch in batches])  # type: ignore[attr-defined]
        except (pa.ArrowException, OverflowError):
            return [batch.gathered() for batch in batches]
        return [cls(whole, origin)]


def zero_rows(schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of no rows. Made of nulls, as ``pyarrow.array`` imports pandas where that is installed."""
    columns = [pa.nulls(0, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
