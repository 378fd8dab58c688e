"""The four file formats side by side, and how tests read a source."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from engine.source import Read, Reader, Source
from engine.sources import arrow_ipc, csv, csv_files, file_source, ndjson, ndjson_files, parquet, parquet_files


@dataclass(frozen=True)
class Format:
    """How one format is written and read."""

    name: str
    extension: str
    write: Callable[[pa.Table, Path, int], None]
    source: Callable[..., Source]

    def __str__(self) -> str:
        return self.name

    def put(self, table: pa.Table, path: Path, rows: int = 50) -> Path:
        """Write a file whose row groups or batches have ``rows`` rows."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write(table, path, rows)
        return path


def _write_parquet(table: pa.Table, path: Path, rows: int) -> None:
    pq.write_table(table, path, row_group_size=rows)


def _write_ipc_file(table: pa.Table, path: Path, rows: int) -> None:
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def _write_ipc_stream(table: pa.Table, path: Path, rows: int) -> None:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def _write_csv(table: pa.Table, path: Path, rows: int) -> None:
    pa_csv.write_csv(table, path)


def _write_ndjson(table: pa.Table, path: Path, rows: int) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()) or "\n")


PARQUET = Format("parquet", ".parquet", _write_parquet, parquet)
IPC_FILE = Format("ipc-file", ".arrow", _write_ipc_file, arrow_ipc)
IPC_STREAM = Format("ipc-stream", ".arrows", _write_ipc_stream, arrow_ipc)
CSV = Format("csv", ".csv", _write_csv, csv)
NDJSON = Format("ndjson", ".ndjson", _write_ndjson, ndjson)

BINARY_FORMATS = [PARQUET, IPC_FILE, IPC_STREAM]
FORMATS = [*BINARY_FORMATS, CSV, NDJSON]


def events(start: int, stop: int) -> pa.Table:
    """Rows that every format can hold, each different from all others."""
    numbers = range(start, stop)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "name": pa.array([f"event {n}, of {n % 7}" for n in numbers], pa.string()),
            "amount": pa.array([n + 0.25 for n in numbers], pa.float64()),
        }
    )


def drain(source: Source, offset: Any = None) -> list[Read]:
    """Everything behind ``offset``, which goes through JSON as in a commit."""
    reader = source.open(json.loads(json.dumps(offset)), durable=True)
    reads = []
    try:
        while (read := reader.read()) is not None:
            reads.append(read)
        assert reader.read() is None
    finally:
        reader.close()
        reader.close()
    return reads


def exhaust(reader: Reader) -> None:
    """Read to the end, for what is raised on the way."""
    while reader.read() is not None:
        pass


def table_of(reads: Sequence[Read], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([read.rows for read in reads], schema)


def ids(reads: Sequence[Read]) -> list[int]:
    return [value for read in reads for value in read.rows.column("id").to_pylist()]


def cut_small(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Make batches and blocks so small that a few rows already take many of them."""
    patch.setattr(file_source, "BATCH_ROWS", rows)
    patch.setattr(parquet_files, "BATCH_ROWS", rows)
    patch.setattr(csv_files, "BLOCK_BYTES", 40 * rows)
    patch.setattr(csv_files, "BATCH_BYTES", 40 * rows)
    patch.setattr(ndjson_files, "BLOCK_BYTES", 60 * rows)
