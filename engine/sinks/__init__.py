"""Where rows leave: files, a durable log or tables of a database, exactly once, or a function, at least once."""

from engine.sinks.arrow_ipc_files import arrow_ipc
from engine.sinks.duckdb_table import duckdb
from engine.sinks.durable_log import log
from engine.sinks.function_call import call
from engine.sinks.parquet_files import parquet
from engine.sinks.postgres_table import postgres
from engine.sinks.sqlite_table import sqlite

__all__ = ["arrow_ipc", "call", "duckdb", "log", "parquet", "postgres", "sqlite"]
