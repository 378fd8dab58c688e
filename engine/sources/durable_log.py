"""The rows of a durable log as a source. Replayable: it begins again at any row.

The offset is ``{"offsets": [partition 0, partition 1, …]}``: of the next row in each partition.

Laws
    - What is read is what was durable when the source was opened; rows that come later are for the next run.
    - Rows of one partition keep their order. The partition that was read least far goes next: so the order of all rows
      follows from the offset.
    - With ``group`` the log is told what was committed, after the commit: retention keeps the rest.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from engine.batch import Origin
from engine.errors import InputError, LogError, PipelineError, SourceError
from engine.log.log import Log
from engine.log.reader import Rows
from engine.path_argument import path_fault
from engine.progress import Offset
from engine.source import Read, Replay
from engine.storage import Storage

__all__ = ["LogSource", "log"]

BATCH_ROWS = 65_536


def log(
    path: str | os.PathLike[str], *, start: int = 0, stop: int | None = None, group: str | None = None
) -> "LogSource":
    """Read a durable log from ``start`` to ``stop`` of each partition, or to what is durable when the run begins.

    With ``group`` it begins behind what the group has committed (or at ``start``, if that is later), and commits for
    the group what the pipeline commits; the log keeps all rows behind that. Replayable. Raises PipelineError; reading
    raises InputError where rows are gone or there is no log, SourceError for damage.
    """
    if fault := path_fault(path):
        raise PipelineError(f"read: log: {fault}")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise PipelineError(f"read: log: start= must be an offset, found {start!r}")
    if stop is not None and (isinstance(stop, bool) or not isinstance(stop, int) or stop < start):
        raise PipelineError(f"read: log: stop= must be an offset from {start} on, found {stop!r}")
    if group is not None and (not isinstance(group, str) or not group):
        raise PipelineError(f"read: log: group= must be a name, found {group!r}")
    return LogSource(os.fspath(path), start, stop, group)


@dataclass(frozen=True, slots=True)
class LogSource:
    """The rows of a log; made by ``log``."""

    path: str
    begin: int
    stop: int | None
    group: str | None
    storage: Storage = field(default_factory=Storage, repr=False, compare=False)

    @property
    def name(self) -> str:
        """``log`` and the path as given."""
        return f"log({os.path.normpath(self.path)})"

    @property
    def replay(self) -> Replay:
        """The log is read again from any row."""
        return Replay.REPLAYABLE

    def schema(self) -> pa.Schema:
        """The log's. Raises InputError where there is none yet."""
        with self._opened() as opened:
            if opened.schema is None:
                raise InputError(
                    f"{self.name} has no rows yet and no schema.\n  Append some, or make it with a schema."
                )
            return opened.schema

    def open(self, offset: Offset | None, *, durable: bool) -> "LogReader":
        """Begin behind ``offset``, or behind what the group has committed. Raises InputError, SourceError."""
        opened = self._opened()
        try:
            if offset is not None:
                starts = [int(start) for start in offset["offsets"]]
            else:
                taken = opened.groups[self.group].offsets() if self.group is not None else (0,) * opened.partitions
                starts = [max(self.begin, start) for start in taken]
            if len(starts) != opened.partitions:
                raise InputError(
                    f"{self.name} has {opened.partitions} partitions; rows of {len(starts)} are committed.\n"
                    "  It is another log; bring back the one of before."
                )
            return LogReader(self, opened, starts)
        except BaseException:
            opened.close()
            raise

    def ack(self, offset: Offset) -> None:
        """Let the group commit: the log may forget what is before ``offset``. Raises SourceError."""
        if self.group is None or offset is None:
            return
        with self._opened() as opened:
            try:
                for partition, taken in enumerate(offset["offsets"]):
                    opened.groups[self.group].commit(int(taken), partition=partition)
            except LogError as error:
                raise SourceError(f"{self.name}: {error}", source=self.name) from error

    def covers(self, directory: str) -> bool:
        """Whether ``directory`` is this log, or in it."""
        own, other = os.path.realpath(self.path), os.path.realpath(directory)
        return os.path.commonpath([own, other]) in (own, other)

    def _opened(self) -> Log:
        try:
            return Log(self.path, write=False, storage=self.storage)
        except LogError as error:
            raise InputError(f"{self.name}: {error}", source=self.name) from error


class LogReader:
    """One pass over a log's rows."""

    def __init__(self, source: LogSource, opened: Log, starts: list[int]) -> None:
        self._source = source
        self._log = opened
        self._offsets = starts
        self._batches: dict[int, Iterator[Rows]] = {}  # of partitions that are not read to their end
        for partition, start in enumerate(starts):
            end = opened.end(partition=partition)
            stop = end if source.stop is None else min(end, source.stop)
            if start > end:
                raise InputError(
                    f"{source.name}: row {start:,} of partition {partition} is committed; the log ends at {end:,}.\n"
                    "  It is another log, or an older copy; bring back the one of before."
                )
            self._batches[partition] = _sliced(opened.read_with_offsets(start, max(start, stop), partition=partition))

    def read(self) -> Read | None:
        """Give rows of the partition whose turn it is, or None behind the last. Raises SourceError."""
        while self._batches:
            partition = min(self._batches, key=lambda number: (self._offsets[number], number))
            try:
                found = next(self._batches[partition], None)
            except LogError as error:
                raise SourceError(f"{self._source.name}: {error}", source=self._source.name) from error
            if found is None:
                del self._batches[partition]
                continue
            self._offsets[partition] = found.stop
            location = f"{self._source.path} partition {partition}"
            origin = Origin(self._source.name, location, found.offset, found.stop)
            return Read(found.rows, origin, {"offsets": list(self._offsets)})
        return None

    def close(self) -> None:
        """Close the log."""
        self._batches = {}
        self._log.close()


def _sliced(batches: Iterator[Rows]) -> Iterator[Rows]:
    for found in batches:
        for start in range(0, found.rows.num_rows, BATCH_ROWS):
            yield Rows(found.rows.slice(start, BATCH_ROWS), found.offset + start, found.time_us)
