"""Where rows come from: files of four formats, a durable log, and whatever is in memory.

One module a source; each public function gives an immutable ``engine.source.Source``.
"""

from engine.sources.arrow_ipc_files import arrow_ipc
from engine.sources.csv_files import csv
from engine.sources.durable_log import log
from engine.sources.memory_rows import memory
from engine.sources.ndjson_files import ndjson
from engine.sources.parquet_files import parquet

__all__ = ["arrow_ipc", "csv", "log", "memory", "ndjson", "parquet"]
