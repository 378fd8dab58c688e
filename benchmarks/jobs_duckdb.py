"""DuckDB's side of the whole jobs: SQL over an Arrow stream.

``COPY … PARTITION_BY`` does not keep an order with several threads, so files take a COPY for each partition; ``ts`` is
the order of first delivery.
"""

from pathlib import Path

import duckdb
import pyarrow as pa
from contest import Contender
from job_outcome import FACTOR, outcome_of
from jobs_engine import mapped_batches


def to_files(source: str, directory: str, format: str) -> Contender:
    """The job to Parquet; nothing is committed, nothing synced."""
    assert format == "parquet"

    def run() -> None:
        target = Path(directory)
        target.mkdir(parents=True)
        with pa.OSFile(source) as file, pa.ipc.open_file(file) as reader:
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            connection = duckdb.connect()
            connection.execute(f"SET temp_directory='{target / 'spilled'}'")
            connection.register("events", pa.RecordBatchReader.from_batches(reader.schema, batches))
            connection.execute(
                f"CREATE TEMP TABLE kept AS SELECT * REPLACE (amount * {FACTOR} AS amount), hash(key) % 8 AS part "
                "FROM (SELECT DISTINCT ON (event_id) * FROM events)"
            )
            for part in range(8):
                rows = f"SELECT * EXCLUDE part FROM kept WHERE part = {part} ORDER BY ts"
                path = target / f"part-{part}.parquet"
                connection.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION snappy)")

    return Contender("duckdb", run, lambda nothing: None)


def in_memory(source: str) -> Contender:
    """Dedup with all columns, in order, as record batches."""
    events = pa.Table.from_batches(mapped_batches(source))
    connection = duckdb.connect()
    connection.register("events", events)

    def run() -> pa.Table:
        rows = connection.execute("SELECT * FROM (SELECT DISTINCT ON (event_id) * FROM events) ORDER BY ts")
        return pa.Table.from_batches(list(rows.to_arrow_reader(65_536)))

    return Contender("duckdb", run, lambda table: outcome_of([table]))
