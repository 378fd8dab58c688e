"""Rows into a table of a PostgreSQL database, by COPY through ADBC. Needs the extra ``postgres``.

Laws
    - COPY in its binary form takes the bytes of one type for those of another: only columns of exactly our types fit.
    - A commit is on the server's disk when it returns, whatever ``synchronous_commit`` is by default.
    - Names and messages hold no user and no password. A URI is passed on as it is, and taken apart as libpq does.
    - Text travels in UTF-8, whatever the client's encoding is by default; a database in another encoding is refused.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import count
from re import search, sub
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import PipelineError
from engine.sinks.sql_target import BUSY_WAIT_S, Column, RefusedError, Session, TableColumn, quoted
from engine.sinks.transactional import TransactionalSink

__all__ = ["postgres"]

NAME_BYTES = 63
"""Longer names PostgreSQL cuts without a word."""

LONGEST_BYTES = 500_000_000
"""A value is at most 1 GB, and so is a row on its way."""

NUMERIC_DIGITS = 1000
CONNECT_WAIT_S = 10
MARKS_LOCK = 0x656E67696E65
"""The number of the advisory lock under which tables are made."""

FIRST_DAY = -2_440_588
LAST_DAY = 2_145_042_905
FIRST_MICROSECOND = -210_866_803_200_000_000

QUOTED_OR_MARK = r'"(?:[^"]|"")*"|\?'
"""A quoted name, in which a question mark is itself, or the place of a parameter."""

TAKES_UTF8 = ("UTF8", "SQL_ASCII")
"""Encodings of a server that keep every text; the second one keeps bytes as they come."""

PASSING = ("08", "25006", "40", "53", "55P03", "57")
"""Beginnings of SQLSTATE: connection, a standby, serialization, resources, locks, the operator's intervention."""

T = TypeVar("T")

_KEPT: dict[Any, tuple[str, Any]] = {
    pa.bool_(): ("boolean", pa.bool_()),
    pa.int8(): ("smallint", pa.int16()),
    pa.int16(): ("smallint", pa.int16()),
    pa.int32(): ("integer", pa.int32()),
    pa.int64(): ("bigint", pa.int64()),
    pa.uint8(): ("smallint", pa.int16()),
    pa.uint16(): ("integer", pa.int32()),
    pa.uint32(): ("bigint", pa.int64()),
    pa.uint64(): ("numeric(20,0)", pa.decimal128(20, 0)),
    pa.float16(): ("real", pa.float32()),
    pa.float32(): ("real", pa.float32()),
    pa.float64(): ("double precision", pa.float64()),
    pa.time32("s"): ("time without time zone", pa.time64("us")),
    pa.time32("ms"): ("time without time zone", pa.time64("us")),
    pa.time64("us"): ("time without time zone", pa.time64("us")),
}


def postgres(uri: str, *, table: str, mode: str = "error") -> TransactionalSink:
    """Write the rows to ``table`` of a PostgreSQL database, in the current schema of the connection: exactly once.

    ``uri`` is ``postgresql://user@host:port/database``. The rows of one epoch become visible in one transaction,
    partition after partition. The table is made from the schema; one that is there must be of this pipeline, unless
    ``mode="append"``, which takes any whose columns fit and leaves the rows of others alone. Beside it a table
    ``engine_commits`` says what is committed. Raises PipelineError, also where the extra ``postgres`` is not installed.
    """
    return TransactionalSink(PostgresDatabase(uri), table=table, mode=mode)


