"""Rows of one partition and one epoch into staged files.

Rows wait in their Arrow form until they fill a row group, which is then encoded and on its way to the disk; so a
writer holds at most one row group. Pieces of a partition are often thin slices of large shared buffers: where the
slices of a rare partition would keep the buffers of many batches alive, they are copied out.

Laws
    - One thread at a time. After a failure the writer has given up: it takes no more rows.
    - ``limits.pending_bytes`` bounds the rows that wait, ``limits.retained_bytes`` the foreign buffers that they keep
      alive.
    - A file is never empty, and none is begun before a row group is full or the epoch ends.
    - ``limits.open_files`` bounds the files that are open, the complete ones among them: these are made durable all
      together in the end, or earlier where another file could not be begun otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from engine.batch import Origin
from engine.errors import SinkError
from engine.sinks.failure import sink_failure
from engine.sinks.hive_layout import HiveLayout, NoDirectoryName
from engine.sinks.output_directory import OutputDirectory
from engine.sinks.ownership import FileMark, file_name
from engine.sinks.staged_file import StagedFile

__all__ = ["Encoder", "FileFull", "FileWriter", "Limits", "OpenEncoder"]


class FileFull(Exception):  # noqa: N818 - a request for another file, not a fault
    """The format takes these rows only in a new file. Nothing of them was written."""


class Encoder(Protocol):
    """Writes one file of a format."""

    def write(self, rows: pa.Table) -> None:
        """Encode rows as one row group. Raises FileFull, OSError or Arrow's errors."""

    def close(self) -> None:
        """Write what ends the file."""


OpenEncoder = Callable[[StagedFile, FileMark, pa.Table], Encoder]
"""Begins a file: where to, whose, and the first rows that will be in it, from which choices may be made."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one writer."""

    row_group_rows: int
    pending_bytes: int
    retained_bytes: int
    file_bytes: int | None
    open_files: int


@dataclass(slots=True)
class _OpenFile:
    target: str
    staged: StagedFile
    encoder: Encoder


