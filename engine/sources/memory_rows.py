"""Rows that are in memory already, or come from a stream or an iterator of this process, as a source.

The offset is ``{"rows": n}``; for what can be opened again a durable one also has the ``checksum`` of the first n rows
(``row_checksum``), which are compared when the source is opened behind them.

Laws
    - What was handed over in process is trusted: rows are not validated, and their types are kept.
    - What can be read only once is read once: opening it again is an error, never an empty stream.
    - Nothing is read before ``schema`` or ``open`` is called.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from engine.batch import Origin
from engine.errors import EngineError, InputError, PipelineError, SourceError
from engine.progress import Offset
from engine.source import Read, Replay
from engine.sources.file_source import sliced
from engine.sources.row_checksum import RowChecksum
from engine.sources.row_schema import Fit, check_columns, declared_schema

__all__ = ["MemorySource", "memory"]

Resume: TypeAlias = Literal["skip", "continue"]


def memory(
    data: Any, *, id: str | None = None, schema: pa.Schema | None = None, resume: Resume | None = None
) -> "MemorySource":
    """Read rows of this process.

    ``data``: anything with ``__arrow_c_stream__`` or ``__arrow_c_array__`` (pyarrow, pandas, Polars, DuckDB), a
    sequence of such batches, or a function without arguments that gives a fresh one: these are repeatable, and after a
    crash the rows before the offset are skipped and compared with a checksum. A ``RecordBatchReader``, an iterator or
    a generator of batches can be read once: after a crash it needs ``resume="skip"`` (it begins with the rows that
    were committed) or ``"continue"`` (it begins with new ones). ``id`` is the stable name that a durable state asks
    for. ``schema``: cast to these types, where that loses nothing; else the data's, or the first batch's. Raises
    PipelineError; reading raises InputError and SourceError.
    """
    if id is not None and (not isinstance(id, str) or not id):
        raise PipelineError(f"read: id= must be a name, found {id!r}")
    if resume not in (None, "skip", "continue"):
        raise PipelineError(f'read: resume= must be "skip" or "continue", found {resume!r}')
    replay, batches = _opener(data)
    if resume is not None and replay is not Replay.ONCE:
        raise PipelineError("read: resume= is for iterators and streams; these rows can be read again and are compared")
    return MemorySource(id, declared_schema(schema), resume, replay, batches)


@dataclass(slots=True, eq=False)
class _Cell:
    """What is learnt about the data while the source, a value, stays as it is."""

    schema: pa.Schema | None = None


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Rows of this process."""

    id: str | None
    declared: pa.Schema | None
    resume: Resume | None
    replay: Replay
    batches: "_Batches" = field(repr=False)
    _learnt: _Cell = field(default_factory=_Cell, repr=False, compare=False)

    @property
    def name(self) -> str:
        """``memory(id)``."""
        return "memory" if self.id is None else f"memory({self.id})"

    def schema(self) -> pa.Schema:
        """The declared schema, the data's, or that of the first batch. Raises InputError."""
        if self.declared is not None:
            return self.declared
        if self._learnt.schema is None:
            schema = _guarded(self.name, self.batches.schema)
            if schema is None:
                raise InputError(f"{self.name}: there is no batch to take the schema from.\n  Pass schema=.")
            check_columns(schema, self.name)
            self._learnt.schema = schema
        return self._learnt.schema

    def open(self, offset: Offset | None, *, durable: bool) -> "MemoryReader":
        """Begin behind ``offset``. Raises InputError where the rows before it are others, or cannot be read again."""
        committed = 0 if offset is None else int(offset["rows"])
        if self.replay is Replay.ONCE and committed and self.resume is None:
            raise InputError(
                f"{self.name}: {committed:,} rows are committed, and an iterator or stream cannot be read again.\n"
                '  Pass resume="skip" if it begins with the same rows, or resume="continue" if it begins with new ones.'
            )
        if self.batches.opened:
            raise InputError(f"{self.name}: was read already; an iterator or stream is read once.\n  Give a fresh one.")
        expected = self.schema()
        checksum = RowChecksum() if durable and self.replay is Replay.REPEATABLE else None
        reader = MemoryReader(self.name, _guarded(self.name, self.batches.open), expected, self.declared, checksum)
        if self.resume == "continue":
            reader.begin_at(committed)
        elif committed:
            reader.skip(committed)
            if self.replay is Replay.REPEATABLE:
                self._compare(reader, offset, checksum)
        return reader

    def _compare(self, reader: "MemoryReader", offset: Offset, checksum: RowChecksum | None) -> None:
        if checksum is not None and offset.get("checksum") != checksum.hexdigest():
            reader.close()
            raise _first_differ(self.name, int(offset["rows"]))

    def before(self, offset: Offset) -> "MemoryReader":
        """The rows that came before ``offset``, compared with its checksum. Raises InputError."""
        reader = self.open(None, durable=True)
        reader.end_at(int(offset["rows"]), offset.get("checksum"))
        return reader

    def in_order_before(self, offset: Offset) -> bool:
        """Always: the checksum is that of an order too."""
        return True

    def ack(self, offset: Offset) -> None:
        """The caller's memory is the caller's: nothing to do."""

    def covers(self, directory: str) -> bool:
        """Never: nothing is read from files."""
        return False


