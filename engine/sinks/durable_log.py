"""Rows into a durable log: exactly once. Class B: a staged segment becomes part of the log by one rename.

    <log>/staging/<incarnation>-<epoch>-<partition>.seg   a whole segment; its base is where the log will end by then
    <log>/sinks/<incarnation>                             the pipeline's mark: see log_marks.py

Laws
    - A run is the log's only writer: it holds the lock from ``open`` to ``close``. So the base of a staged segment is
      known before the epochs in front of it are published.
    - A segment is published whole or not at all. Its header's term names incarnation, epoch and partition: what is no
      longer staged must be in the log, or be older than what the log keeps.
    - Where others appended between two runs, a staged segment is written anew with the base that it gets now.
    - Every epoch has a handle, of partition 0 also without rows, and moves the mark. So mark and state must agree, and
      where a disk lost what it had vouched for, or one of the two came back from a backup, they do not.
    - A segment that the log has is never published again, also where a process that lost the state directory staged it
      once more.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from engine.batch import Origin
from engine.errors import EngineError, LogError, PipelineError, SinkError
from engine.log.body import unreadable
from engine.log.format import SegmentHeader
from engine.log.log import Log
from engine.log.partition import microseconds
from engine.log.staging import StagedSegment, rebase
from engine.nature import wall_clock
from engine.path_argument import path_fault
from engine.progress import Token
from engine.sink import Guarantee
from engine.sinks.failure import sink_failure
from engine.sinks.log_marks import LogMarks
from engine.storage import Storage

__all__ = ["LogSink", "log"]

PIECE_BYTES = 1 << 20
"""Rows wait for others until a frame has so many bytes, or the epoch ends."""

_SHORT = 16

LOST_EPOCHS = 64
"""So far beyond its last commit a state that lost one may have counted: an epoch for each start without a commit."""


def log(path: str | os.PathLike[str], *, compression: str | None = None) -> "LogSink":
    """Append the rows to a durable log, exactly once, partition by partition; it is made where missing.

    The log has as many partitions as the pipeline. Rows appear when their epoch is committed. ``compression``: None,
    "lz4" or "zstd". Raises PipelineError.
    """
    if fault := path_fault(path):
        raise PipelineError(f"log: {fault}")
    if compression not in (None, "lz4", "zstd"):
        raise PipelineError(f'log: compression is {compression!r}; None, "lz4" and "zstd" there are')
    return LogSink(os.fspath(path), compression)


class LogSink:
    """A durable log as a sink; made by ``log``. ``storage`` may be replaced before ``open``."""

    kind = "log"
    pipeline: str | None = None

    def __init__(self, path: str, compression: str | None, *, storage: Storage | None = None) -> None:
        self.location = path
        self.storage = storage if storage is not None else Storage()
        self.published_files = 0
        self._compression = compression
        self._log: Log | None = None
        self._incarnation = ""
        self.committed = 0
        self._writers: dict[int, _LogWriter] = {}  # the last one of each partition
        self.mutex = threading.Lock()
        self._piece_bytes = PIECE_BYTES

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """``log`` and the normalised path as it was given."""
        return f"log({os.path.normpath(self.location)})"

    @property
    def guarantee(self) -> Guarantee:
        """Exactly once."""
        return Guarantee.EXACTLY_ONCE

    def faults(self, schema: pa.Schema) -> list[str]:
        """Any schema will do that Arrow IPC gives back."""
        reason = unreadable(schema)
        return [] if reason is None else [reason]

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Take the log, made where missing, for the length of a run. Raises SinkError; nothing is published then."""
        self.close()
        try:
            opened = Log(
                self.location, schema, partitions=partitions, compression=self._compression, storage=self.storage
            )
        except (EngineError, OSError) as error:
            raise SinkError(f"{self.name}: {error}", sink=self.name) from error
        self._log, self._incarnation, self._writers = opened, token.incarnation, {}
        self._piece_bytes = max(1, min(PIECE_BYTES, memory_bytes // partitions))
        try:
            with self._failing("cannot be used"):
                for name in ("staging", "sinks"):
                    self.storage.make_directory(os.path.join(self.location, name))
                self.committed = self._claim(opened, token)
        except BaseException:
            self.close()
            raise

    def writer(self, partition: int, token: Token) -> "_LogWriter":
        """The writer of one partition for the epoch of ``token``."""
        log = self._opened()
        before = self._writers.get(partition)
        path = os.path.join(self.location, "staging", f"{self._file_prefix}-{token.epoch:010}-{partition:05}.seg")
        writer = _LogWriter(self, log, partition, token, path, before, self._piece_bytes)
        self._writers[partition] = writer
        return writer

    def commit(self, handles: Sequence[Any]) -> None:
        """Publish staged segments, in the order of partitions. Idempotent. Raises SinkError."""
        log, marks = self._opened(), self._marks()
        epochs = {handle["epoch"] for handle in handles if handle is not None}
        if not epochs:
            return
        epoch = max(epochs)
        ordered = sorted((handle for handle in handles if handle is not None), key=lambda handle: handle["partition"])
        with self._failing(f"epoch {epoch} cannot be published"):
            mark = marks.own()
            self.committed = mark.epoch if mark is not None else 0
            if self.committed >= epoch:
                marks.sync()  # its name may be of an attempt whose last call failed
                return
            if self.committed != ordered[0]["after"]:
                raise self._behind(self.committed, ordered[0]["after"])
            for handle in ordered:
                if handle["file"] is not None:
                    self._publish(log, handle)
            marks.write(epoch, _stops(log))
            self.committed = epoch

    def discard_after(self, token: Token) -> None:
        """Remove what was staged in epochs after ``token``'s, which was published, and what holds no rows. Raises
        SinkError.
        """
        if self.committed < token.epoch:
            raise self._behind(self.committed, token.epoch)
        directory = os.path.join(self.location, "staging")
        with self._failing("what was staged cannot be removed"):
            for name in self.storage.list(directory):
                path = os.path.join(directory, name)
                parts = name.removesuffix(".tmp").removesuffix(".seg").split("-")
                if parts[0] != self._file_prefix:
                    continue
                if len(parts) != 3 or int(parts[1]) > token.epoch or self.storage.size(path) == 0:
                    with suppress(FileNotFoundError):  # a process that lost the state directory was quicker
                        self.storage.unlink(path)

    def close(self) -> None:
        """Let others write to the log. Harmless when repeated."""
        opened, self._log = self._log, None
        if opened is not None:
            opened.close()

    def _publish(self, log: Log, handle: dict[str, Any]) -> None:
        partition = int(handle["partition"])
        writer, term = log.writer(partition), _term(handle["incarnation"], handle["epoch"], partition)
        staged = os.path.join(self.location, "staging", handle["file"])
        if any(segment.header.term == term for segment in writer.segments):
            writer.finish_publishing()
            with suppress(FileNotFoundError):
                self.storage.unlink(staged)
            return
        if not self.storage.exists(staged):
            raise SinkError(
                f"{staged} is gone, and its rows are not in the log.\n  Nothing was changed. Bring the file back.",
                sink=self.name,
                partition=partition,
            )
        rebase(self.storage, staged, *writer.next_segment())
        writer.publish(staged)
        self.published_files += 1

    def _claim(self, log: Log, token: Token) -> int:
        """The last epoch that was published here. Raises SinkError where that cannot be, or others have the log."""
        marks = self._marks()
        own = marks.own()
        published = max(own.epoch if own is not None else 0, _epoch_after(log, token.incarnation, token.epoch))
        if published > token.epoch:
            raise self._refused(
                f"has rows of epoch {published}; the state directory knows epochs up to {token.epoch}",
                "It seems to come from an older backup: bring back the newest.",
            )
        others = marks.of_other_incarnations()
        for incarnation, mark in others.items():
            if mark.epoch or _epoch_after(log, incarnation, 0):
                raise self._refused(
                    f"has rows of {mark.pipeline} from another state directory",
                    "Bring that back, write to another log, or give the pipeline another name; then its rows are "
                    "appended.",
                )
        if own is None and token.epoch:
            raise self._behind(0, token.epoch)
        for partition, (found, stop) in enumerate(zip(_stops(log), own.stops if own is not None else (), strict=False)):
            if found < stop:
                raise self._refused(
                    f"ends at offset {found:,} in partition {partition}; {stop:,} was durable there",
                    "Bring back the segments that are missing.",
                )
        if own is None:
            marks.write(0, _stops(log))
        for incarnation in others:
            marks.forget(incarnation)
        return own.epoch if own is not None else 0

    def _marks(self) -> LogMarks:
        directory = os.path.join(self.location, "sinks")
        return LogMarks(self.storage, directory, incarnation=self._incarnation, pipeline=self.pipeline or self.name)

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        doing = f"{self.location}: {doing}"
        with sink_failure(doing, sink=self.name):
            try:
                yield
            except LogError as error:
                raise SinkError(f"{doing}: {error}", sink=self.name) from (error.__cause__ or error)

    def _behind(self, published: int, expected: int) -> SinkError:
        return self._refused(
            f"has rows of epochs up to {published}; the state directory knows that {expected} was published",
            "The log seems to be lost or to come from an older backup: bring back the newest, or begin anew with "
            "another state= and another log.",
        )

    def _refused(self, problem: str, advice: str) -> SinkError:
        return SinkError(f"{self.location} {problem}.\n  Nothing was touched. {advice}", sink=self.name)

    @property
    def _file_prefix(self) -> str:
        return self._incarnation[:_SHORT]

    def _opened(self) -> Log:
        if self._log is None:
            raise SinkError(f"{self.name} is not open", sink=self.name)
        return self._log


class _LogWriter:
    """Rows of one partition and epoch into a staged segment, which is begun with the first of them."""

    def __init__(
        self,
        sink: LogSink,
        log: Log,
        partition: int,
        token: Token,
        path: str,
        before: "_LogWriter | None",
        piece_bytes: int,
    ) -> None:
        self._sink = sink
        self._log = log
        self._partition = partition
        self._token = token
        self._path = path
        self._before = before
        self._piece_bytes = piece_bytes
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._staged: StagedSegment | None = None
        self._place: tuple[int, int] | None = None
        self._prepared = False
        self.rows = 0

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        """Take rows, in order. Raises SinkError."""
        if rows.num_rows == 0:
            return
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        self.rows += rows.num_rows
        if self._waiting_bytes >= self._piece_bytes:
            with self._failing(f"rows of {origin} cannot be written"):
                self._stage()

    def prepare(self) -> dict[str, Any] | None:
        """Make the segment durable, staged; without rows there is none. Raises SinkError."""
        if not self.rows and self._partition:
            return None
        if self.rows:
            with self._failing("rows cannot be made durable"):
                self._stage()
                assert self._staged is not None
                self._staged.finish()
        self._prepared = True
        return {
            "file": os.path.basename(self._path) if self.rows else None,
            "after": self._sink.committed,
            "partition": self._partition,
            "epoch": self._token.epoch,
            "incarnation": self._token.incarnation,
            "rows": self.rows,
        }

    def abort(self) -> None:
        """Give up what was not prepared. Harmless when repeated."""
        self._waiting = []
        if self._staged is not None and not self._prepared:
            self._staged.discard()

    def place(self) -> tuple[int, int]:
        """(base, number) of this segment: behind those of the epochs before, of which the last are not published yet.

        REQUIRES: the sink's mutex is held.
        """
        if self._place is None:
            before, self._before = self._before, None
            self._place = self._log.writer(self._partition).next_segment()
            if before is not None and before.rows:
                base, number = before.place()
                self._place = max(self._place, (base + before.rows, number + 1))
            elif before is not None:
                self._place = max(self._place, before.place())
        return self._place

    def _stage(self) -> None:
        if not self._waiting:
            return
        if self._staged is None:
            self._staged = self._begin()
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._staged.append(waiting)

    def _begin(self) -> StagedSegment:
        with self._sink.mutex:
            base, number = self.place()
        token, log = self._token, self._log
        term = _term(token.incarnation, token.epoch, self._partition)
        header = SegmentHeader(log.id, self._partition, number, base, term, published_whole=True)
        time_us = microseconds(wall_clock())
        return StagedSegment(self._sink.storage, self._path, header, codec=log.codec, time_us=time_us)

    def _failing(self, doing: str) -> Any:
        return sink_failure(f"{self._sink.location}: {doing}", sink=self._sink.name, partition=self._partition)


def _term(incarnation: str, epoch: int, partition: int) -> int:
    """What tells a published segment from all others."""
    named = f"{incarnation}/{epoch}/{partition}"
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=8).digest(), "little")


def _stops(log: Log) -> list[int]:
    """Where each partition ends."""
    return [log.writer(partition).durable for partition in range(log.partitions)]


def _epoch_after(log: Log, incarnation: str, epoch: int) -> int:
    """The last of the later epochs of which the log has a segment; 0 where there is none.

    The mark comes after the segments: where a commit was lost between the two, they alone know of it, also behind what
    others appended since.
    """
    found = 0
    for partition in range(log.partitions):
        later = {_term(incarnation, epoch + ahead, partition): epoch + ahead for ahead in range(1, LOST_EPOCHS + 1)}
        whole = (segment.header for segment in log.writer(partition).segments if segment.header.published_whole)
        found = max([found, *(later.get(header.term, 0) for header in whole)])
    return found
