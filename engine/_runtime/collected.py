"""The sink behind ``collect``: keeps rows in memory, partition by partition."""

from collections.abc import Sequence

import pyarrow as pa

from engine.batch import Origin
from engine.progress import Token
from engine.sink import Guarantee, Handle, Writer

__all__ = ["Collected"]


class Collected:
    """Rows in memory. Nothing is durable, so nothing is committed."""

    name = "collect"
    guarantee = Guarantee.AT_LEAST_ONCE

    def __init__(self) -> None:
        self._schema: pa.Schema | None = None
        self._batches: list[list[pa.RecordBatch]] = []

    def table(self) -> pa.Table:
        """All rows: those of partition 0 first, each partition in order."""
        return pa.Table.from_batches([rows for batches in self._batches for rows in batches], schema=self._schema)

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Begin with no rows."""
        self._schema = schema
        self._batches = [[] for _ in range(partitions)]

    def writer(self, partition: int, token: Token) -> Writer:
        """A writer that appends to the partition's rows."""
        return _Writer(self._batches[partition])

    def commit(self, handles: Sequence[Handle]) -> None:
        """Nothing to publish."""

    def discard_after(self, token: Token) -> None:
        """Nothing was staged."""


class _Writer:
    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._batches = batches

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        self._batches.append(rows)

    def prepare(self) -> Handle | None:
        return None

    def abort(self) -> None:
        pass
