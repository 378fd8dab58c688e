"""The rows of a frame as an Arrow IPC stream that is complete in itself, and back.

Laws
    - Only what the rows need is written: a slice of a batch does not drag the dictionary or the text of the whole
      along.
    - Bytes that come back were verified by the frame's checksum before they are given to Arrow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from engine._core.crc32c import crc32c
from engine._core.partition import take
from engine.log.format import BODY_LIMIT_BYTES, Codec

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Body", "BodyEncoder", "decode_body", "unreadable"]

_OPTIONS = {
    Codec.NONE: ipc.IpcWriteOptions(),
    Codec.LZ4: ipc.IpcWriteOptions(compression="lz4"),
    Codec.ZSTD: ipc.IpcWriteOptions(compression="zstd"),
}
_READ_OPTIONS = ipc.IpcReadOptions(use_threads=False)
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Body(NamedTuple):
    """So many rows as bytes that lie in several pieces."""

    rows: int
    pieces: "tuple[Buffer, ...]"

    @property
    def size_bytes(self) -> int:
        """Bytes in all pieces."""
        return sum(memoryview(piece).nbytes for piece in self.pieces)

    def checksum(self) -> int:
        """CRC32C of all pieces, one behind the other."""
        checksum = 0
        for piece in self.pieces:
            checksum = crc32c(piece, checksum)
        return checksum


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is to be known of a schema before its rows are encoded."""

    schema: pa.Schema
    message: "Buffer"
    """The schema as a stream begins with it."""

    has_dictionary: bool
    borrows: bool

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """Raises ValueError for what would not come back."""
        if (reason := unreadable(schema)) is not None:
            raise ValueError(reason)
        return cls(schema, schema.serialize(), _has_dictionary(schema), any(map(_borrows, schema.types)))


class BodyEncoder:
    """Encodes rows with one codec. Any thread may call; the schema of the rows before is remembered."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._facts = _Facts.of(pa.schema([]))

    def encode(self, rows: pa.RecordBatch, limit_bytes: int = BODY_LIMIT_BYTES) -> list[Body]:
        """The rows as one body, or as several where one would be longer than ``limit_bytes``.

        Raises ValueError where a single row is longer, or for what would not come back; Arrow's errors for what IPC
        cannot hold.
        """
        facts = self._facts
        if not facts.schema.equals(rows.schema, check_metadata=True):
            facts = self._facts = _Facts.of(rows.schema)
        if rows.num_rows > 1 and rows.nbytes > limit_bytes:
            return self._encode_halves(rows, limit_bytes)
        body = Body(rows.num_rows, self._pieces(facts, _compact(rows) if facts.borrows else rows))
        if body.size_bytes <= limit_bytes:
            return [body]
        if rows.num_rows == 1:
            raise ValueError(f"one row takes {body.size_bytes:,} bytes; a frame holds at most {limit_bytes:,}")
        return self._encode_halves(rows, limit_bytes)

    def _encode_halves(self, rows: pa.RecordBatch, limit_bytes: int) -> list[Body]:
        half = rows.num_rows // 2
        return self.encode(rows.slice(0, half), limit_bytes) + self.encode(rows.slice(half), limit_bytes)

    def _pieces(self, facts: _Facts, rows: pa.RecordBatch) -> "tuple[Buffer, ...]":
        if self._codec is Codec.NONE and not facts.has_dictionary:
            # The same bytes as below, with the rows copied once instead of into a stream that grows.
            return facts.message, rows.serialize(), _END_OF_STREAM
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, rows.schema, options=_OPTIONS[self._codec]) as writer:
            writer.write_batch(rows)
        return (sink.getvalue(),)


def unreadable(schema: pa.Schema) -> str | None:
    """Why rows of this schema would not come back, though Arrow writes them; None where they do."""
    for field in schema:
        if any(pa.types.is_dictionary(kind) and pa.types.is_dictionary(kind.value_type) for kind in _kinds(field.type)):
            return (
                f'column "{field.name}" is {field.type}, and Arrow cannot read a dictionary of dictionaries; decode it'
            )
    return None


def _has_dictionary(schema: pa.Schema) -> bool:
    return any(pa.types.is_dictionary(kind) for field in schema for kind in _kinds(field.type))


def _kinds(kind: Any) -> Iterator[Any]:
    """A type and all those inside it, also in the storage of an extension."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from _kinds(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _kinds(kind.value_type)
    else:
        for index in range(kind.num_fields):
            yield from _kinds(kind.field(index).type)


def decode_body(body: "Buffer") -> pa.RecordBatch:
    """The rows of a body; columns share its memory. Raises Arrow's errors."""
    with ipc.open_stream(pa.py_buffer(body), options=_READ_OPTIONS) as reader:
        return reader.read_next_batch()


def _compact(rows: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_compact_column(column) for column in rows.columns], schema=rows.schema)


def _borrows(kind: pa.DataType) -> bool:
    """Whether a slice of such a column keeps values of other rows."""
    return pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)


def _compact_column(column: Any) -> Any:
    kind = column.type
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string()).cast(kind)
    if pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary()).cast(kind)
    if pa.types.is_dictionary(kind) and len(column.dictionary) > len(column):
        indices = column.indices.unique().drop_null()
        values = take(column.dictionary, indices)
        places = pc.index_in(column.indices, value_set=indices).cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(places, values, ordered=kind.ordered)
    return column
