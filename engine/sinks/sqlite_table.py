"""Rows into a table of an SQLite database, by the ``sqlite3`` of Python.

    bool                          BOOLEAN (0 and 1)
    integers up to int64          INTEGER
    floats                        REAL; NaN is refused, SQLite keeps it as NULL
    decimals                      TEXT, all digits
    text, binary                  TEXT, BLOB
    date, time, timestamp         TEXT, ISO 8601; with a time zone in UTC, ending in +00:00

Laws
    - A commit is on the disk when it returns, the removal of the journal with it (``synchronous=EXTRA``): a power
      failure must not take back what the state directory has let go of.
    - Columns are converted when rows are staged; the transaction only inserts.
"""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import PipelineError
from engine.path_argument import path_fault
from engine.sinks.sql_target import BUSY_WAIT_S, Column, RefusedError, Session, TableColumn, quoted
from engine.sinks.transactional import TransactionalSink
from engine.storage import Storage

__all__ = ["sqlite"]

LONGEST_BYTES = 1_000_000_000
"""SQLite's usual limit of a text or blob, and of a row."""

T = TypeVar("T")

_PASSING = {
    sqlite3.SQLITE_BUSY: errno.EAGAIN,
    sqlite3.SQLITE_LOCKED: errno.EAGAIN,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}
"""What may be otherwise the next time, by SQLite's primary code."""

_ACCEPTED = {
    "INTEGER": {"INTEGER", "NUMERIC", "BLOB"},
    "BOOLEAN": {"INTEGER", "NUMERIC", "BLOB"},
    "REAL": {"REAL", "BLOB"},
    "TEXT": {"TEXT", "BLOB"},
    "BLOB": {"INTEGER", "NUMERIC", "REAL", "TEXT", "BLOB"},
}
"""The affinities of columns that give back unchanged what is inserted, by our type."""

STRICT = " STRICT"
"""Behind the type of a column whose table takes no other values (stricttables.html)."""

_ACCEPTED_STRICTLY = {
    "INTEGER": {"INTEGER", "INT", "ANY"},
    "BOOLEAN": {"INTEGER", "INT", "ANY"},
    "REAL": {"REAL", "ANY"},
    "TEXT": {"TEXT", "ANY"},
    "BLOB": {"BLOB", "ANY"},
}


def sqlite(database: str | os.PathLike[str], *, table: str, mode: str = "error") -> TransactionalSink:
    """Write the rows to ``table`` of an SQLite database, a file that is made where it is missing: exactly once.

    The rows of one epoch become visible in one transaction, partition after partition. The table is made from the
    schema; one that is there must be of this pipeline, unless ``mode="append"``, which takes any whose columns fit and
    leaves the rows of others alone. Beside it a table ``engine_commits`` says what is committed. Raises PipelineError,
    also for databases in memory.
    """
    return TransactionalSink(SqliteDatabase(database), table=table, mode=mode)


