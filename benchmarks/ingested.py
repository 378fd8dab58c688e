"""Sums up an output directory, whoever wrote it; and says what an ingest of some batches must give."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["Outcome", "outcome_expected", "outcome_of"]

FACTOR = 1.1
COLUMNS = ["event_id", "key", "seq", "amount"]


class Outcome(NamedTuple):
    """What an ingest left; equal for equal rows, whatever the files."""

    rows: int
    digest: str
    """Of the ids, in any order."""

    amount: float
    keys_torn: int
    """Keys that are in more than one partition."""

    breaks: int
    """Rows that do not follow the one before them of their key."""

    def __str__(self) -> str:
        return f"{self.rows:,} rows, hash {self.digest}"


def outcome_of(directory: Path) -> Outcome:
    """What lies under ``directory``: a subdirectory, or the second part of a file's name, is a partition."""
    partitions: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*.parquet")):
        inside = path.relative_to(directory)
        partitions.setdefault(inside.parts[0] if len(inside.parts) > 1 else path.name.split("-")[1], []).append(path)
    tables = [
        pa.concat_tables([pq.ParquetFile(path).read(columns=COLUMNS) for path in paths])
        .select(COLUMNS)
        .cast(
            pa.schema(
                [("event_id", pa.binary()), ("key", pa.large_utf8()), ("seq", pa.int64()), ("amount", pa.float64())]
            )
        )
        for paths in partitions.values()
    ]
    keys = [set(table["key"].unique().to_pylist()) for table in tables]
    torn = sum(len(each) for each in keys) - len(set().union(*keys))
    return _outcome(tables, torn, sum(_breaks(table) for table in tables))


def outcome_expected(events: Iterable[pa.RecordBatch]) -> Outcome:
    """What is left of ``events`` when each is kept once and its amount multiplied."""
    table = pa.Table.from_batches(events).filter(pc.field("delivery") == 0).select(COLUMNS)
    scaled = table.set_column(3, "amount", pc.multiply(table["amount"], FACTOR))
    return _outcome([scaled.cast(scaled.schema.set(0, pa.field("event_id", pa.binary())))], 0, 0)


def _outcome(tables: list[pa.Table], torn: int, breaks: int) -> Outcome:
    words = [np.frombuffer(_bytes(table["event_id"]), np.uint64).reshape(-1, 2) for table in tables]
    both = np.concatenate([part[:, 0] ^ (part[:, 1] * np.uint64(0x9E3779B97F4A7C15)) for part in words])
    digest = int(both.sum(dtype=np.uint64)) ^ int(np.bitwise_xor.reduce(both))
    amount = round(sum(pc.sum(table["amount"]).as_py() for table in tables), 1)
    return Outcome(len(both), f"{digest:016x}", amount, torn, breaks)


def _bytes(ids: pa.ChunkedArray) -> bytes:
    return b"".join(
        memoryview(chunk.buffers()[2])[16 * chunk.offset : 16 * (chunk.offset + len(chunk))]
        for chunk in ids.chunks
        if len(chunk)
    )


def _breaks(table: pa.Table) -> int:
    """Rows out of line: per key, ``seq`` must be 0, 1, 2 …"""
    code = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(code, kind="stable")
    code, seq = code[order], table["seq"].to_numpy()[order]
    first = np.r_[True, code[1:] != code[:-1]][: len(code)]
    expected = np.where(first, 0, np.r_[0, seq[:-1] + 1][: len(seq)])
    return int(np.count_nonzero(seq != expected))
