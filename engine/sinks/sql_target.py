"""What a database has to offer so that a sink can commit to it: columns, a transaction, and its own words for failures.

Laws
    - ``Target.transact`` is durable when it returns. When it raises, nothing happened, or all of it did and the answer
      was lost: the marks in the database tell which.
    - A value that the database would reject or change is found by ``Column.stored``, before its row is committed:
      behind the commit point there is nobody left to say no.
    - ``RefusedError`` is final, ``OSError`` may pass: the runtime tries again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from engine._core.partition import take

__all__ = ["BUSY_WAIT_S", "Column", "RefusedError", "Session", "TableColumn", "Target", "decoded_type", "quoted"]

BUSY_WAIT_S = 5.0
"""How long one attempt waits for a lock that somebody else holds."""

T = TypeVar("T")


class RefusedError(Exception):
    """The database says no, and would again. Its own exception, where there is one, is the ``__cause__``."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of rows as the database keeps it."""

    name: str
    sql_type: str
    form: pa.DataType
    """The Arrow type in which rows are staged and inserted."""

    convert: Callable[[Any], Any] | None = None
    """Makes the form of decoded values, where a cast does not."""

    fault: Callable[[Any], str | None] | None = None
    """What is wrong with values in that form; None where nothing is."""

    def stored(self, values: Any) -> Any:
        """``values`` in the form. Raises RefusedError, or Arrow's errors, where the database could not hold them."""
        decoded = _decoded(values)
        if self.convert is not None:
            decoded = self.convert(decoded)
        if not decoded.type.equals(self.form):
            decoded = decoded.cast(self.form)
        if self.fault is not None and (found := self.fault(decoded)) is not None:
            raise RefusedError(f'column "{self.name}" {found}')
        return decoded


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table that exists and that values can be inserted into."""

    name: str
    sql_type: str
    not_null: bool
    has_default: bool


class Session(Protocol):
    """An open transaction. Its methods raise the driver's errors, which ``Target.transact`` explains."""

    def lock_marks(self) -> None:
        """Keep other sinks from making tables until the transaction ends."""

    def qualified(self, table: str) -> str:
        """The quoted name of a table, whatever the search path is."""

    def columns(self, table: str) -> list[TableColumn] | None:
        """The columns of a table, None where there is none. Raises RefusedError for a view and the like."""

    def same_type(self, sql_type: str, found: str) -> bool:
        """Whether a column of type ``found`` gives back what one of ``sql_type`` does."""

    def execute(self, sql: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        """Run a statement with ``?`` for parameters; its rows."""

    def update(self, sql: str, *parameters: str | int) -> int:
        """Run an UPDATE; how many rows it changed."""

    def insert(self, table: str, rows: pa.RecordBatchReader) -> None:
        """Insert rows, in order, by the names of their columns."""


class Target(Protocol):
    """A database."""

    @property
    def kind(self) -> str:
        """The name of its function in ``engine.sinks``."""

    @property
    def label(self) -> str:
        """The database as messages name it, without secrets."""

    def column(self, name: str, type: pa.DataType) -> Column | None:
        """How a column of a decoded type is kept; None for a type that it cannot be kept in."""

    def advice(self, type: pa.DataType) -> str:
        """What to do about a type that ``column`` does not take."""

    def name_fault(self, name: str) -> str | None:
        """Why this cannot be the name of a table or column; None where it can."""

    def identity(self, name: str) -> str:
        """The same for all names that the database takes for the same."""

    def is_absent(self) -> bool:
        """Whether there is no database yet, and a transaction would make one."""

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in one transaction, again where others were in the way. Raises OSError and RefusedError."""


def decoded_type(type: Any) -> Any:
    """The type of the values, where they are encoded by a dictionary or by runs."""
    encoded = pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type)
    return decoded_type(type.value_type) if encoded else type


def _decoded(values: Any) -> Any:
    while True:
        if pa.types.is_dictionary(values.type):
            values = take(values.dictionary, values.indices)
        elif pa.types.is_run_end_encoded(values.type):
            values = pc.run_end_decode(values)  # type: ignore[attr-defined]  # the stubs lack it
        else:
            return values


def quoted(name: str) -> str:
    """``name`` as SQL takes it for a name, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
