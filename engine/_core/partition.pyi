"""Partitioning of whole batches by key, and gathering of selected rows. Thread-safe."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import Buffer as BufferProtocol

from engine._core.arrow_c import ArrowArrayExporter
from engine._core.pool import Buffer

@final
class Partitioner:
    """Splits batches by the hash of key columns into 1 to 1,024 partitions. ValueError for anything else."""

    def __init__(self, columns: Sequence[int], partitions: int) -> None: ...
    @property
    def columns(self) -> tuple[int, ...]: ...
    @property
    def partitions(self) -> int: ...
    def partition(self, batch: ArrowArrayExporter, selection: BufferProtocol | None = None) -> list[pa.RecordBatch]:
        """One batch a partition, by index, rows in input order. ValueError, IndexError."""
    def partition_all(
        self, batches: Sequence[ArrowArrayExporter], selections: Sequence[BufferProtocol | None]
    ) -> list[pa.RecordBatch]:
        """The same for several batches of one schema that is `joinable`, each with its selection."""

def gather(batch: ArrowArrayExporter, selection: BufferProtocol | None) -> pa.RecordBatch:
    """The wanted rows (one byte a row, 0 is not wanted); the batch itself when all are wanted. ValueError."""

def gather_all(batches: Sequence[ArrowArrayExporter], selections: Sequence[BufferProtocol | None]) -> pa.RecordBatch:
    """The wanted rows of several batches of one schema that is `joinable`, one behind the other. ValueError."""

def take(column: pa.Array[Any] | pa.ChunkedArray[Any], indices: pa.Array[Any] | npt.NDArray[np.int64]) -> Any:
    """The rows of a column of any type, by index. ArrowNotImplementedError."""

def without_views(type: pa.DataType) -> Any:
    """The type with text and bytes in the place of views of them, at every depth."""

def joinable(schema: pa.Schema) -> bool:
    """Whether rows of several batches of this schema can go to one output: no dictionaries, views, nested columns."""

def key_groups(batch: ArrowArrayExporter, columns: Sequence[int]) -> Buffer:
    """One uint16 a row: the key group, 0 to 32,767. ValueError, IndexError."""

def combine_selection(selection: BufferProtocol | None, mask: ArrowArrayExporter, length: int) -> tuple[Buffer, int]:
    """A new selection and its count: wanted before, and true (not null) in `mask`. ValueError."""
