"""The contract of a sink: where rows leave, invisible until the commit and exactly once after it.

A ``Sink`` is opened once a run; a ``Writer`` takes the rows of one partition and one epoch on one thread at a time.

Laws
    - Nothing that a writer writes is visible to readers before ``commit``.
    - ``Writer.prepare`` returns when the rows are durable, with a handle (JSON) that alone suffices to publish them:
      in another process, after any crash.
    - ``commit`` is idempotent: it may be called again with the same handles, and then changes nothing.
    - ``discard_after(token)`` removes what was staged under later epochs, never anything that was published.
    - ``open`` takes an empty target, and one that its own incarnation left, wherever that ended: between any two calls,
      or within one. One that holds rows of another incarnation, or of a later epoch than the last commit's, is
      refused and stays as it is; only a sink whose target is shared with others lets theirs be.
    - The rows of a partition keep their order. An epoch without rows publishes nothing.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from engine.batch import Origin
from engine.progress import Token
from engine.storage import Storage

__all__ = [
    "ChecksSchema",
    "Guarantee",
    "Handle",
    "Holding",
    "Located",
    "OutputFiles",
    "Sink",
    "StagesInState",
    "UsesStorage",
    "Writer",
]

Handle: TypeAlias = Any
"""What a writer prepared: a value that JSON can hold."""


class Guarantee(Enum):
    """What a sink promises for the effect of each row across any number of crashes."""

    EXACTLY_ONCE = "exactly-once"
    AT_LEAST_ONCE = "at-least-once"


@runtime_checkable
class Writer(Protocol):
    """The rows of one partition in one epoch."""

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        """Take rows, in order, that came from ``origin``. Raises SinkError."""

    def prepare(self) -> Handle | None:
        """Make the rows durable, still invisible; None where there is nothing to publish. Raises SinkError."""

    def abort(self) -> None:
        """Give up: close files and forget the rows. Harmless after ``prepare``."""


@runtime_checkable
class Sink(Protocol):
    """Where rows leave."""

    @property
    def name(self) -> str:
        """A stable name: the COMMIT records it."""

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Prepare for a run: check that the target is ours or empty. ``token`` is that of the last commit (epoch 0:
        none).

        ``memory_bytes`` is what all writers together may buffer. Raises SinkError; nothing is touched then.
        """

    def writer(self, partition: int, token: Token) -> Writer:
        """A writer for one partition and the epoch of ``token``; that of partition 0 also where there are no rows."""

    def commit(self, handles: Sequence[Handle]) -> None:
        """Publish what was prepared; idempotent. Raises SinkError; it will be called again with the same handles."""

    def discard_after(self, token: Token) -> None:
        """Remove everything that was staged in epochs after ``token``'s and never committed. Raises SinkError."""


@runtime_checkable
class Holding(Protocol):
    """What a sink has besides that holds something for the length of a run, such as a lock or a connection."""

    def close(self) -> None:
        """The run has ended, however: let go. Harmless when repeated."""


@runtime_checkable
class UsesStorage(Protocol):
    """A sink whose files go through a ``Storage``."""

    storage: Storage | None
    """May be replaced before ``open``: a run puts one there that refuses changes once the state directory is lost."""


@runtime_checkable
class ChecksSchema(Protocol):
    """A sink that can tell before a run whether it takes the rows."""

    def faults(self, schema: pa.Schema) -> list[str]:
        """Why rows of ``schema`` cannot be written; empty where they can. Touches nothing."""


@runtime_checkable
class StagesInState(Protocol):
    """A sink that keeps prepared rows in the state directory until their commit."""

    pipeline: str | None
    """The name of the pipeline that runs, for messages; the run sets it."""

    directory: str | None
    """A directory of its own below the state directory; the run sets it before ``open``. It may not exist yet."""


@runtime_checkable
class Located(Protocol):
    """A sink that can say where its rows are."""

    @property
    def location(self) -> str:
        """A directory as it was given, or a table, without secrets; empty where there is no such place."""


@runtime_checkable
class OutputFiles(ChecksSchema, Located, Protocol):
    """What a sink that writes files tells besides: for checks before a run, and for its report."""

    pipeline: str | None
    """The name of the pipeline that runs, for messages; the run sets it."""

    @property
    def published_files(self) -> int:
        """Files that this run published."""
