"""Whole batches by key, each contender in a child process: Polars takes its number of threads from the environment.

Laws
    - There are so many batches that none is in a cache when its turn comes again; a pass that is not timed gives every
      allocator its pages.
    - The parts of a batch are let go before the next one: as behind a sink, and so that memory can be used again.
    - ``seq`` holds the number of the row, so the parts themselves tell their order. Two more columns, where they are
      wanted, are keys of a known skew.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from contest import Contender
from job_outcome import Digest

from engine import HashPartitioner

__all__ = ["batches_of", "engine", "expected", "polars", "pyarrow_filter", "pyarrow_take"]

BATCHES = 64

Parts: TypeAlias = "list[tuple[int, Any]]"
"""Number and rows of each partition that has any."""


def batches_of(source: str, skewed: bool) -> list[pa.RecordBatch]:
    """The inputs, in memory of this process; with the columns ``even`` and ``uneven`` (90 % one key) if ``skewed``."""
    with pa.OSFile(source) as file, pa.ipc.open_file(file) as reader:
        batches = [reader.get_batch(index) for index in range(min(BATCHES, reader.num_record_batches))]
    numbered, start, draw = [], 0, np.random.default_rng(9)
    for batch in batches:
        rows = batch.num_rows
        batch = batch.set_column(2, "seq", pa.array(np.arange(start, start + rows)))
        if skewed:
            even = draw.integers(1, 100_000, rows)
            batch = batch.append_column("even", pa.array(even))
            batch = batch.append_column("uneven", pa.array(np.where(draw.random(rows) < 0.9, 0, even)))
        numbered.append(batch)
        start += rows
    return numbered


def engine(source: str, ways: int, key: str = "key", skewed: bool = False) -> Contender:
    """Ours, through the public API."""
    partitioner = HashPartitioner(key, partitions=ways)
    return _contender(batches_of(source, skewed), key, lambda batch: list(enumerate(partitioner.partition(batch))))


def polars(source: str, ways: int, key: str = "key", skewed: bool = False) -> Contender:
    """Its own frames in and out: what converting from and to Arrow costs is not counted."""
    import polars as pl

    def partition(frame: pl.DataFrame) -> Parts:
        numbered = frame.with_columns(part=pl.col(key).hash() % ways)
        parts = numbered.partition_by("part", maintain_order=True, include_key=False, as_dict=True)
        return [(number, part) for (number,), part in parts.items()]

    frames = [pl.from_arrow(pa.Table.from_batches([batch])) for batch in batches_of(source, skewed)]
    return _contender(frames, key, partition)


def pyarrow_take(source: str, ways: int) -> Contender:
    """Sort by partition, take, slice. It has no hash of rows, so it is given the number of each row's partition."""

    def partition(batch: pa.RecordBatch) -> Parts:
        numbers = batch.column("part")
        rows = batch.take(pc.sort_indices(numbers))
        ends = np.searchsorted(rows.column("part").to_numpy(), np.arange(ways + 1))
        return [(way, rows.slice(ends[way], ends[way + 1] - ends[way])) for way in range(ways)]

    return _contender(_numbered(source, ways), "key", partition)


def pyarrow_filter(source: str, ways: int) -> Contender:
    """A filter for each partition; given the numbers, too."""

    def partition(batch: pa.RecordBatch) -> Parts:
        numbers = batch.column("part")
        return [(way, batch.filter(pc.equal(numbers, pa.scalar(way, numbers.type)))) for way in range(ways)]

    return _contender(_numbered(source, ways), "key", partition)


def expected(source: str) -> list[Any]:
    """What every contender must answer: all rows, no key in two partitions, no row out of order."""
    digest = Digest()
    for batch in batches_of(source, skewed=False):
        digest.add(batch)
    return [digest.rows, str(digest), 0, 0]


def _numbered(source: str, ways: int) -> list[pa.RecordBatch]:
    """With the partition of each row as a column: of the kind that sorts fastest."""
    batches = batches_of(source, skewed=False)
    partitioner = HashPartitioner("key", partitions=ways)
    for index, batch in enumerate(batches):
        number = np.empty(batch.num_rows, np.uint8)
        first = batch.column("seq")[0].as_py()
        for way, part in enumerate(partitioner.partition(batch)):
            number[part.column("seq").to_numpy() - first] = way
        batches[index] = batch.append_column("part", pa.array(number))
    return batches


def _contender(inputs: list[Any], key: str, partition: Callable[[Any], Parts]) -> Contender:
    def run() -> int:
        return sum(len(partition(rows)) for rows in inputs)

    run()
    return Contender("", run, lambda parts: _tally(map(partition, inputs), key))


def _tally(pieces: Iterable[Parts], key: str) -> tuple[int, str, int, int]:
    """Rows, a digest of them, keys that are in a second partition, and rows out of order."""
    digest = Digest()
    owner: dict[Any, int] = {}
    last: dict[int, int] = {}
    torn = breaks = 0
    for parts in pieces:
        for partition, part in parts:
            rows = pa.table(part).combine_chunks()
            for batch in rows.to_batches():
                digest.add(batch)
            seq = np.r_[last.get(partition, -1), rows["seq"].to_numpy()]
            breaks += int(np.count_nonzero(seq[1:] <= seq[:-1]))
            last[partition] = int(seq[-1])
            for value in rows[key].unique().to_pylist():
                torn += owner.setdefault(value, partition) != partition
    return digest.rows, str(digest), torn, breaks
