"""The rows that readers see in the output of a pipeline on a simulated disk, by partition."""

import os

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from engine.errors import PipelineError
from engine.log.log import Log
from engine.pipeline import Pipeline
from engine.testing.checkers import Output, Row
from engine.testing.storage import SimulatedStorage

__all__ = ["Tables", "location_of", "read_output", "rows_of"]

Tables = dict[int, pa.Table]
"""The rows of each partition that has some, in the order in which they were committed."""

KINDS = ("parquet", "arrow_ipc", "log")


def location_of(pipeline: Pipeline) -> str:
    """Where the sink writes. Raises PipelineError where that is not on the simulated disk."""
    sink = pipeline.graph.sink
    if getattr(sink, "kind", None) not in KINDS:
        raise PipelineError(f"simulate: {sink} cannot be simulated; Parquet, Arrow IPC and log sinks can")
    return os.path.join("/", str(sink.location))  # type: ignore[union-attr]


def read_output(pipeline: Pipeline, storage: SimulatedStorage, names: list[str]) -> Tables:
    """The committed rows, columns by name. Raises EngineError, OSError, Arrow's errors."""
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
                batches.setdefault(partition, []).extend(read(pa.BufferReader(data)))
    tables = {number: pa.Table.from_batches(found).select(names) for number, found in batches.items() if found}
    return {number: table for number, table in tables.items() if table.num_rows}


def rows_of(tables: Tables) -> Output:
    """The same rows as tuples that can be counted."""
    return {number: _rows(table) for number, table in tables.items()}


def _read_parquet(data: pa.NativeFile) -> list[pa.RecordBatch]:
    with pq.ParquetFile(data) as file:
        return file.read(use_threads=False).to_batches()


def _read_ipc(data: pa.NativeFile) -> list[pa.RecordBatch]:
    with ipc.open_file(data) as reader:
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _rows(table: pa.Table) -> list[Row]:
    columns = [[_hashable(value) for value in column.to_pylist()] for column in table.columns]
    return list(zip(*columns, strict=True))


def _hashable(value: object) -> object:
    return repr(value) if isinstance(value, dict | list) else value
