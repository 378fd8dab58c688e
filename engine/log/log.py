"""The durable log: what is appended is there, in order, whatever happens.

    <path>/LOG                        a document: format, id, partitions, schema
    <path>/LOCK                       flock of the writer
    <path>/partition-00000/           segments, and the durable offset for other processes
    <path>/groups/                    consumer groups

Laws
    - ``append`` returns when the rows are durable; they are there after any crash, and never twice.
    - One writer at a time, by a lock. Any number of readers in any process, up to what is durable.
    - Bytes are never changed or deleted in reaction to damage; retention alone removes whole segments, the oldest
      first, and none with rows that a group has not taken.
"""

import base64
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.ipc as ipc
import trio

from engine.byte_size import ByteSize, parse_bytes
from engine.errors import CorruptLog, InputError, LogError, PipelineError
from engine.log.body import BodyEncoder
from engine.log.document import read_document, write_document
from engine.log.durable import durable_identity, read_durable
from engine.log.format import Codec
from engine.log.groups import Groups, whole_number
from engine.log.partition import Partition, microseconds
from engine.log.reader import PartitionReader, Rows
from engine.log.recovery import Torn, durable_offset, recover
from engine.log.retention import Retention
from engine.log.segment import segment_names
from engine.nature import random_id
from engine.path_argument import path_fault
from engine.storage import Held, Lock, Storage

__all__ = ["Log"]

T = TypeVar("T")

FORMAT = 1
SEGMENT_BYTES = 256 << 20
PARTITIONS_LIMIT = 1024
TAIL_WAIT_S = 0.05
"""How often ``tail`` looks for what another process wrote; rows of this one wake it at once."""

CODECS = {None: Codec.NONE, "lz4": Codec.LZ4, "zstd": Codec.ZSTD}