class PostgresDatabase:
    """The ``Target`` for a PostgreSQL server."""

    kind = "postgres"

    def __init__(self, uri: str) -> None:
        if find_spec("adbc_driver_postgresql") is None:
            raise PipelineError("postgres: ADBC is not installed; pip install 'ingest-engine[postgres]'")
        location, query = _taken_apart(uri)
        options = dict(parse_qsl(query or "", keep_blank_values=True))
        host, _, database = location.partition("/")
        self.label = f"{host or options.get('host', '')}/{database or options.get('dbname', '')}"
        self._uri = uri
        if "connect_timeout" not in options:
            self._uri += f"{'?' if query is None else '&' if query else ''}connect_timeout={CONNECT_WAIT_S}"

    def column(self, name: str, type: Any) -> Column | None:
        """How a column of ``type`` is kept."""
        if type in _KEPT:
            return Column(name, *_KEPT[type])
        if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type):
            return Column(name, "text", pa.large_string(), fault=_text_fault)
        if pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type):
            return Column(name, "bytea", pa.large_binary(), fault=_too_long)
        if pa.types.is_fixed_size_binary(type):
            return Column(name, "bytea", pa.large_binary())
        if pa.types.is_decimal(type) and 0 <= type.scale <= type.precision <= NUMERIC_DIGITS:
            wide = pa.decimal256 if pa.types.is_decimal256(type) else pa.decimal128
            return Column(name, f"numeric({type.precision},{type.scale})", wide(type.precision, type.scale))
        if pa.types.is_date(type):
            return Column(name, "date", pa.date32(), fault=_date_fault)
        if pa.types.is_timestamp(type) and type.unit != "ns":
            zone = "without" if type.tz is None else "with"
            form = pa.timestamp("us", type.tz)
            return Column(name, f"timestamp {zone} time zone", form, fault=_timestamp_fault)
        return None

    def advice(self, type: pa.DataType) -> str:
        """What to do about a type that PostgreSQL lacks."""
        if pa.types.is_timestamp(type) or pa.types.is_time(type):
            return "PostgreSQL keeps microseconds; cast the column in a map before the sink"
        return "this is not written to PostgreSQL; cast the column in a map before the sink"

    def name_fault(self, name: str) -> str | None:
        """Names that PostgreSQL would cut."""
        size_bytes = len(name.encode())
        return f'"{name}" has {size_bytes} bytes; at most {NAME_BYTES} are kept' if size_bytes > NAME_BYTES else None

    def identity(self, name: str) -> str:
        """Quoted names are as they are."""
        return name

    def is_absent(self) -> bool:
        """A server is never made."""
        return False

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a transaction on a connection of its own."""
        import adbc_driver_manager
        from adbc_driver_postgresql import dbapi

        with _explained(adbc_driver_manager), closing(dbapi.connect(self._uri)) as connection:
            session = _PostgresSession(connection)  # what raises from here on is rolled back by closing
            session.set("client_encoding", "UTF8")
            [(encoding,)] = session.execute("SELECT current_setting('server_encoding')")
            if encoding not in TAKES_UTF8:
                raise RefusedError(f"it is kept in {encoding}, which lacks letters; make one with ENCODING 'UTF8'")
            session.set("lock_timeout", f"{BUSY_WAIT_S * 1000:.0f}ms")
            if session.execute("SELECT 1 WHERE current_setting('synchronous_commit') = 'off'"):
                session.set("synchronous_commit", "on")
            result = work(session)
            connection.commit()
            return result


class _PostgresSession:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._schema: str | None = None

    def set(self, setting: str, value: str) -> None:
        self.execute("SELECT set_config(?, ?, true)", setting, value)

    def lock_marks(self) -> None:
        self.execute("SELECT pg_advisory_xact_lock(?)::text", MARKS_LOCK)

    def qualified(self, table: str) -> str:
        return f"{quoted(self._current_schema())}.{quoted(table)}"

    def columns(self, table: str) -> list[TableColumn] | None:
        rows = self.execute(
            "SELECT c.relkind::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
            "a.atthasdef OR a.attidentity::text <> '' "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE n.nspname = ? AND c.relname = ? AND a.attnum > 0 AND NOT a.attisdropped "
            "AND a.attgenerated::text = '' ORDER BY a.attnum",
            self._current_schema(),
            table,
        )
        if any(kind not in ("r", "p") for kind, *_ in rows):
            raise RefusedError(f"{table} is a view or a foreign table")
        return [TableColumn(*row) for _, *row in rows] or None

    def same_type(self, sql_type: str, found: str) -> bool:
        return found == sql_type or (sql_type == "text" and found == "character varying")

    def execute(self, sql: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        numbers = count(1)
        numbered = sub(QUOTED_OR_MARK, lambda found: f"${next(numbers)}" if found[0] == "?" else found[0], sql)
        with self._connection.cursor() as cursor:
            cursor.execute(numbered, parameters or None)
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
            return rows

    def update(self, sql: str, *parameters: str | int) -> int:
        return len(self.execute(f"{sql} RETURNING 1", *parameters))

    def insert(self, table: str, rows: pa.RecordBatchReader) -> None:
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="append", db_schema_name=self._current_schema())

    def _current_schema(self) -> str:
        if self._schema is None:
            schema = self.execute("SELECT current_schema()::text")[0][0]
            if schema is None:
                raise RefusedError("no schema of the search path is there; name one in the URI's options")
            self._schema = str(schema)
        return self._schema


def _taken_apart(uri: Any) -> tuple[str, str | None]:
    """Host and database of a URI, and its query (libpq: Connection URIs). Raises PipelineError, without it."""
    scheme, _, rest = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    if scheme not in ("postgresql", "postgres"):
        raise PipelineError("postgres: expected a URI such as postgresql://user@host:5432/database")
    user, at, behind = rest.partition("@")
    location, mark, query = (behind if at and "/" not in user else rest).partition("?")
    if "@" in location or search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise PipelineError("postgres: in the user and password of a URI, write % as %25, / as %2F and @ as %40")
    return location, query if mark else None


@contextmanager
def _explained(driver: Any) -> Iterator[None]:
    try:
        yield
    except driver.Error as error:
        state = error.sqlstate or ""
        lost = error.status_code == driver.AdbcStatusCode.IO and not state
        if lost or state.startswith(PASSING):
            code = errno.ECONNABORTED if lost else errno.EAGAIN
            raise OSError(code, str(error)) from error
        raise RefusedError(str(error)) from error


def _text_fault(values: Any) -> str | None:
    if pc.any(pc.match_substring(values, "\0")).as_py():
        return "holds text with a zero byte, which PostgreSQL cannot keep"
    return _too_long(values)


def _too_long(values: Any) -> str | None:
    if values.nbytes <= LONGEST_BYTES or (pc.max(pc.binary_length(values)).as_py() or 0) <= LONGEST_BYTES:
        return None
    return f"holds a value of more than {LONGEST_BYTES:,} bytes; PostgreSQL keeps none as long"


def _date_fault(values: Any) -> str | None:
    days = values.cast(pa.int32())
    return "holds dates beyond those of PostgreSQL" if _beyond(days, FIRST_DAY, LAST_DAY) else None


def _timestamp_fault(values: Any) -> str | None:
    moments = values.cast(pa.int64())
    return "holds times before those of PostgreSQL" if _beyond(moments, FIRST_MICROSECOND, 2**63 - 1) else None


def _beyond(values: Any, first: int, last: int) -> bool:
    found: Any = pc.min_max(values).as_py()
    return found["min"] is not None and not first <= found["min"] <= found["max"] <= last
