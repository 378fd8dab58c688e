"""Rows that wait for the commit of a database: a checksummed Arrow stream for each partition and epoch.

    <state>/<pipeline>/sinks/<sink>/000000000012-00003.arrow        epoch 12, partition 3

Laws
    - A segment is durable, and so is its name, before its handle is given out.
    - No byte of a segment is read as Arrow before the checksum of all of it was found right.
    - The newest epoch that was committed with rows keeps one name, its file cut to its first word: so it is known,
      without another write, up to where the database must be, and a database that came back from a backup is found
      out.
    - An empty file is of no epoch: a process that lost the state directory can leave one, and it is removed.
    - Files of other names are neither read nor deleted.
    - ``create`` and ``sync`` may be called on any thread; the rest on one at a time.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from engine._core.crc32c import crc32c
from engine.batch import Origin
from engine.errors import SinkError
from engine.progress import Epoch, Token
from engine.sinks.failure import sink_failure
from engine.sinks.shared_sync import SharedSync
from engine.sinks.sql_target import Column, RefusedError
from engine.sinks.staged_file import StagedFile
from engine.storage import Storage, open_input

__all__ = ["Newest", "SegmentWriter", "Segments"]

NAME = re.compile(r"(\d{12,})-\d{5,}\.arrow")
READ_BYTES = 1 << 20

CUT_BYTES = 4
"""What is left of a segment whose rows are committed: the first word of every Arrow stream, and no row."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest epoch that has segments, and whether they still hold its rows."""

    epoch: Epoch = 0
    whole: bool = False


class Segments:
    """The directory of a sink's segments."""

    def __init__(self, storage: Storage, directory: str, *, sink: str) -> None:
        self._storage = storage
        self._directory = directory
        self._sink = sink
        self._names_sync = SharedSync(storage, directory)

    def newest(self, through: Epoch) -> Newest:
        """What is there of epochs up to ``through``. Raises SinkError."""
        with sink_failure(f"{self._directory}: cannot be examined", sink=self._sink):
            found = {name: epoch for name, epoch in self._names().items() if epoch <= through and self._size(name)}
            if not found:
                return Newest()
            epoch = max(found.values())
            names = [name for name, of in found.items() if of == epoch]
            return Newest(epoch, all(self._size(name) > CUT_BYTES for name in names))

    def make_directory(self) -> None:
        """Make the directory where it is missing. Raises SinkError."""
        with sink_failure(f"{self._directory}: cannot be made", sink=self._sink):
            self._storage.make_directory(self._directory)

    def create(self, epoch: Epoch, partition: int) -> StagedFile:
        """A new, empty segment. Raises OSError."""
        name = f"{epoch:012}-{partition:05}.arrow"
        file = self._storage.create(self._path(name))
        self._names_sync.made()
        return StagedFile(name, file)

    def sync(self) -> None:
        """Make the names of all segments created so far durable. Raises OSError."""
        self._names_sync.sync()

    def remove(self, name: str) -> None:
        """Remove a segment that will never be committed. What cannot be removed now, recovery removes."""
        try:
            self._storage.unlink(self._path(name))
        except OSError:
            return

    def verify(self, handles: Sequence[Mapping[str, Any]]) -> None:
        """Raise SinkError, naming the file, unless each segment is byte for byte what was prepared."""
        for handle in handles:
            path = self._path(handle["file"])
            if not self._storage.exists(path):
                raise self._damaged(path, "is gone", handle)
            size_bytes = self._storage.size(path)
            if size_bytes != handle["size_bytes"]:
                raise self._damaged(path, f"has {size_bytes:,} bytes; {handle['size_bytes']:,} were prepared", handle)
            if self._checksum(path, size_bytes) != handle["checksum"]:
                raise self._damaged(path, "is damaged; its checksum is not the one that was prepared", handle)

    @contextmanager
    def reading(self, handle: Mapping[str, Any]) -> Iterator[pa.RecordBatchReader]:
        """The rows of a verified segment."""
        with open_input(self._path(handle["file"])) as file, ipc.open_stream(file) as reader:
            yield reader

    def retire(self, epoch: Epoch) -> None:
        """Let go of the rows of all epochs up to ``epoch``: they are committed. Raises OSError.

        What cannot be removed is removed the next time.
        """
        done = {name: of for name, of in self._names().items() if of <= epoch}
        filled = {name: of for name, of in done.items() if self._size(name)}
        newest = max(filled.values(), default=0)
        kept = min((name for name, of in filled.items() if of == newest), default=None)
        if kept is not None and self._size(kept) > CUT_BYTES:
            with self._storage.open(self._path(kept), write=True) as file:
                file.truncate(CUT_BYTES)
        for name in done:
            if name != kept:
                self._remove(name)

    def discard_after(self, epoch: Epoch) -> None:
        """Remove the segments of later epochs, for good. Raises OSError."""
        later = [name for name, of in self._names().items() if of > epoch]
        for name in later:
            self._remove(name)
        if later:
            self._storage.sync_directory(self._directory)

    def _names(self) -> dict[str, Epoch]:
        if not self._storage.exists(self._directory):
            return {}
        matches = (NAME.fullmatch(name) for name in self._storage.list(self._directory))
        return {match[0]: int(match[1]) for match in matches if match}

    def _size(self, name: str) -> int:
        return self._storage.size(self._path(name))

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # a process that lost the state directory was quicker
            self._storage.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _checksum(self, path: str, size_bytes: int) -> int:
        checksum = 0
        with self._storage.open(path) as file:
            for offset in range(0, size_bytes, READ_BYTES):
                checksum = crc32c(file.pread(min(READ_BYTES, size_bytes - offset), offset), checksum)
        return checksum

    def _damaged(self, path: str, problem: str, handle: Mapping[str, Any]) -> SinkError:
        return SinkError(
            f"{path}: {problem}.\n"
            f"  It holds committed rows of epoch {handle['epoch']} that are not in the database yet; nothing of that "
            "epoch was inserted. Bring back the file and run again.",
            sink=self._sink,
            partition=handle["partition"],
        )