class Log:
    """A durable log of rows in the directory ``path``, made where missing.

    ``schema``: that of all rows; else the first append decides. ``partitions``: how many, 1 to 1,024, fixed when the
    log is made; None takes what it has. ``write=False`` reads beside the writer, without its lock. ``compression``:
    None, "lz4" or "zstd". A segment ends at ``segment_bytes``; whole segments beyond ``retain_bytes`` or older than
    ``retain_age_s`` are removed, but for rows that a group has not taken: while those fill ``retain_bytes``, ``append``
    waits. ``sync=False`` leaves it to the system when rows reach the disk: a power cut may take what was acknowledged.

    Any thread may call; a forked child has to open the log anew. Raises LogError, CorruptLog, PipelineError for
    arguments.

    >>> with Log("orders.log") as log:
    ...     end = log.append(pa.table({"n": [1, 2, 3]}))
    ...     for rows in log.read(end - 3, end):
    ...         print(rows.num_rows)
    3
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: pa.Schema | None = None,
        *,
        partitions: int | None = None,
        write: bool = True,
        compression: str | None = None,
        segment_bytes: ByteSize = SEGMENT_BYTES,
        retain_bytes: ByteSize | None = None,
        retain_age_s: float | None = None,
        sync: bool = True,
        storage: Storage | None = None,
    ) -> None:
        self._storage = storage if storage is not None else Storage()
        self.path = self._storage.resolve(_checked_path(path))
        _check_arguments(schema, partitions, compression, retain_age_s)
        self.codec = CODECS[compression]
        self._encoder = BodyEncoder(self.codec)
        self._sync = sync
        kept_bytes = None if retain_bytes is None else parse_bytes(retain_bytes, name="retain_bytes")
        self._retention = Retention(kept_bytes, retain_age_s)
        self._segment_bytes = parse_bytes(segment_bytes, name="segment_bytes")
        if kept_bytes is not None:
            self._segment_bytes = max(1, min(self._segment_bytes, kept_bytes // 4))
        self._lock: Lock | None = None
        self._writers: list[Partition] = []
        self._closed = False
        self._proven: dict[int, int] = {}  # for readers: what the segments proved when they were first asked
        self._deciding = threading.Lock()
        self._schema: pa.Schema | None = None
        with self._explained("cannot be opened"):
            if write:
                self._storage.make_directory(self.path)
                self._lock = self._storage.lock(os.path.join(self.path, "LOCK"))
            try:
                self._open(schema, partitions)
            except BaseException:
                self.close()
                raise

    def _open(self, schema: pa.Schema | None, partitions: int | None) -> None:
        document = read_document(self._storage, os.path.join(self.path, "LOG"))
        if document is None:
            document = self._create(schema, partitions or 1)
        if document["format"] != FORMAT:
            raise LogError(f"{self.path} is a log of format {document['format']}; this release reads format {FORMAT}.")
        self.id: str = document["id"]
        self.partitions: int = document["partitions"]
        self._schema = None if document["schema"] is None else _schema_of(document["schema"])
        if partitions not in (None, self.partitions):
            raise LogError(
                f"{self.path} has {self.partitions} partitions, not {partitions}; open it without partitions=."
            )
        if schema is not None:
            self._fix_schema(schema)
        self.groups = Groups(self._storage, os.path.join(self.path, "groups"), self.partitions, self._end)
        self.torn: tuple[Torn, ...] = ()
        directories = [self._directory(number) for number in range(self.partitions)]
        for directory in directories:
            if not self._storage.is_directory(directory):
                raise CorruptLog(f"{directory} is gone, and its rows with it; bring it back.", path=directory)
        self._readers = [PartitionReader(self._storage, directory, self.id) for directory in directories]
        if self._lock is not None:
            term = int(random_id(64), 16)
            self._writers = [self._open_writer(number, term) for number in range(self.partitions)]
            self._retain()

    def _create(self, schema: pa.Schema | None, partitions: int) -> dict[str, Any]:
        if self._lock is None:
            raise LogError(f"{self.path} is no log: nothing to read.\n  Open it with write=True to make one.")
        rooms = [name for name in self._storage.list(self.path) if name.startswith("partition-")]
        if any(segment_names(self._storage.list(os.path.join(self.path, room))) for room in rooms):
            raise CorruptLog(f"{self.path}: the file LOG is gone; bring it back.", path=self.path)
        for number in range(partitions):
            self._storage.make_directory(self._directory(number))
        encoded = None if schema is None else _encoded(schema)
        document = {"format": FORMAT, "id": random_id(128), "partitions": partitions, "schema": encoded}
        write_document(self._storage, os.path.join(self.path, "LOG"), document)
        return document

    def _published(self, partition: int) -> int:
        return read_durable(self._storage, self._directory(partition), durable_identity(self.id, partition))

    def _recover(self, number: int, read: Callable[..., T]) -> T:
        """What ``read`` finds in a partition: ``recover`` or ``durable_offset``."""
        directory = self._directory(number)
        while True:
            floor = self._retention.floor(self._storage, directory)
            try:
                return read(
                    self._storage,
                    directory,
                    log=self.id,
                    partition=number,
                    floor=floor,
                    published=self._published(number),
                    committed=self.groups.highest(number),
                )
            except (CorruptLog, FileNotFoundError):
                # The writer's retention may have removed what is missing meanwhile; it moves the floor first.
                if self._retention.floor(self._storage, directory) == floor:
                    raise

    def _open_writer(self, number: int, term: int) -> Partition:
        directory = self._directory(number)
        for name in self._storage.list(directory):
            if name.endswith(".tmp"):
                self._storage.unlink(os.path.join(directory, name))
        # A writer that was killed may have renamed a segment and not come to the sync: what is seen here must stay.
        self._storage.sync_directory(directory)
        self._retention.finish(self._storage, directory)
        found = self._recover(number, recover)
        if found.torn is not None:
            self.torn += (found.torn,)
        return Partition(
            self._storage,
            directory,
            found,
            log=self.id,
            number=number,
            term=term,
            segment_bytes=self._segment_bytes,
            sync=self._sync,
        )

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of all rows; None before the first append decided it."""
        if self._schema is None and self._lock is None:
            document = read_document(self._storage, os.path.join(self.path, "LOG"))
            if document is not None and document["schema"] is not None:
                self._schema = _schema_of(document["schema"])
        return self._schema

    def end(self, *, partition: int = 0) -> int:
        """The offset behind the last durable row. Raises LogError."""
        self._check(partition)
        if self._writers:
            return self._writers[partition].durable
        with self._explained("cannot be read"):
            self._check_still_there()
            if partition not in self._proven:
                # A power cut may have taken what was published last: the segments tell what was durable before.
                self._proven[partition] = self._recover(partition, durable_offset)
            return max(self._proven[partition], self._published(partition))

    def start(self, *, partition: int = 0) -> int:
        """The offset of the oldest row that is kept. Raises LogError."""
        bounds = self.bounds(partition=partition)
        return bounds[0][0] if bounds else 0

    def bounds(self, *, partition: int = 0) -> list[tuple[int, str]]:
        """(offset of the first row, path) of every segment, the oldest first. Raises LogError."""
        self._check(partition)
        with self._explained("cannot be read"):
            return self._readers[partition].bounds()

    def append(self, rows: Any, *, partition: int = 0) -> int:
        """Append rows: a record batch, a table, or anything with ``__arrow_c_stream__`` or ``__arrow_c_array__``.

        Gives the offset behind them, when they are durable: they are ``read(offset - count, offset)``. All or nothing
        is appended. Waits while rows that no group has taken fill ``retain_bytes``. Raises InputError for rows of
        another schema, LogError where the disk refuses.
        """
        batches = _batches_of(rows)
        while (end := self._append_if_room(batches, partition)) is None:
            self._storage.pause(TAIL_WAIT_S)
        return end

    def _append_if_room(self, batches: Sequence[pa.RecordBatch], partition: int) -> int | None:
        """As ``append``, but None where it would wait."""
        writer = self.writer(partition)
        self._check_schema(batches[0].schema)
        filled = [batch for batch in batches if batch.num_rows]
        if filled and self._retention.due(writer) and self._retain()[partition]:
            return None
        try:
            bodies = [body for batch in filled for body in self._encoder.encode(batch)]
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"log {self.path}: rows cannot be written: {error}") from error
        self._fix_schema(batches[0].schema)
        return writer.append(bodies, self.codec) if bodies else writer.durable

    def read(
        self, start: int | datetime = 0, stop: int | datetime | None = None, *, partition: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop) in order, by offset or by the time of their append; without ``stop`` to the end.

        Batches are as they were appended. Raises LogError where rows are gone, CorruptLog where they are damaged.
        """
        for found in self.read_with_offsets(start, stop, partition=partition):
            yield found.rows

    def read_with_offsets(
        self, start: int | datetime = 0, stop: int | datetime | None = None, *, partition: int = 0
    ) -> Iterator[Rows]:
        """As ``read``, with the offset and the time of each batch."""
        end = self.end(partition=partition)
        first = self._offset(start, end, partition)
        last = end if stop is None else min(end, self._offset(stop, end, partition))
        with self._explained("cannot be read"):
            yield from self._readers[partition].read(first, last)

    def tail(self, start: int | None = None, *, partition: int = 0) -> Iterator[pa.RecordBatch]:
        """The rows from ``start`` on (None: from now on), and then those to come, as they become durable. Ends when the
        log is closed. Raises as ``read``.
        """
        position = self._tail_start(start, partition)
        while not self._closed:
            for found in self._next_rows(position, partition):
                yield found.rows
                position = found.stop
                if self._closed:
                    return

    async def append_async(self, rows: Any, *, partition: int = 0) -> int:
        """As ``append``, under Trio. Cancelled while it waits for room, it appended nothing; cancelled later, it waits
        until the append has ended, and then the rows are there.
        """
        batches = await trio.to_thread.run_sync(_batches_of, rows)  # once: a stream cannot be read again
        attempt = partial(self._append_if_room, batches, partition)
        while (end := await trio.to_thread.run_sync(attempt)) is None:  # noqa: ASYNC110 - another process makes room
            await trio.sleep(TAIL_WAIT_S)
        return end

    async def read_async(
        self, start: int | datetime = 0, stop: int | datetime | None = None, *, partition: int = 0
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """As ``read``, under Trio; cancelled between two batches."""
        batches = self.read(start, stop, partition=partition)
        while (rows := await trio.to_thread.run_sync(next, batches, None)) is not None:
            yield rows

    async def tail_async(self, start: int | None = None, *, partition: int = 0) -> AsyncGenerator[pa.RecordBatch, None]:
        """As ``tail``, under Trio; cancelled at any time."""
        position = self._tail_start(start, partition)
        while not self._closed:
            found = await trio.to_thread.run_sync(self._next_rows, position, partition)
            while not self._closed and (next_rows := await trio.to_thread.run_sync(next, found, None)) is not None:
                yield next_rows.rows
                position = next_rows.stop

    def writer(self, partition: int) -> Partition:
        """The writer's side of a partition, for what publishes whole segments. Raises LogError."""
        self._check(partition)
        if not self._writers:
            raise LogError(f"{self.path} was opened with write=False: nothing can be appended")
        assert self._lock is not None
        try:
            self._lock.check()
        except OSError as error:
            raise LogError(
                f"{self.path}: the log may have another writer: {error}.\n"
                "  Nothing was appended; what was acknowledged is safe. Open the log again."
            ) from error
        return self._writers[partition]

    def roll(self) -> None:
        """End the newest segment of every partition, and remove what retention does not keep. Raises LogError."""
        self._check(0)
        for writer in self._writers:
            writer.roll()
        self._retain()

    def close(self) -> None:
        """Mark everything as durable and let others have the log. Harmless when repeated. Raises LogError."""
        self._closed = True
        if self._lock is not None and self._lock.forked:
            return  # the parent's log goes on, and its locks may be held here for ever
        try:
            for writer in self._writers:
                writer.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, partition: int) -> int:
        return self.end(partition=partition)

    def _directory(self, partition: int) -> str:
        return os.path.join(self.path, f"partition-{partition:05}")

    def _check(self, partition: int) -> None:
        if self._closed:
            raise LogError(f"{self.path}: the log is closed")
        if self._lock is not None and self._lock.forked:
            raise LogError(f"{self.path} was opened by the parent of this process.\n  Open it again in this one.")
        if not 0 <= whole_number(partition, f"{self.path}: partition=") < self.partitions:
            raise LogError(f"{self.path} has no partition {partition}; it has {self.partitions}")

    def _offset(self, place: int | datetime, end: int, partition: int) -> int:
        if isinstance(place, datetime):
            if place.tzinfo is None:
                raise LogError(
                    f"{self.path}: {place.isoformat()} has no time zone, and could mean many moments.\n"
                    "  Give it one: moment.replace(tzinfo=UTC), or moment.astimezone() for local time."
                )
            with self._explained("cannot be read"):
                return self._readers[partition].offset_at(microseconds(place), end)
        offset = whole_number(place, f"{self.path}: an offset")
        if offset < 0:
            raise LogError(f"{self.path}: offsets begin at 0, found {offset}")
        return offset

    def _fix_schema(self, schema: pa.Schema) -> None:
        """All rows have the schema of the first ones. Raises InputError."""
        with self._deciding:
            self._decide_schema(schema)
        self._check_schema(schema)

    def _check_schema(self, schema: pa.Schema) -> None:
        if self._schema is not None and not self._schema.equals(schema):
            raise InputError(
                f"log {self.path}: the rows have another schema than the log.\n  expected {_shown(self._schema)}\n"
                f"  found    {_shown(schema)}\n  Cast them, or give them a log of their own."
            )

    def _decide_schema(self, schema: pa.Schema) -> None:
        if self._schema is None and self._lock is not None:
            with self._explained("its schema could not be written"):
                path = os.path.join(self.path, "LOG")
                document = {"format": FORMAT, "id": self.id, "partitions": self.partitions, "schema": _encoded(schema)}
                write_document(self._storage, path, document)
            self._schema = schema

    def _tail_start(self, start: int | None, partition: int) -> int:
        end = self.end(partition=partition)
        return end if start is None else self._offset(start, end, partition)

    def _next_rows(self, position: int, partition: int) -> Iterator[Rows]:
        """What is durable behind ``position``; nothing where none has come for a while, or the log is closed."""
        if self._writers:
            self._writers[partition].wait_beyond(position, TAIL_WAIT_S)
        elif self.end(partition=partition) <= position:
            self._storage.pause(TAIL_WAIT_S)
        return iter(()) if self._closed else self.read_with_offsets(position, partition=partition)

    def _retain(self) -> list[bool]:
        """Remove what need not be kept; say of which partitions a group keeps too much."""
        with self._explained("old segments could not be removed"):
            return [self._retention.apply(self._storage, writer, self.groups) for writer in self._writers]

    def _check_still_there(self) -> None:
        """For a reader: raise LogError where another log has taken the place of the one that was opened."""
        document = read_document(self._storage, os.path.join(self.path, "LOG"))
        if document is None or document["id"] != self.id:
            raise LogError(f"{self.path}: the log that was opened is gone.\n  Open what is there now.")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Held as held:
            raise LogError(
                f"{self.path} is being written by pid {held.pid} on host {held.host}.\n"
                "  Stop it, or open the log with write=False to read beside it."
            ) from held
        except (OSError, EOFError) as error:
            raise LogError(f"{self.path}: {what}: {error}.\n  What was acknowledged is safe.") from error