class MemoryReader:
    """One pass over the rows."""

    def __init__(
        self,
        name: str,
        batches: Iterator[pa.RecordBatch],
        expected: pa.Schema,
        declared: pa.Schema | None,
        checksum: RowChecksum | None,
    ) -> None:
        self._name = name
        self._whole = batches
        self._batches = sliced(batches)
        self._expected = expected
        self._declared = declared is not None
        self._checksum = checksum
        self._row = 0
        self._end: int | None = None
        self._end_checksum: str | None = None
        self._fits: tuple[pa.Schema, Fit] | None = None

    def read(self) -> Read | None:
        """Give the next rows, or None at the end. Raises InputError; SourceError where the caller's iterator raises."""
        if self._row == self._end:
            return None
        rows = self._next()
        if self._end is not None:
            if rows is None:
                raise _fewer_rows(self._name, self._end, self._row)
            rows = rows.slice(0, self._end - self._row)
        if rows is None:
            return None
        start, self._row = self._row, self._row + rows.num_rows
        offset: dict[str, int | str] = {"rows": self._row}
        if self._checksum is not None:
            self._checksum.update(rows)
            offset["checksum"] = self._checksum.hexdigest()
            if self._row == self._end and offset["checksum"] != self._end_checksum:
                raise _first_differ(self._name, self._row)
        return Read(rows, Origin(self._name, self._name, start, self._row), offset)

    def end_at(self, row: int, checksum: str | None) -> None:
        """Give only the rows before ``row``, which have this checksum."""
        self._end, self._end_checksum = row, checksum

    def begin_at(self, row: int) -> None:
        """Count rows from ``row``: those before were other ones."""
        self._row = row

    def skip(self, count: int) -> None:
        """Pass over the first ``count`` rows. Raises InputError where there are fewer."""
        while self._row < count:
            rows = self._next()
            if rows is None:
                raise _fewer_rows(self._name, count, self._row)
            passed = rows.slice(0, count - self._row)
            if self._checksum is not None:
                self._checksum.update(passed)
            self._row += passed.num_rows
            if passed.num_rows < rows.num_rows:
                self._batches = chain([rows.slice(passed.num_rows)], self._batches)

    def close(self) -> None:
        """Close the stream, where it can be closed."""
        close = getattr(self._whole, "close", None)
        self._batches = iter(())
        if close is not None:
            close()

    def _next(self) -> pa.RecordBatch | None:
        try:
            rows = next(self._batches, None)
        except EngineError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise SourceError(
                f"{self._name}: the stream failed behind row {self._row:,}: {reason}.\n"
                "  All before the last commit is safe. Mend it and run again.",
                source=self._name,
            ) from error
        return None if rows is None else self._fitted(rows)

    def _fitted(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if rows.schema.equals(self._expected, check_metadata=True):
            return rows
        if self._fits is None or self._fits[0] != rows.schema:
            location = f"{self._name} row {self._row:,}"
            self._fits = (rows.schema, Fit(rows.schema, self._expected, location, declared=self._declared))
        return self._fits[1].apply(rows, self._row)


def _first_differ(name: str, count: int) -> InputError:
    return _other_rows(name, f"the first {count:,} differ")


def _fewer_rows(name: str, count: int, found: int) -> InputError:
    return _other_rows(name, f"{count:,} were committed, it has {found:,}")


def _other_rows(name: str, what: str) -> InputError:
    return InputError(
        f"{name}: holds other rows than at the last run ({what}).\n"
        "  Give it the same rows in the same order, another id=, or begin anew with another state directory."
    )


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except EngineError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SourceError(f"{name}: cannot be opened: {reason}.\n  Mend it and run again.", source=name) from error


class _Fresh:
    """Batches that can be had anew: ``make`` gives something with a schema and batches each time."""

    opened = False
    """It can be opened again and again."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def schema(self) -> pa.Schema | None:
        return _schema_of(self._make())

    def open(self) -> Iterator[pa.RecordBatch]:
        return _batches_of(self._make())


class _OneShot:
    """Batches that can be had once; the first may be looked at before."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._peeked: list[pa.RecordBatch] = []
        self._batches: Iterator[pa.RecordBatch] | None = None
        self.opened = False

    def schema(self) -> pa.Schema | None:
        if isinstance(self._data, pa.RecordBatchReader):
            return self._data.schema
        if self._batches is None:
            self._batches = _batches_of(self._data)
            self._peeked = [batch for batch in [next(self._batches, None)] if batch is not None]
        return self._peeked[0].schema if self._peeked else None

    def open(self) -> Iterator[pa.RecordBatch]:
        self.opened = True
        if self._batches is None:
            return _batches_of(self._data)
        return _put_back(self._peeked, self._batches)


def _put_back(peeked: list[pa.RecordBatch], rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from peeked
        yield from rest
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            close()


_Batches: TypeAlias = "_Fresh | _OneShot"


def _opener(data: Any) -> tuple[Replay, _Batches]:
    """Tell what can be read again from what cannot. Raises PipelineError where it is no rows at all."""
    if hasattr(data, "__next__"):
        return Replay.ONCE, _OneShot(data)
    if _is_arrow(data) or (isinstance(data, Sequence) and not isinstance(data, str | bytes | bytearray)):
        return Replay.REPEATABLE, _Fresh(lambda: data)
    if callable(data) and not isinstance(data, type):
        return Replay.REPEATABLE, _Fresh(data)
    kind = type(data).__name__
    hint = "; collect() it first" if kind == "LazyFrame" else ""
    expected = "an object with __arrow_c_stream__, batches, or a function that gives them"
    raise PipelineError(f"read: expected rows ({expected}), found {kind}{hint}")


def _is_arrow(data: Any) -> bool:
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")


def _schema_of(data: Any) -> pa.Schema | None:
    if isinstance(data, pa.Table | pa.RecordBatch | pa.RecordBatchReader):
        return data.schema
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data).schema
    first = next(_batches_of(data), None)
    return None if first is None else first.schema


def _batches_of(data: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(data, pa.Table):
        return iter(data.to_batches())
    if isinstance(data, pa.RecordBatch):
        return iter([data])
    if hasattr(data, "__arrow_c_stream__"):
        return iter(pa.RecordBatchReader.from_stream(data))
    if hasattr(data, "__arrow_c_array__"):
        return iter([pa.record_batch(data)])
    if isinstance(data, Iterable):
        return _elements(data)
    raise TypeError(f"expected record batches, found {type(data).__name__}")


def _each(element: Any) -> Iterator[pa.RecordBatch]:
    if not _is_arrow(element):
        raise TypeError(f"expected record batches, found {type(element).__name__}")
    return _batches_of(element)


def _elements(data: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    try:
        for element in data:
            yield from _each(element)
    finally:
        close = getattr(data, "close", None)
        if close is not None:
            close()
