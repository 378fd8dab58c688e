"""The contract of a source: where rows enter, and how reading begins again after a crash.

A ``Source`` is a value: it names its rows and opens readers. A ``Reader`` reads them once, in order, on a thread of
its own.

Laws
    - ``open(offset)`` followed by reading yields exactly the rows behind ``offset``, in the same order every time;
      where the borders of batches fall may differ.
    - ``name`` is stable: the COMMIT records it, and a pipeline whose sources have other names is another pipeline.
    - An offset is committed only after every row before it; ``ack`` is advisory, the COMMIT is the truth.
"""

from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from engine.batch import Origin
from engine.progress import Offset

__all__ = ["Read", "Reader", "Replay", "Rereads", "Source"]


class Replay(Enum):
    """What a source can do after a crash."""

    REPLAYABLE = "replayable"
    """Seeks to any offset: files, a log, a broker."""

    REPEATABLE = "repeatable"
    """Starts anew and skips; the skipped rows are compared with a checksum: tables in memory."""

    ONCE = "once"
    """Cannot start anew: iterators and one-shot streams."""


class Read(NamedTuple):
    """What one read gives: rows, where they came from, and the offset of the row behind them."""

    rows: pa.RecordBatch
    origin: Origin
    offset: Offset


@runtime_checkable
class Reader(Protocol):
    """One pass over a source's rows. Used by one thread at a time."""

    def read(self) -> Read | None:
        """Give the next batch (at most 65,536 rows), or None at the end. May block. Raises SourceError."""

    def close(self) -> None:
        """Release files and memory. Harmless when repeated."""


@runtime_checkable
class Source(Protocol):
    """Where rows enter: an immutable value."""

    @property
    def name(self) -> str:
        """A stable name, unique in the pipeline."""

    @property
    def replay(self) -> Replay:
        """What it can do after a crash."""

    def schema(self) -> pa.Schema:
        """The schema of all its rows; reads footers and headers, not rows. Raises InputError."""

    def open(self, offset: Offset | None, *, durable: bool) -> Reader:
        """Begin behind ``offset`` (None: at the first row). ``durable``: offsets will be committed.

        Raises InputError where the rows before ``offset`` are no longer what they were.
        """

    def ack(self, offset: Offset) -> None:
        """Everything before ``offset`` is committed: the source may forget it."""

    def covers(self, directory: str) -> bool:
        """Whether it would read files in ``directory``: an output there would become its own input."""


@runtime_checkable
class Rereads(Protocol):
    """A source that can give once more what came before an offset, whatever has come since: a repair asks for it."""

    def before(self, offset: Offset) -> Reader:
        """Exactly the rows from the first one on that led to ``offset``; it ends there.

        Raises InputError, also while reading, where they are gone or are others.
        """

    def in_order_before(self, offset: Offset) -> bool:
        """Whether ``before`` gives them in the order in which they came."""