def _checked_path(path: str | os.PathLike[str]) -> str:
    """Raises PipelineError."""
    if fault := path_fault(path):
        raise PipelineError(f"log: {fault}")
    return os.fspath(path)


def _check_arguments(schema: Any, partitions: Any, compression: Any, retain_age_s: Any) -> None:
    """Raises PipelineError."""
    if schema is not None and not isinstance(schema, pa.Schema):
        raise PipelineError(f"log: schema must be a pyarrow.Schema, found {type(schema).__name__}")
    if not (compression is None or isinstance(compression, str)) or compression not in CODECS:
        raise PipelineError(f'log: compression is {compression!r}; None, "lz4" and "zstd" there are')
    whole = isinstance(partitions, int) and not isinstance(partitions, bool)
    if partitions is not None and not (whole and 1 <= partitions <= PARTITIONS_LIMIT):
        raise PipelineError(f"log: partitions must be 1 to {PARTITIONS_LIMIT}, found {partitions!r}")
    number = isinstance(retain_age_s, (int, float)) and not isinstance(retain_age_s, bool)
    if retain_age_s is not None and not (number and 0 <= retain_age_s < inf):
        raise PipelineError(f"log: retain_age_s must be a number of seconds, found {retain_age_s!r}")


def _batches_of(rows: Any) -> Sequence[pa.RecordBatch]:
    """At least one batch, perhaps of no rows. Raises InputError."""
    if isinstance(rows, pa.RecordBatch):
        return [rows]
    try:
        if isinstance(rows, pa.Table):
            table = rows  # as it is: a stream would cut a name at a zero byte
        elif hasattr(rows, "__arrow_c_stream__"):
            table = pa.table(rows)
        elif hasattr(rows, "__arrow_c_array__"):
            return [pa.record_batch(rows)]
        else:
            raise TypeError("rows of Arrow are needed; pass a table or a record batch")
        return table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    except MemoryError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise InputError(f"log: {type(rows).__name__} gives no rows: {error}") from error


def _encoded(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode("ascii")


def _schema_of(encoded: str) -> pa.Schema:
    return ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
