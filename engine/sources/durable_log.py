"""The rows of a durable log as a source. Replayable: it begins again at any row.

The offset is ``{"log": its id, "offsets": [partition 0, partition 1, …], "begun": […], "turn": [row, partition]}``: of
the next row in each partition, and of the first that was ever read; and where the last read began, or None once that
was before the read that came before it.

Laws
    - What is read is what was durable when the source was opened; rows that come later are for the next run.
    - Rows of one partition keep their order. The partition that was read least far goes next: so the order of all rows
      of a run follows from its first offset. Of several runs it does unless a later one read rows that would have had
      their turn in an earlier one; ``turn`` is None then.
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
            if offset is None:
                taken = opened.groups[self.group].offsets() if self.group is not None else (0,) * opened.partitions
                starts = [max(self.begin, start) for start in taken]
                offset = {"log": opened.id, "offsets": starts, "begun": starts, "turn": [0, 0]}
            stops = self._ends(opened, offset)
            if self.stop is not None:
                stops = [min(self.stop, stop) for stop in stops]
            return LogReader(self, opened, offset, stops)
        except BaseException:
            opened.close()
            raise

    def before(self, offset: Offset) -> "LogReader":
        """The rows of each partition from the first that was read up to ``offset``. Raises InputError, SourceError."""
        opened = self._opened()
        try:
            self._ends(opened, offset)
            begun, stops = offset["begun"], offset["offsets"]
            for partition, (start, stop) in enumerate(zip(begun, stops, strict=True)):
                oldest = opened.start(partition=partition)
                if start < min(oldest, stop):
                    raise InputError(
                        f"{self.name}: row {start:,} of partition {partition} is to be read again; the oldest that is"
                        f" kept is {oldest:,}: retention removed those before.\n"
                        "  Bring them back from a copy of the log.",
                        source=self.name,
                    )
            return LogReader(self, opened, offset | {"offsets": begun, "turn": [0, 0]}, stops)
        except BaseException:
            opened.close()
            raise

    def in_order_before(self, offset: Offset) -> bool:
        """Not where several runs read what had come to several partitions meanwhile."""
        return len(offset["offsets"]) == 1 or offset["turn"] is not None

    def _ends(self, opened: Log, offset: Offset) -> list[int]:
        """The ends of the partitions. Raises InputError where the log cannot have come to ``offset``."""
        self._check_same(opened, offset)
        ends = [opened.end(partition=partition) for partition in range(opened.partitions)]
        for partition, (row, end) in enumerate(zip(offset["offsets"], ends, strict=True)):
            if row > end:
                raise InputError(
                    f"{self.name}: row {row:,} of partition {partition} is committed; the log ends at {end:,}.\n"
                    "  It is an older copy; bring back the newest."
                )
        return ends

    def _check_same(self, opened: Log, offset: Offset) -> None:
        if offset.get("log") != opened.id:
            raise InputError(
                f"{self.name} is log {opened.id}; rows of log {offset.get('log')} are committed.\n"
                "  It is another log in its place: bring back the one of before, or begin anew with another state=."
            )

    def ack(self, offset: Offset) -> None:
        """Let the group commit: the log may forget what is before ``offset``. Raises InputError, SourceError."""
        if self.group is None or offset is None:
            return
        with self._opened() as opened:
            self._check_same(opened, offset)
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
    """One pass over a log's rows, from ``offset`` to ``stops``."""

    def __init__(self, source: LogSource, opened: Log, offset: Offset, stops: list[int]) -> None:
        self._source = source
        self._log = opened
        self._first: Offset = offset
        self._offsets: list[int] = list(offset["offsets"])
        self._turn: list[int] | None = offset["turn"]
        self._batches: dict[int, Iterator[Rows]] = {}  # of partitions that are not read to their end
        for partition, (start, stop) in enumerate(zip(self._offsets, stops, strict=True)):
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
            turn = [found.offset, partition]
            cut = found.stop == self._source.stop  # what follows would have come in one read with it
            self._turn = turn if self._turn is not None and self._turn <= turn and not cut else None
            location = f"{self._source.path} partition {partition}"
            origin = Origin(self._source.name, location, found.offset, found.stop)
            return Read(found.rows, origin, self._first | {"offsets": list(self._offsets), "turn": self._turn})
        return None

    def close(self) -> None:
        """Close the log."""
        self._batches = {}
        self._log.close()


def _sliced(batches: Iterator[Rows]) -> Iterator[Rows]:
    for found in batches:
        for start in range(0, found.rows.num_rows, BATCH_ROWS):
            yield Rows(found.rows.slice(start, BATCH_ROWS), found.offset + start, found.time_us)
