"""What the sinks of databases share: rows wait in segments, and one transaction moves mark and rows. Class A: exactly
once.

    prepare   rows ─► segments below the state directory, durable
    COMMIT    (the runtime's)
    commit    one transaction: the mark in engine_commits from the last epoch to this one, and the rows
    retire    segments go

Laws
    - A sink is a description until ``open``; each ``open`` begins anew, so that one pipeline may run many times.
    - No connection is held between transactions: readers and other sinks find the database free.
    - Databases add a ``Target``; nothing else differs.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from engine.errors import PipelineError, SinkError
from engine.progress import Epoch, Token
from engine.sink import Guarantee
from engine.sinks.commit_marks import MARKS, CommitMarks, Mark
from engine.sinks.failure import sink_failure
from engine.sinks.segments import Newest, Segments, SegmentWriter
from engine.sinks.sql_target import Column, RefusedError, Session, Target, decoded_type
from engine.storage import Storage

__all__ = ["TransactionalSink"]

T = TypeVar("T")


class TransactionalSink:
    """A table of a database; made by ``sqlite``, ``duckdb`` and ``postgres``. ``storage`` may be replaced before
    ``open``.
    """

    pipeline: str | None = None
    """The name of the pipeline, for messages; whoever runs it may set it."""

    directory: str | None = None
    """Where segments wait, below the state directory; the run sets it."""

    def __init__(self, target: Target, *, table: str, mode: str, storage: Storage | None = None) -> None:
        faults = []
        if mode not in ("error", "append"):
            faults.append(f'{target.kind}: mode is {mode!r}; "error" and "append" there are')
        if not isinstance(table, str):
            faults.append(f"{target.kind}: table must be a name, found {table!r}")
        elif fault := _name_fault(target, table):
            faults.append(f"{target.kind}: table {fault}")
        elif target.identity(table) == target.identity(MARKS):
            faults.append(f"{target.kind}: table {MARKS} holds the marks of commits; choose another name")
        if faults:
            raise PipelineError(faults)
        self.table = table
        self.mode = mode
        self.storage = storage if storage is not None else Storage()
        self._target = target
        self._columns: list[Column] = []
        self._required: frozenset[str] = frozenset()
        self._marks: CommitMarks | None = None
        self._segments: Segments | None = None
        self._newest = Newest()
        self._committed: Epoch = 0

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The database, without secrets, and the table."""
        return f"{self._target.kind}({self._target.label}, table={self.table})"

    @property
    def location(self) -> str:
        """The database, without secrets, and the table."""
        return f"{self._target.label}, table {self.table}"

    @property
    def guarantee(self) -> Guarantee:
        """Exactly once."""
        return Guarantee.EXACTLY_ONCE

    def faults(self, schema: pa.Schema) -> list[str]:
        """Why rows of ``schema`` cannot be written; empty where they can. Touches nothing."""
        return self._map(schema)[1]

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Begin a run: make the table, or check that it is ours and fits. Raises SinkError, and then touches nothing.

        Nothing is buffered: rows go to segments as they come.
        """
        columns, faults = self._map(schema)
        if faults:
            raise SinkError("\n".join(f"{self.name}: {fault}" for fault in faults), sink=self.name)
        if self.directory is None:
            raise SinkError(f"{self.name} needs state=…, to be exactly-once", sink=self.name)
        writer = f'"{self.pipeline}"' if self.pipeline else "this pipeline"
        shared = self.mode == "append"
        marks = CommitMarks(self._target, self.table, sink=self.name, writer=writer, shared=shared)
        segments = Segments(self.storage, self.directory, sink=self.name)
        newest = segments.newest(token.epoch)
        if token.epoch and self._target.is_absent():
            raise marks.behind(0, token.epoch)
        mark, required = self._transact("cannot be opened", partial(_claim, marks, self.table, columns, token, newest))
        segments.make_directory()
        self._columns, self._required = columns, frozenset(required)
        self._marks, self._segments = marks, segments
        self._newest, self._committed = newest, mark.epoch

    def writer(self, partition: int, token: Token) -> SegmentWriter:
        """The writer of one partition for the epoch of ``token``. May be called on any thread."""
        segments = self._opened()
        return SegmentWriter(segments, self._columns, self._required, token, partition, lambda: self._committed)

    def commit(self, handles: Sequence[Any]) -> None:
        """Insert the rows of prepared segments and move the mark, in one transaction. Idempotent. Raises SinkError.

        Where an OSError is the cause, the database was busy or out of reach, and it helps to try again.
        """
        segments = self._opened()
        prepared = sorted((handle for handle in handles if handle is not None), key=lambda handle: handle["partition"])
        if not prepared:
            return
        token = Token(prepared[0]["incarnation"], prepared[0]["epoch"], prepared[0]["term"], self.name)
        self._transact(f"epoch {token.epoch} cannot be committed", partial(self._publish, segments, token, prepared))
        self._committed = token.epoch
        with suppress(OSError):  # the rows are safe; what is left of segments goes with the next commit, or run
            segments.retire(token.epoch)

    def discard_after(self, token: Token) -> None:
        """Remove the segments of epochs after ``token``'s, and what is left of those before. Raises SinkError.

        Every earlier epoch must have been committed before: the database must not be behind.
        """
        segments = self._opened()
        if self._committed < self._newest.epoch and self._marks is not None:
            raise self._marks.behind(self._committed, self._newest.epoch)
        with sink_failure(f"{self.name}: segments cannot be removed", sink=self.name):
            segments.discard_after(token.epoch)
            segments.retire(token.epoch)

    def _publish(self, segments: Segments, token: Token, handles: Sequence[Any], session: Session) -> None:
        assert self._marks is not None
        if not self._marks.advance(session, token, handles[0]["after"]):
            return
        segments.verify(handles)
        for handle in handles:
            with segments.reading(handle) as rows:
                session.insert(self.table, rows)

    def _transact(self, doing: str, work: Callable[[Session], T]) -> T:
        try:
            return self._target.transact(work)
        except (RefusedError, OSError, pa.ArrowException) as error:
            cause = error.__cause__ if isinstance(error, RefusedError) and error.__cause__ is not None else error
            held = isinstance(cause, OSError) and cause.errno == errno.EAGAIN
            advice = "End what holds the database, another process or a transaction," if held else "Mend it"
            raise SinkError(
                f"{self.name}: {doing}: {error}.\n  Nothing uncommitted is visible. {advice} and run again.",
                sink=self.name,
            ) from cause

    def _opened(self) -> Segments:
        if self._segments is None:
            raise SinkError(f"{self.name} is not open", sink=self.name)
        return self._segments

    def _map(self, schema: pa.Schema) -> tuple[list[Column], list[str]]:
        """The columns of the table for rows of ``schema``, and what is wrong with it."""
        columns: list[Column] = []
        faults: list[str] = []
        seen: dict[str, str] = {}
        for field in schema:
            identity = self._target.identity(field.name)
            if fault := _name_fault(self._target, field.name):
                faults.append(f"column {fault}")
            elif identity in seen:
                other = seen[identity]
                faults.append(f'columns "{other}" and "{field.name}" have the same name in {self._target.kind}')
            seen[identity] = field.name
            column = self._target.column(field.name, decoded_type(field.type))
            if column is None:
                faults.append(f'column "{field.name}" is {field.type}; {self._target.advice(field.type)}')
            else:
                columns.append(column)
        if not len(schema):
            faults.append("rows without columns cannot be kept in a table")
        return columns, faults


def _claim(
    marks: CommitMarks, table: str, columns: Sequence[Column], token: Token, newest: Newest, session: Session
) -> tuple[Mark, list[str]]:
    claimed = marks.claim(session, columns, token, newest)
    # No rows, for the database's word: that columns and rights suffice must be known before anything is committed.
    session.insert(table, pa.RecordBatchReader.from_batches(pa.schema([(c.name, c.form) for c in columns]), []))
    return claimed


def _name_fault(target: Target, name: str) -> str | None:
    if not name:
        return "needs a name"
    if "\0" in name:
        return f'"{name!r}" holds a zero byte'
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{name!r} is no text: it has halves of letters"
    return target.name_fault(name)
