"""Rows into a table of a DuckDB database, as Arrow. Needs the extra ``duckdb``.

Laws
    - Types are kept as DuckDB has them, nested ones too; where it would drop nanoseconds, the type is refused.
    - The file is open only during a transaction: DuckDB lets one process at a time open it. Whoever has it open makes
      a commit wait.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import pyarrow as pa

from engine.errors import PipelineError
from engine.nature import monotonic_s
from engine.path_argument import path_fault
from engine.sinks.sql_target import BUSY_WAIT_S, Column, RefusedError, Session, TableColumn, quoted
from engine.sinks.transactional import TransactionalSink
from engine.storage import Storage

__all__ = ["duckdb"]

LOOK_AGAIN_S = 0.02
ROWS = "rows of an epoch, from engine"
DECIMAL_DIGITS = 38

_connecting = threading.Lock()
"""One thread at a time: who joins a database that another thread is opening would miss what Python adds to it."""

T = TypeVar("T")

_SAME = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.string_view(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.large_binary(): "BLOB",
    pa.binary_view(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("s"): "TIMESTAMP_S",
    pa.timestamp("ms"): "TIMESTAMP_MS",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("ns"): "TIMESTAMP_NS",
}
"""Types that are inserted as they are."""

_CAST = {
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.time32("s"): pa.time64("us"),
    pa.time32("ms"): pa.time64("us"),
}
"""Types that are cast to one of the others, without loss."""


def duckdb(database: str | os.PathLike[str], *, table: str, mode: str = "error") -> TransactionalSink:
    """Write the rows to ``table`` of a DuckDB database, a file that is made where it is missing: exactly once.

    The rows of one epoch become visible in one transaction, partition after partition. The table is made from the
    schema; one that is there must be of this pipeline, unless ``mode="append"``, which takes any whose columns fit and
    leaves the rows of others alone. Beside it a table ``engine_commits`` says what is committed. The file is closed
    between commits; a process that keeps it open makes them wait. What DuckDB itself takes during a commit is outside
    the ``memory`` budget. Raises PipelineError, also for databases in memory and where the extra ``duckdb`` is not
    installed.
    """
    return TransactionalSink(DuckdbDatabase(database), table=table, mode=mode)


class DuckdbDatabase:
    """The ``Target`` for a file of DuckDB."""

    kind = "duckdb"

    def __init__(self, database: str | os.PathLike[str]) -> None:
        if database != "" and (fault := path_fault(database, "database")):
            raise PipelineError(f"duckdb: {fault}")
        path = os.fspath(database)
        if find_spec("duckdb") is None:
            raise PipelineError("duckdb: DuckDB is not installed; pip install 'ingest-engine[duckdb]'")
        if not path or path.startswith((":memory:", "md:", "motherduck:")):
            raise PipelineError(f"duckdb: {path!r} is no file; give the path of one, it has to survive the process")
        self.label = os.path.normpath(path)
        self._storage = Storage()

    def column(self, name: str, type: Any) -> Column | None:
        """How a column of ``type`` is kept."""
        kept = _kept(type)
        return None if kept is None else Column(name, *kept)

    def advice(self, type: pa.DataType) -> str:
        """What to do about a type that DuckDB lacks."""
        return "DuckDB does not keep that without loss; cast the column in a map before the sink"

    def name_fault(self, name: str) -> str | None:
        """Any name will do."""
        return None

    def identity(self, name: str) -> str:
        """DuckDB's names differ by more than case."""
        return name.lower()

    def is_absent(self) -> bool:
        """Whether the file is missing."""
        return not self._storage.exists(self._storage.resolve(self.label))

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a transaction, again for a while where another process or transaction is in the way."""
        path = self._storage.resolve(self.label)
        deadline_s = monotonic_s() + BUSY_WAIT_S
        while True:
            try:
                result = self._attempt(path, work)
                break
            except BlockingIOError:
                if monotonic_s() >= deadline_s:
                    raise
            time.sleep(LOOK_AGAIN_S)
        # The log of the transaction may be a new file: its name has to be as durable as its bytes.
        self._storage.sync_directory(os.path.dirname(path))
        return result

    def _attempt(self, path: str, work: Callable[[Session], T]) -> T:
        import duckdb as driver

        try:
            with _connecting:
                opened = driver.connect(path)
            with opened as connection:
                connection.execute("BEGIN")  # what raises from here on is rolled back by closing
                result = work(_DuckdbSession(connection))
                connection.execute("COMMIT")
                return result
        except (driver.TransactionException, driver.ConnectionException) as error:
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        except driver.IOException as error:
            if "lock" in str(error):
                raise BlockingIOError(errno.EAGAIN, str(error)) from error
            raise OSError(errno.EIO, str(error)) from error
        except driver.Error as error:
            raise RefusedError(str(error)) from error


class _DuckdbSession:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def lock_marks(self) -> None:
        """Of two transactions that make the same table one fails, and is run again."""

    def qualified(self, table: str) -> str:
        return f"main.{quoted(table)}"

    def columns(self, table: str) -> list[TableColumn] | None:
        here = "database_name = current_database() AND schema_name = 'main'"
        if self.execute(f"SELECT 1 FROM duckdb_views() WHERE {here} AND lower(view_name) = lower(?)", table):
            raise RefusedError(f"{table} is a view")
        rows = self.execute(
            "SELECT column_name, data_type, NOT is_nullable, column_default IS NOT NULL FROM duckdb_columns() "
            f"WHERE {here} AND lower(table_name) = lower(?) ORDER BY column_index",
            table,
        )
        return [TableColumn(*row) for row in rows] or None

    def same_type(self, sql_type: str, found: str) -> bool:
        return self.execute(f"SELECT typeof(CAST(NULL AS {sql_type}))") == [(found,)]

    def execute(self, sql: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
        return rows

    def update(self, sql: str, *parameters: str | int) -> int:
        return len(self.execute(f"{sql} RETURNING 1", *parameters))

    def insert(self, table: str, rows: pa.RecordBatchReader) -> None:
        names = ", ".join(quoted(name) for name in rows.schema.names)
        self._connection.register(ROWS, rows)
        self._connection.execute(f"INSERT INTO {self.qualified(table)} ({names}) SELECT {names} FROM {quoted(ROWS)}")
        self._connection.unregister(ROWS)


def _kept(type: Any) -> tuple[str, Any] | None:
    """DuckDB's type and the Arrow type to insert; None where there is none that keeps all values."""
    if type in _CAST:
        return _kept(_CAST[type])
    if type in _SAME:
        return _SAME[type], type
    if pa.types.is_fixed_size_binary(type):
        return "BLOB", pa.binary()
    if pa.types.is_decimal(type) and 0 <= type.scale <= type.precision <= DECIMAL_DIGITS:
        return f"DECIMAL({type.precision}, {type.scale})", pa.decimal128(type.precision, type.scale)
    if pa.types.is_timestamp(type) and type.tz is not None and type.unit != "ns":
        return "TIMESTAMP WITH TIME ZONE", pa.timestamp("us", type.tz)
    return _kept_nested(type)


def _kept_nested(type: Any) -> tuple[str, Any] | None:
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        inner = _kept(type.value_type)
        if inner is None:
            return None
        field = type.value_field.with_type(inner[1])
        if pa.types.is_fixed_size_list(type):
            return f"{inner[0]}[{type.list_size}]", pa.list_(field, type.list_size)
        return f"{inner[0]}[]", pa.list_(field) if pa.types.is_list(type) else pa.large_list(field)
    if pa.types.is_struct(type) and type.num_fields:
        fields = [(field, _kept(field.type)) for field in type]
        kept = [(field.with_type(inner[1]), inner[0]) for field, inner in fields if inner is not None]
        if len(kept) < len(fields):
            return None
        listed = ", ".join(f"{quoted(field.name)} {sql_type}" for field, sql_type in kept)
        return f"STRUCT({listed})", pa.struct([field for field, _ in kept])
    return None
