"""Where rows leave: files in a directory or a durable log, exactly once, or a function, at least once."""

from engine.sinks.arrow_ipc_files import arrow_ipc
from engine.sinks.durable_log import log
from engine.sinks.function_call import call
from engine.sinks.parquet_files import parquet

__all__ = ["arrow_ipc", "call", "log", "parquet"]
