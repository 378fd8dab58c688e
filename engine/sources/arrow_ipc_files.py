"""Arrow IPC files as a source: the file format and the stream format, plain or compressed with LZ4 or Zstandard.

Laws
    - The bytes are not trusted: declared sizes are checked before a batch is read, and every batch is validated in full
      before it is given out.
    - Seeking reads the metadata of the batches before the offset, not their bodies.
    - A stream ends with its mark; one that does not is truncated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.ipc as ipc

from engine.errors import InputError
from engine.sources.arrow_ipc_metadata import (
    RECORD_BATCH,
    Message,
    block_message,
    check_sizes,
    footer_blocks,
    stream_messages,
)
from engine.sources.file_listing import FileSet, InputFile, PathArgument, describe, edge_checksum, footer_checksum
from engine.sources.file_source import FileSource, OpenFile
from engine.sources.row_schema import found_schema, parts
from engine.sources.row_validation import validate_rows
from engine.storage import open_input

__all__ = ["ArrowIpcSource", "arrow_ipc"]

MAGIC = b"ARROW1"
STREAM_HEAD = b"\xff\xff\xff\xff"

LEGACY_SCHEMA_BYTES = range(8, 1 << 24)
"""The first four bytes of a stream from before Arrow 0.15: the size of the schema's message."""

_OPTIONS = ipc.IpcReadOptions(use_threads=False)


def arrow_ipc(path: PathArgument) -> "ArrowIpcSource":
    """Read Arrow IPC files: a file, a directory with all below it (.arrow, .arrows, .ipc, .feather), a pattern,
    or several of these.

    Files are read in the order of their paths below the directory; files that appear later come after all that were
    read. All must have the same columns and types. Replayable. Raises PipelineError; reading raises InputError and
    SourceError.
    """
    return ArrowIpcSource(FileSet.of(path, (".arrow", ".arrows", ".ipc", ".feather")), None)


@dataclass(frozen=True, slots=True)
class ArrowIpcSource(FileSource):
    """Rows of Arrow IPC files."""

    kind: ClassVar[str] = "arrow_ipc"
    title: ClassVar[str] = "Arrow IPC"
    schema_is_cheap: ClassVar[bool] = True

    def checksum(self, handle: pa.NativeFile, size: int) -> str:
        """A file's footer, which holds the place of every batch, and its edges; a stream's edges."""
        edges = edge_checksum(handle, size)
        return f"{footer_checksum(MAGIC)(handle, size)}{edges}"

    def open_file(self, file: InputFile, expected: pa.Schema | None) -> OpenFile:
        """Read the schema; which of the two formats it is stands in the first bytes."""
        with open_input(file.path) as handle:
            size = handle.size()
            head = bytes(handle.read(16))
        if head.startswith(MAGIC):
            return _OpenIpcFile(file)
        if head.startswith(STREAM_HEAD) or int.from_bytes(head[:4], "little") in LEGACY_SCHEMA_BYTES:
            return _OpenIpcStream(file)
        raise InputError(
            f"{file.location}: expected an Arrow IPC file or stream, found {describe(head, size)}.\n"
            "  Nothing from it was committed. Remove it, or write it again."
        )


class _OpenIpcFile:
    """One file in the file format while it is read."""

    def __init__(self, file: InputFile) -> None:
        self._handle = open_input(file.path)
        try:
            self._size = self._handle.size()
            self._handle.seek(max(0, self._size - len(MAGIC)))
            if self._size < 2 * len(MAGIC) or bytes(self._handle.read()) != MAGIC:
                raise InputError(
                    f"{file.location}: expected an Arrow IPC file, found one that is truncated "
                    f"({self._size:,} bytes, no footer).\n  Nothing from it was committed. Write it again, whole."
                )
            dictionaries, self._blocks = footer_blocks(self._handle, self._size)
            for block in dictionaries:
                check_sizes(self._handle, block_message(self._handle, self._size, block))
            self._reader = ipc.open_file(self._handle, options=_OPTIONS)
            self.schema = found_schema(self._reader.schema, file.location)
        except BaseException:
            self.close()
            raise
        self.row_count: int | None = None if self._blocks else 0

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Validated rows; the bodies of batches before ``skip`` are not read."""
        if self._reader.num_record_batches != len(self._blocks):
            raise ValueError("its footer is damaged")
        stop = 0
        for index, block in enumerate(self._blocks):
            message = block_message(self._handle, self._size, block)
            start, stop = stop, stop + message.row_count
            if index == len(self._blocks) - 1:
                self.row_count = stop
            if stop > skip and message.row_count:
                check_sizes(self._handle, message)
                yield _checked(self._reader.get_batch(index), message).slice(max(0, skip - start))

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


class _OpenIpcStream:
    """One file in the stream format while it is read."""

    def __init__(self, file: InputFile) -> None:
        self._handle = open_input(file.path)
        self._scanned = open_input(file.path)
        self.row_count: int | None = None
        try:
            self._messages = stream_messages(self._scanned, self._scanned.size(), 0)
            if next(self._messages, None) is None:
                raise ValueError("it ends before its schema")
            self._reader = ipc.open_stream(self._handle, options=_OPTIONS)
            self.schema = found_schema(self._reader.schema, file.location)
        except BaseException:
            self.close()
            raise

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Validated rows. Batches before ``skip`` are passed over, or read where dictionaries come between them."""
        stop = 0
        passed = not _has_dictionary(self._reader.schema)
        for message in self._messages:
            check_sizes(self._scanned, message)
            if message.kind != RECORD_BATCH:
                continue
            start, stop = stop, stop + message.row_count
            if stop <= skip and passed:
                self._handle.seek(message.stop)
                continue
            rows = _checked(self._reader.read_next_batch(), message)
            if stop > skip:
                yield rows.slice(max(0, skip - start))

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
        self._scanned.close()


def _checked(rows: pa.RecordBatch, message: Message) -> pa.RecordBatch:
    if rows.num_rows != message.row_count:
        raise ValueError("a batch has another number of rows than its metadata says")
    validate_rows(rows)
    return rows


def _has_dictionary(schema: pa.Schema) -> bool:
    level: Sequence[pa.DataType] = list(schema.types)
    while level:
        if any(pa.types.is_dictionary(each) for each in level):
            return True
        level = [part for each in level for part in parts(each)]
    return False
