"""The rows that readers see in the output of a pipeline on a simulated disk, by partition."""

import os
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from engine.errors import PipelineError
from engine.log.log import Log
from engine.pipeline import Pipeline
from engine.sinks.hive_layout import partition_values
from engine.testing.storage import SimulatedStorage

__all__ = ["Tables", "location_of", "read_output"]

Tables = dict[int, pa.Table]
"""The rows of each partition that has some, in the order in which they were committed: with ``partition_by``, those of
each directory."""

KINDS = ("parquet", "arrow_ipc", "log")


def location_of(pipeline: Pipeline) -> str:
    """Where the sink writes. Raises PipelineError where that is not on the simulated disk."""
    sink = pipeline.graph.sink
    if sink is None:
        raise PipelineError(f'simulate: "{pipeline.name}" has no sink, so that there are no rows to compare; add write')
    if getattr(sink, "kind", None) not in KINDS:
        raise PipelineError(f"simulate: {sink} cannot be simulated; Parquet, Arrow IPC and log sinks can")
    return os.path.join("/", str(sink.location))  # type: ignore[attr-defined]


def read_output(pipeline: Pipeline, storage: SimulatedStorage, schema: pa.Schema) -> Tables:
    """The committed rows, columns in the order of ``schema``, those in names of directories with its types.

    Raises EngineError, OSError, Arrow's errors.
    """
    location, kind = location_of(pipeline), getattr(pipeline.graph.sink, "kind", None)
    batches: dict[int, list[pa.RecordBatch]] = {}
    if kind == "log":
        with Log(location, write=False, storage=storage) as log:
            batches = {number: list(log.read(partition=number)) for number in range(log.partitions)}
    else:
        read = _read_parquet if kind == "parquet" else _read_ipc
        for path, data in sorted(storage.contents(location).items()):
            if data is not None:
                partition = int(os.path.basename(path).split("-")[1])
                values = partition_values(os.path.dirname(os.path.relpath(path, location)))
                found = (_with_values(rows, values, schema) for rows in read(pa.BufferReader(data)))
                batches.setdefault(partition, []).extend(found)
    tables = {number: pa.Table.from_batches(found).select(schema.names) for number, found in batches.items() if found}
    return {number: table for number, table in tables.items() if table.num_rows}


def _with_values(rows: pa.RecordBatch, values: dict[str, str | None], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a file, with the columns that the names of its directories tell."""
    for name, text in values.items():
        column: Any = pa.array([text] * rows.num_rows, pa.string())
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type).dictionary_encode()
        rows = rows.append_column(schema.field(name), column.cast(kind))
    return rows


def _read_parquet(data: pa.NativeFile) -> list[pa.RecordBatch]:
    with pq.ParquetFile(data) as file:
        return file.read(use_threads=False).to_batches()


def _read_ipc(data: pa.NativeFile) -> list[pa.RecordBatch]:
    with ipc.open_file(data) as reader:
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
