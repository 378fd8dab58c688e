"""What an Arrow IPC file says about its batches: rows and sizes, read from the metadata without the bodies.

The layout is that of the Arrow columnar format, "Serialization and Interprocess Communication": a message is
``FFFFFFFF <int32 metadata size> <flatbuffer> <body>``; a file ends with ``<footer> <int32 size> ARROW1``, and the
footer lists the place of every message.

Laws
    - Every offset that a flatbuffer gives is checked before it is used: damaged bytes raise ValueError or struct.error.
    - Declared sizes are compared with limits before anything of that size is allocated.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

__all__ = ["RECORD_BATCH", "Block", "Message", "block_message", "check_sizes", "footer_blocks", "stream_messages"]

CONTINUATION = 0xFFFFFFFF

SCHEMA, DICTIONARY_BATCH, RECORD_BATCH = 1, 2, 3

METADATA_BYTES_MAX = 64 << 20
BATCH_BYTES_MAX = 2 << 30
"""Uncompressed bytes that one batch may declare."""

ROWS_MAX = 1 << 24
"""Rows that one batch may declare beyond eight for each of its bytes: nulls and runs take no bytes."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its kind, where it lies, and the rows and bytes that it declares."""

    kind: int
    body_start: int
    body_size: int
    row_count: int
    buffers: tuple[tuple[int, int], ...]
    compressed: bool

    @property
    def stop(self) -> int:
        """Where the next message begins."""
        return self.body_start + self.body_size


class Block(NamedTuple):
    """Where the footer says that a message lies."""

    start: int
    metadata_size: int
    body_size: int


class _Table:
    """A flatbuffer table: fields by number, absent ones by their default."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start
        self._fields = start - struct.unpack_from("<i", data, _inside(data, start))[0]
        self._fields_size = struct.unpack_from("<H", data, _inside(data, self._fields))[0]

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def _at(self, field: int) -> int | None:
        place = 4 + 2 * field
        if place + 2 > self._fields_size:
            return None
        offset = struct.unpack_from("<H", self._data, self._fields + place)[0]
        return _inside(self._data, self._start + offset) if offset else None

    def scalar(self, field: int, code: str) -> int:
        at = self._at(field)
        return 0 if at is None else int(struct.unpack_from("<" + code, self._data, at)[0])

    def table(self, field: int) -> "_Table | None":
        at = self._at(field)
        return None if at is None else _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def structs(self, field: int, code: str) -> Iterator[tuple[int, ...]]:
        at = self._at(field)
        if at is None:
            return iter(())
        start = _inside(self._data, at + struct.unpack_from("<I", self._data, at)[0])
        size = struct.unpack_from("<I", self._data, start)[0] * struct.calcsize("<" + code)
        if start + 4 + size > len(self._data):
            raise ValueError("a list in the metadata is longer than the metadata")
        return struct.iter_unpack("<" + code, self._data[start + 4 : start + 4 + size])


def _inside(data: bytes, at: int) -> int:
    if not 0 <= at < len(data):
        raise ValueError("an offset in the metadata points outside of it")
    return at


def footer_blocks(handle: pa.NativeFile, size: int) -> tuple[list[Block], list[Block]]:
    """Where a file's dictionary and record batches lie, by its footer. Raises ValueError, struct.error, OSError."""
    footer_size = struct.unpack_from("<i", _read_at(handle, size - 10, 10))[0]
    if not 0 < footer_size <= size - 18:
        raise ValueError("its footer's size does not fit the file")
    footer = _Table.root(_read_at(handle, size - 10 - footer_size, footer_size))
    dictionaries, batches = ([Block(*block) for block in footer.structs(field, "qi4xq")] for field in (2, 3))
    return dictionaries, batches


def block_message(handle: pa.NativeFile, size: int, block: Block) -> Message:
    """The message at a place that the footer names. Raises ValueError, struct.error, OSError."""
    if min(block) < 0 or block.start + block.metadata_size + block.body_size > size:
        raise ValueError("its footer names a place outside of the file")
    message = next(stream_messages(handle, size, block.start), None)
    if message is None or message.body_size != block.body_size:
        raise ValueError("its footer does not agree with its messages")
    return message


def stream_messages(handle: pa.NativeFile, size: int, start: int) -> Iterator[Message]:
    """The messages from ``start`` to the mark of the end. Raises ValueError where the file ends before that."""
    while True:
        prefix = _read_at(handle, start, 8)
        if len(prefix) < 4:
            raise ValueError("it ends without the end-of-stream mark: truncated, or still being written")
        first, second = struct.unpack_from("<Ii", prefix.ljust(8, b"\0"))
        if first == CONTINUATION and len(prefix) < 8:
            raise ValueError("it ends inside a message: truncated, or still being written")
        metadata_size, head_size = (second, 8) if first == CONTINUATION else (first, 4)
        if metadata_size == 0:
            return
        if not 0 < metadata_size <= METADATA_BYTES_MAX:
            raise ValueError(f"a message declares {metadata_size:,} bytes of metadata")
        body_start = start + head_size + metadata_size
        message = _parse(_read_at(handle, start + head_size, metadata_size), body_start)
        if message.stop > size or message.body_size < 0:
            raise ValueError("it ends inside a message: truncated, or still being written")
        yield message
        start = message.stop


def _parse(metadata: bytes, body_start: int) -> Message:
    root = _Table.root(metadata)
    kind, body_size = root.scalar(1, "B"), root.scalar(3, "q")
    batch = root.table(2)
    if batch is not None and kind == DICTIONARY_BATCH:
        batch = batch.table(1)
    if batch is None or kind not in (DICTIONARY_BATCH, RECORD_BATCH):
        return Message(kind, body_start, body_size, 0, (), False)
    row_count = batch.scalar(0, "q")
    if row_count < 0:
        raise ValueError(f"one batch declares {row_count:,} rows")
    buffers = tuple((start, length) for start, length in batch.structs(2, "qq"))
    return Message(kind, body_start, body_size, row_count, buffers, batch.table(3) is not None)


def check_sizes(handle: pa.NativeFile, message: Message) -> None:
    """Compare what a batch declares with the limits, before it is read. Raises ValueError."""
    total = 0
    for start, length in message.buffers:
        if start < 0 or length < 0 or start + length > message.body_size:
            raise ValueError("a buffer lies outside of its message")
        if message.compressed and length >= 8:
            declared = struct.unpack("<q", _read_at(handle, message.body_start + start, 8))[0]
            length = length - 8 if declared == -1 else declared
            if length < 0:
                raise ValueError("a compressed buffer declares a negative size")
        total += length
    if total > BATCH_BYTES_MAX:
        raise ValueError(f"one batch declares {total:,} bytes; at most {BATCH_BYTES_MAX:,} are read")
    if message.row_count > 8 * total + ROWS_MAX:
        raise ValueError(f"one batch declares {message.row_count:,} rows in {total:,} bytes")


def _read_at(handle: pa.NativeFile, start: int, size: int) -> bytes:
    handle.seek(start)
    return bytes(handle.read(size))