class FileWriter:
    """The ``Writer`` of a sink of files."""

    def __init__(
        self,
        output: OutputDirectory,
        mark: FileMark,
        schema: pa.Schema,
        *,
        layout: HiveLayout | None,
        limits: Limits,
        open_encoder: OpenEncoder,
    ) -> None:
        self._output = output
        self._mark = mark
        self._schema = schema
        self._layout = layout
        self._limits = limits
        self._open_encoder = open_encoder
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._retained_bytes = 0
        self._open: dict[str, _OpenFile] = {}  # by directory, the least recently written first
        self._parts: dict[str, int] = {}
        self._finished: list[tuple[str, StagedFile]] = []
        self._durable = 0  # how many of them are closed
        self._prepared = False
        self._given_up = False

    def write(self, rows: pa.RecordBatch, *, origin: Origin) -> None:
        """Take rows, in order. Raises SinkError, and then takes no more."""
        with self._failing(f"rows of {origin} cannot be written"):
            if rows.num_rows == 0:
                return
            self._pending.append(rows)
            self._pending_rows += rows.num_rows
            self._pending_bytes += rows.nbytes
            self._retained_bytes += rows.get_total_buffer_size()
            while self._pending_rows >= self._limits.row_group_rows:
                self._encode(self._limits.row_group_rows)
            if self._pending_bytes >= self._limits.pending_bytes:
                self._encode(self._pending_rows)
            elif self._retained_bytes > self._limits.retained_bytes:
                self._copy_out()

    def prepare(self) -> dict[str, Any] | None:
        """Make the rows durable, staged; give the handle that publishes them, None without rows. Raises SinkError."""
        with self._failing("rows cannot be made durable"):
            while self._pending_rows:
                self._encode(min(self._pending_rows, self._limits.row_group_rows))
            for directory in list(self._open):
                self._finish(directory)
            self._make_durable()
            if self._finished:
                self._output.sync_staging()
            self._prepared = True
        return self._output.describe(self._mark, self._finished) if self._finished else None

    def abort(self) -> None:
        """Give up: close the files and remove them. Harmless after ``prepare`` and when repeated."""
        if self._prepared or self._given_up:
            return
        self._given_up = True
        self._forget_pending()
        abandoned = [*(opened.staged for opened in self._open.values()), *(staged for _, staged in self._finished)]
        for staged in abandoned:
            staged.discard()
        self._open.clear()
        for staged in abandoned:
            self._output.forget(staged)

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        if self._given_up or self._prepared:
            state = "was given up" if self._given_up else "is prepared"
            raise SinkError(f"{doing}: the writer {state}", sink=self._mark.sink, partition=self._mark.partition)
        doing = f"{self._output.location}: {doing}"
        try:
            with sink_failure(doing, sink=self._mark.sink, partition=self._mark.partition):
                yield
        except SinkError:
            self.abort()
            raise

    def _encode(self, count: int) -> None:
        """Encode the first ``count`` of the waiting rows as a row group."""
        rows = pa.Table.from_batches(self._take(count), schema=self._schema)
        if self._layout is None:
            self._append("", rows)
            return
        try:
            pieces = list(self._layout.split(rows))
        except NoDirectoryName as error:
            raise SinkError(
                f"{self._output.location}: {error}\n"
                "  Nothing uncommitted is visible. Choose other columns for partition_by=.",
                sink=self._mark.sink,
                partition=self._mark.partition,
            ) from error
        for directory, piece in pieces:
            self._append(directory, piece)

    def _take(self, count: int) -> list[pa.RecordBatch]:
        if count == self._pending_rows:
            taken = self._pending
            self._forget_pending()
            return taken
        taken = []
        while count:
            batch = self._pending[0]
            if batch.num_rows <= count:
                del self._pending[0]
            else:
                self._pending[0], batch = batch.slice(count), batch.slice(0, count)
            taken.append(batch)
            count -= batch.num_rows
        self._count_pending()
        return taken

    def _forget_pending(self) -> None:
        self._pending = []
        self._count_pending()

    def _count_pending(self) -> None:
        self._pending_rows = sum(batch.num_rows for batch in self._pending)
        self._pending_bytes = sum(batch.nbytes for batch in self._pending)
        self._retained_bytes = sum(batch.get_total_buffer_size() for batch in self._pending)

    def _copy_out(self) -> None:
        """Copy the waiting rows out of buffers that they share; where that frees little, encode them."""
        # One by one: dictionaries that differ need not fit together.
        self._pending = [pa.concat_batches([piece]) for piece in self._pending]  # type: ignore[attr-defined]
        self._count_pending()
        if self._retained_bytes > self._limits.retained_bytes // 2:
            self._encode(self._pending_rows)

    def _append(self, directory: str, rows: pa.Table) -> None:
        opened = self._open.pop(directory, None) or self._begin(directory, rows)
        self._open[directory] = opened
        try:
            opened.encoder.write(rows)
        except FileFull:
            opened = self._append_apart(directory, rows)
        opened.staged.flush()
        if self._limits.file_bytes is not None and opened.staged.size >= self._limits.file_bytes:
            self._finish(directory)

    def _append_apart(self, directory: str, rows: pa.Table) -> _OpenFile:
        """Encode rows piece by piece, and begin another file where one does not fit."""
        for batch in rows.to_batches():
            piece = pa.Table.from_batches([batch])
            try:
                self._open[directory].encoder.write(piece)
            except FileFull:
                self._finish(directory)
                self._begin(directory, piece).encoder.write(piece)
        return self._open[directory]

    def _begin(self, directory: str, rows: pa.Table) -> _OpenFile:
        if len(self._open) >= self._limits.open_files:
            self._finish(next(iter(self._open)))
        if len(self._open) + len(self._finished) - self._durable >= self._limits.open_files:
            self._make_durable()
        part = self._parts.get(directory, 0)
        self._parts[directory] = part + 1
        name = file_name(self._mark, part, self._output.extension, shared=self._output.shared)
        staged = self._output.create(self._mark)
        target = f"{directory}/{name}" if directory else name
        try:
            encoder = self._open_encoder(staged, self._mark, rows)
        except BaseException:
            staged.discard()
            self._output.forget(staged)
            raise
        opened = self._open[directory] = _OpenFile(target, staged, encoder)
        return opened

    def _finish(self, directory: str) -> None:
        opened = self._open[directory]
        opened.encoder.close()
        opened.staged.flush()
        del self._open[directory]
        self._finished.append((opened.target, opened.staged))

    def _make_durable(self) -> None:
        """Sync and close the files that are complete."""
        for _, staged in self._finished[self._durable :]:
            staged.finish()
            self._durable += 1
