"""Sums up rows, whoever wrote them: so that all contenders of a contest can be held to one answer.

Laws
    - Every column of every row counts; the order of rows does not, except among the rows of one key.
    - Equal values count equally in whatever Arrow form a library gives them (utf8, large, views, fixed-size binary).
    - NumPy only: no kernel that is measured here checks itself.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

__all__ = [
    "FACTOR",
    "SCHEMA",
    "Digest",
    "Outcome",
    "breaks_by_key",
    "outcome_expected",
    "outcome_of",
    "outcome_of_files",
    "partition_files",
]

FACTOR = 1.1
"""By which the jobs multiply the amount."""

SCHEMA = pa.schema(
    [
        ("event_id", pa.large_binary()),
        ("key", pa.large_string()),
        ("seq", pa.int64()),
        ("ts", pa.timestamp("us")),
        ("amount", pa.float64()),
        ("payload", pa.large_string()),
    ]
)
"""What is compared, in one form for all."""

Words = npt.NDArray[np.uint64]

ODD = np.uint64(0x9E3779B97F4A7C15)
KEEP = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
"""By how many of its eight bytes belong to a value: which bits of a word count."""


class Outcome(NamedTuple):
    """What a job left; equal for equal rows, whatever the files."""

    rows: int
    digest: str
    """Of all columns of all rows, in any order."""

    keys_torn: int
    """Keys that are in more than one partition."""

    breaks: int
    """Rows that do not follow the one before them of their key."""


class Digest:
    """Sums up rows as they come: their number, and all columns of all of them in any order."""

    def __init__(self) -> None:
        self.rows = 0
        self._total = np.uint64(0)
        self._mixed = np.uint64(0)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count these rows; columns that SCHEMA does not name are left out."""
        rows = pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        words = np.zeros(batch.num_rows, np.uint64)
        with np.errstate(over="ignore"):
            for column in rows.columns:
                for chunk in column.chunks:
                    words = _mix(words * ODD + _column_words(chunk))
            self._total += words.sum(dtype=np.uint64)
            self._mixed ^= np.bitwise_xor.reduce(words)
        self.rows += batch.num_rows

    def __str__(self) -> str:
        return f"{int(self._total):016x}{int(self._mixed):016x}"


def outcome_of(partitions: Iterable[pa.Table]) -> Outcome:
    """What these tables hold, one a partition; columns that SCHEMA does not name do not count."""
    tables = [table.select(SCHEMA.names).cast(SCHEMA) for table in partitions]
    keys = [set(table["key"].unique().to_pylist()) for table in tables]
    torn = sum(map(len, keys)) - len(set().union(*keys))
    digest = Digest()
    for table in tables:
        for batch in table.to_batches(max_chunksize=65_536):
            digest.add(batch)
    return Outcome(digest.rows, str(digest), torn, sum(breaks_by_key(table) for table in tables))


def outcome_of_files(directory: Path) -> Outcome:
    """What lies under ``directory``."""
    return outcome_of(_read(paths) for paths in partition_files(directory).values())


def partition_files(directory: Path) -> dict[str, list[Path]]:
    """The files of each partition: a subdirectory, or the second part of a file's name."""
    partitions: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*.*")):
        if path.suffix not in (".parquet", ".arrow", ".ipc"):
            continue
        inside = path.relative_to(directory)
        partitions.setdefault(inside.parts[0] if len(inside.parts) > 1 else path.stem.split("-")[1], []).append(path)
    return partitions


def outcome_expected(events: Iterable[pa.RecordBatch], *, scaled: bool = True) -> Outcome:
    """What is left of ``events`` when each is kept once and, if so wanted, its amount multiplied."""
    table = pa.Table.from_batches(events).filter(pc.field("delivery") == 0)
    if scaled:
        index = table.schema.get_field_index("amount")
        table = table.set_column(index, "amount", pc.multiply(table["amount"], FACTOR))
    return outcome_of([table])


def breaks_by_key(table: pa.Table) -> int:
    """Rows out of line: per key, ``seq`` must be 0, 1, 2 …"""
    code = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(code, kind="stable")
    code, seq = code[order], table["seq"].to_numpy()[order]
    first = np.r_[True, code[1:] != code[:-1]][: len(code)]
    expected = np.where(first, 0, np.r_[0, seq[:-1] + 1][: len(seq)])
    return int(np.count_nonzero(seq != expected))


def _read(paths: Sequence[Path]) -> pa.Table:
    tables = []
    for path in paths:
        if path.suffix == ".parquet":
            tables.append(pq.ParquetFile(path).read(columns=SCHEMA.names))
        else:
            with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
                tables.append(reader.read_all().select(SCHEMA.names))
    return pa.concat_tables([table.cast(SCHEMA) for table in tables])


def _column_words(column: pa.Array) -> Words:
    """A number for each value."""
    if column.null_count:
        raise ValueError("the work has no nulls")
    if pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type):
        return _text_words(column)
    values = np.frombuffer(column.buffers()[1], np.uint64)
    return values[column.offset : column.offset + len(column)]


def _text_words(column: pa.Array) -> Words:
    """Eight bytes at a time."""
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets)
    octets = np.zeros(offsets[-1] - offsets[0] + 8, np.uint8)
    octets[:-8] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    windows = np.ndarray((len(octets) - 7,), "<u8", buffer=octets, strides=(1,))
    starts = offsets[:-1] - offsets[0]
    words = lengths.astype(np.uint64)
    for place in range(0, int(lengths.max(initial=0)), 8):
        left = np.clip(lengths - place, 0, 8)
        word = windows[np.minimum(starts + place, len(windows) - 1)] & KEEP[left]
        words = np.where(left > 0, _mix(words * ODD + word), words)
    return words


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    return words ^ (words >> np.uint64(29))
