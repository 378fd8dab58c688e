"""Rows into a function of the user. Class C: at least once.

Laws
    - The function has returned for every row of an epoch before the epoch's commit.
    - After a crash it is called again for rows since the last commit. A ``CallToken`` names the rows by where they
      came from, so that a handler that remembers tokens can skip them; where a source cuts its batches differently on
      replay, ranges differ too.
    - Calls of one partition follow each other in order; different partitions call at the same time, on different
      threads.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.batch import Origin
from engine.errors import PipelineError, SinkError
from engine.progress import Token
from engine.sink import Guarantee, Handle
from engine.storage import Storage

__all__ = ["CallSink", "CallToken", "call"]


@dataclass(frozen=True, slots=True)
class CallToken:
    """Names the rows of one call: those of rows ``[start, stop)`` of ``source`` that went to one partition.

    ``part`` tells calls with the same range apart: the partition, plus the number of partitions for each call before.
    """

    source: str
    start: int
    stop: int
    part: int

    def __str__(self) -> str:
        return f"{self.source}[{self.start}:{self.stop}]#{self.part}"


def call(fn: Callable[[pa.RecordBatch, CallToken], object]) -> "CallSink":
    """Call ``fn(batch, token)`` with the rows, at least once each; what it returns is ignored, what it raises ends the
    run.

    ``fn`` is called on worker threads, for several partitions at the same time. Raises PipelineError for an async
    function.
    """
    return CallSink(fn)


class CallSink:
    """A function that takes the rows; made by ``call``. ``storage`` is not used."""

    location = ""

    def __init__(self, fn: Callable[[pa.RecordBatch, CallToken], object], *, storage: Storage | None = None) -> None:
        if not callable(fn):
            raise PipelineError(f"call: a function is needed, not {type(fn).__name__}")
        if inspect.iscoroutinefunction(fn):
            raise PipelineError(
                f"call: {_name_of(fn)} is async; give a plain function, it is called on a worker thread"
            )
        self.storage = storage
        self._fn = fn
        self._partitions = 1

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """``call`` and the name of the function."""
        return f"call({_name_of(self._fn)})"

    @property
    def guarantee(self) -> Guarantee:
        """At least once."""
        return Guarantee.AT_LEAST_ONCE

    def faults(self, schema: pa.Schema) -> list[str]:
        """Any schema will do."""
        return []

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Begin a run."""
        self._partitions = partitions

    def writer(self, partition: int, token: Token) -> "_CallWriter":
        """The calls of one partition in one epoch."""
        return _CallWriter(self._fn, self.name, partition, self._partitions)

    def commit(self, handles: Sequence[Handle]) -> None:
        """Nothing is left to do: the function has returned."""

    def discard_after(self, token: Token) -> None:
        """Nothing is staged."""


class _CallWriter:
    def __init__(
        self, fn: Callable[[pa.RecordBatch, CallToken], object], sink: str, partition: int, stride: int
    ) -> None:
        self._fn = fn
        self._sink = sink
        self._partition = partition
        self._stride = stride
        self._last: CallToken | None = None

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        """Call the function. Raises SinkError with the function's exception as its cause."""
        if rows.num_rows == 0:
            return
        self._last = named = self._name(origin)
        try:
            self._fn(rows, named)
        except Exception as error:
            raise SinkError(
                f"{self._sink} failed on {rows.num_rows:,} rows: {type(error).__name__}: {error}\n"
                f"  {origin}, partition {self._partition}. These rows will be given again by the next run.",
                sink=self._sink,
                partition=self._partition,
            ) from error

    def prepare(self) -> None:
        """Nothing is staged."""

    def abort(self) -> None:
        """Nothing is open."""

    def _name(self, origin: Origin) -> CallToken:
        rows = (origin.location, origin.start, origin.stop)
        last = self._last
        repeated = last is not None and (last.source, last.start, last.stop) == rows
        part = last.part + self._stride if last is not None and repeated else self._partition
        return CallToken(*rows, part)


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))