class SegmentWriter:
    """The ``Writer`` of a transactional sink: rows go to the segment as they come, in the form the database takes."""

    def __init__(
        self,
        segments: Segments,
        columns: Sequence[Column],
        required: frozenset[str],
        token: Token,
        partition: int,
        last_commit: Callable[[], Epoch],
    ) -> None:
        self._segments = segments
        self._columns = columns
        self._required = required
        self._token = token
        self._partition = partition
        self._last_commit = last_commit
        self._schema = pa.schema([(column.name, column.form) for column in columns])
        self._staged: StagedFile | None = None
        self._stream: ipc.RecordBatchStreamWriter | None = None
        self._rows = 0
        self._ended = False

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        """Take rows, in order. Raises SinkError, also for values that the database could not hold."""
        if rows.num_rows == 0:
            return
        with self._failing(f"rows of {origin} cannot be written"):
            rows.validate(full=True)  # the database would find text that is none, but only behind the commit
            stored = [self._stored(column, rows.column(index)) for index, column in enumerate(self._columns)]
            staged, stream = self._opened()
            stream.write_batch(pa.RecordBatch.from_arrays(stored, schema=self._schema))
            staged.flush()  # many partitions may have rows in an epoch, and no budget counts what waits
            self._rows += rows.num_rows

    def prepare(self) -> dict[str, Any] | None:
        """Make the rows durable; give the handle that commits them, None without rows. Raises SinkError."""
        with self._failing("rows cannot be made durable"):
            if self._staged is None or self._stream is None:
                self._ended = True
                return None
            self._stream.close()
            self._staged.finish()
            self._segments.sync()
            self._ended = True
        return {
            "incarnation": self._token.incarnation,
            "epoch": self._token.epoch,
            "term": self._token.term,
            "after": self._last_commit(),
            "partition": self._partition,
            "file": self._staged.name,
            "size_bytes": self._staged.size,
            "checksum": self._staged.checksum,
        }

    def abort(self) -> None:
        """Give up and remove the segment. Harmless after ``prepare`` and when repeated."""
        if self._ended:
            return
        self._ended = True
        if self._staged is not None:
            self._staged.discard()
            self._segments.remove(self._staged.name)

    def _stored(self, column: Column, values: Any) -> Any:
        if column.name in self._required and values.null_count:
            raise RefusedError(f'column "{column.name}" holds nulls, and the table allows none there')
        return column.stored(values)

    def _opened(self) -> tuple[StagedFile, ipc.RecordBatchStreamWriter]:
        if self._staged is None or self._stream is None:
            self._staged = self._segments.create(self._token.epoch, self._partition)
            options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._stream = ipc.new_stream(self._staged, self._schema, options=options)  # type: ignore[arg-type]
        return self._staged, self._stream

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        doing = f"{self._token.sink}: {doing}"
        if self._ended:
            raise SinkError(f"{doing}: the writer has ended", sink=self._token.sink, partition=self._partition)
        try:
            with sink_failure(doing, sink=self._token.sink, partition=self._partition):
                yield
        except RefusedError as error:
            self.abort()
            raise SinkError(
                f"{doing}: {error}.\n  Mend or drop such values in a stage before the sink; nothing uncommitted is "
                "visible.",
                sink=self._token.sink,
                partition=self._partition,
            ) from error
        except SinkError:
            self.abort()
            raise