class SqliteDatabase:
    """The ``Target`` for a file of SQLite."""

    kind = "sqlite"

    def __init__(self, database: str | os.PathLike[str]) -> None:
        if database != "" and (fault := path_fault(database, "database")):
            raise PipelineError(f"sqlite: {fault}")
        path = os.fspath(database)
        if not path or path == ":memory:" or path.startswith("file:"):
            raise PipelineError(f"sqlite: {path!r} is no file; a database in memory would not survive, give a path")
        self.label = os.path.normpath(path)
        self._storage = Storage()

    def column(self, name: str, type: Any) -> Column | None:
        """How a column of ``type`` is kept."""
        if pa.types.is_boolean(type):
            return Column(name, "BOOLEAN", type)
        if pa.types.is_integer(type) and type != pa.uint64():
            return Column(name, "INTEGER", pa.int64())
        if pa.types.is_floating(type):
            return Column(name, "REAL", pa.float64(), convert=_widened, fault=_not_a_number)
        if _is_text(type):
            return Column(name, "TEXT", pa.large_string(), fault=_too_long)
        if _is_binary(type):
            return Column(name, "BLOB", pa.large_binary(), fault=_too_long)
        if pa.types.is_timestamp(type) and type.tz is not None:
            return Column(name, "TEXT", pa.large_string(), convert=_in_utc, fault=_without_text)
        if pa.types.is_decimal(type) or pa.types.is_timestamp(type) or pa.types.is_time(type) or pa.types.is_date(type):
            return Column(name, "TEXT", pa.large_string(), convert=_as_text, fault=_without_text)
        return None

    def advice(self, type: pa.DataType) -> str:
        """What to do about a type that SQLite lacks."""
        return "SQLite has no such type; cast the column in a map before the sink"

    def name_fault(self, name: str) -> str | None:
        """Prefixes that are SQLite's own."""
        return f'"{name}" is a name of SQLite\'s own' if name.lower().startswith("sqlite_") else None

    def identity(self, name: str) -> str:
        """SQLite's names differ by more than the case of ASCII letters."""
        return "".join(letter.lower() if letter.isascii() else letter for letter in name)

    def is_absent(self) -> bool:
        """Whether the file is missing."""
        return not self._storage.exists(self._storage.resolve(self.label))

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a transaction that holds the write lock from its beginning."""
        path = self._storage.resolve(self.label)
        with _explained(), closing(sqlite3.connect(path, timeout=BUSY_WAIT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")  # what raises from here on is rolled back by closing
            result = work(_SqliteSession(connection))
            connection.execute("COMMIT")
        self._storage.sync_directory(os.path.dirname(path))
        return result


class _SqliteSession:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lock_marks(self) -> None:
        """The transaction holds the only write lock."""

    def qualified(self, table: str) -> str:
        return f"main.{quoted(table)}"

    def columns(self, table: str) -> list[TableColumn] | None:
        found = self.execute(
            "SELECT type, sql LIKE 'CREATE VIRTUAL%' FROM main.sqlite_master "
            "WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')",
            table,
        )
        if not found:
            return None
        if found != [("table", 0)]:
            raise RefusedError(f"{table} is a view or a virtual table")
        strict = STRICT if self._is_strict(table) else ""
        rows = self.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', table)
        keys = [name for name, *_, place in rows if place]
        columns = []
        for name, kind, not_null, default, _ in rows:
            # For a null there, SQLite makes up a number; where a table has no rows' numbers, the column is NOT NULL.
            numbered = keys == [name] and kind.upper() == "INTEGER" and not not_null
            columns.append(
                TableColumn(name, kind + strict, bool(not_null) or numbered, default is not None or numbered)
            )
        return columns

    def _is_strict(self, table: str) -> bool:
        if sqlite3.sqlite_version_info < (3, 37):
            return False
        return self.execute("SELECT strict FROM pragma_table_list(?) WHERE schema = 'main'", table) == [(1,)]

    def same_type(self, sql_type: str, found: str) -> bool:
        if found.endswith(STRICT):
            return found.removesuffix(STRICT).upper() in _ACCEPTED_STRICTLY[sql_type]
        return _affinity(found) in _ACCEPTED[sql_type]

    def execute(self, sql: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters).fetchall()

    def update(self, sql: str, *parameters: str | int) -> int:
        return self._connection.execute(sql, parameters).rowcount  # RETURNING is younger than some SQLites in use

    def insert(self, table: str, rows: pa.RecordBatchReader) -> None:
        names = ", ".join(quoted(name) for name in rows.schema.names)
        values = ", ".join("?" * len(rows.schema.names))
        statement = f"INSERT INTO {self.qualified(table)} ({names}) VALUES ({values})"
        self._connection.executemany(statement, ())  # compiled, so that columns are checked without rows too
        for batch in rows:
            self._connection.executemany(statement, zip(*(c.to_pylist() for c in batch.columns), strict=True))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        passing = _PASSING.get(code & 0xFF) if code is not None else None
        if passing is not None:
            raise OSError(passing, str(error)) from error
        raise RefusedError(str(error)) from error


def _affinity(declared: str) -> str:
    """What SQLite makes of a declared type (datatype3.html, 3.1)."""
    declared = declared.upper()
    for affinity, words in (
        ("INTEGER", ("INT",)),
        ("TEXT", ("CHAR", "CLOB", "TEXT")),
        ("BLOB", ("BLOB",)),
        ("REAL", ("REAL", "FLOA", "DOUB")),
    ):
        if any(word in declared for word in words):
            return affinity
    return "NUMERIC" if declared else "BLOB"


def _is_text(type: Any) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _is_binary(type: Any) -> bool:
    plain = pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type)
    return plain or pa.types.is_fixed_size_binary(type)


def _widened(values: Any) -> Any:
    return values.cast(pa.float32()) if pa.types.is_float16(values.type) else values


def _as_text(values: Any) -> Any:
    return values.cast(pa.string())


def _in_utc(values: Any) -> Any:
    text = values.cast(pa.timestamp(values.type.unit)).cast(pa.string())
    return pc.binary_join_element_wise(text, "+00:00", "")


def _without_text(values: Any) -> str | None:
    """For dates and times that Arrow has no text for, it writes that in angle brackets."""
    beyond = pc.any(pc.starts_with(values, "<")).as_py()
    return "holds dates or times too far away to be written as text" if beyond else None


def _not_a_number(values: Any) -> str | None:
    return "holds NaN, which SQLite keeps as NULL" if pc.any(pc.is_nan(values)).as_py() else None


def _too_long(values: Any) -> str | None:
    if values.nbytes <= LONGEST_BYTES or (pc.max(pc.binary_length(values)).as_py() or 0) <= LONGEST_BYTES:
        return None
    return f"holds a value of more than {LONGEST_BYTES:,} bytes, SQLite's limit"
