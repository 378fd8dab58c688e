"""Rows as bytes: two are equal where every bit of every value is, whatever Python thinks of such values.

Laws
    - A NaN is itself, another NaN has other bits; 0.0 and -0.0 are two values.
    - How Arrow holds a value does not count: chunks, slices, dictionaries, run ends, views and what lies below a null.
    - No value becomes a Python object but bytes: times beyond Python's, nanoseconds and text that is not UTF-8 are
      values as any. Only a row that is shown takes a form for people, and there always is one.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

__all__ = ["NULL", "ExactRow", "encode", "exact_rows", "surely_equal"]

NULL = b"\0"
VALUE = b"\1"
"""What the bytes of a value begin with; a union has its code there."""

Encoded = list[bytes]
"""The bytes of each value. Where they end follows from what they begin with and from the type."""


@dataclass(frozen=True, slots=True)
class ExactRow:
    """One row: equal to others by ``data`` alone, which holds all columns; ``key`` is the row of the key columns."""

    data: bytes
    key: "ExactRow | None" = field(compare=False)
    table: pa.Table = field(compare=False)
    place: int = field(compare=False)

    def __repr__(self) -> str:
        return f"({', '.join(_shown(column.slice(self.place, 1)) for column in self.table.columns)})"


def exact_rows(table: pa.Table, keys: Sequence[str] | None = None) -> list[ExactRow]:
    """The rows of a table, in order; with ``keys`` each has its key."""
    found = [b"".join(values) for values in _rows(table)]
    keyed: Sequence[ExactRow | None] = [None] * len(found) if keys is None else exact_rows(table.select(list(keys)))
    return [ExactRow(data, key, table, place) for place, (data, key) in enumerate(zip(found, keyed, strict=True))]


def surely_equal(one: pa.Table, other: pa.Table) -> bool:
    """Whether they have the same rows in the same form, told fast. Where not, their rows may still be equal."""
    return one.num_rows == other.num_rows and _written(one).equals(_written(other))


def _written(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def _rows(table: pa.Table) -> Iterable[Sequence[bytes]]:
    if not table.num_columns:
        return [()] * table.num_rows
    return zip(*([data for chunk in column.chunks for data in encode(chunk)] for column in table.columns), strict=True)


def encode(array: Any) -> Encoded:
    """The bytes of each value of an array of any type."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return encode(array.storage)
    if pa.types.is_dictionary(kind):
        return encode(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return encode(pc.run_end_decode(array))  # type: ignore[attr-defined]  # the stubs lack it
    if pa.types.is_union(kind):
        return _union(array)
    if pa.types.is_null(kind):
        return [NULL] * len(array)
    if pa.types.is_boolean(kind):
        return encode(array.cast(pa.uint8()))
    return [VALUE + data if valid else NULL for valid, data in zip(_valid(array), _bodies(array), strict=True)]


def _valid(array: Any) -> list[bool]:
    if not array.null_count:
        return [True] * len(array)
    valid: list[bool] = array.is_valid().to_pylist()
    return valid


def _bodies(array: Any) -> Iterable[bytes]:
    kind = array.type
    if pa.types.is_struct(kind):
        return map(b"".join, zip(*map(encode, array.flatten()), strict=True)) if kind.num_fields else [b""] * len(array)
    if pa.types.is_map(kind):
        return _lists(array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    if pa.types.is_nested(kind):
        return _lists(array)
    if pa.types.is_fixed_size_binary(kind) or _is_fixed(kind):
        return _fixed(array)
    found = array.cast(pa.large_binary()).to_pylist()
    return [b"" if data is None else struct.pack("<Q", len(data)) + data for data in found]


def _is_fixed(kind: Any) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_interval(kind))


def _fixed(array: Any) -> Iterable[bytes]:
    width, data = array.type.bit_width // 8, array.buffers()[1]
    if not width or data is None:
        return [b""] * len(array)
    # As the buffer holds them: numbers are not read, so that no bit of a NaN is lost.
    start = array.offset * width
    return (one for (one,) in struct.iter_unpack(f"{width}s", data[start : start + len(array) * width]))


def _lists(array: Any) -> Iterable[bytes]:
    lengths = [length or 0 for length in pc.list_value_length(array).to_pylist()]
    values = iter(encode(array.flatten()))
    return [struct.pack("<Q", length) + b"".join(next(values) for _ in range(length)) for length in lengths]


def _union(array: Any) -> Encoded:
    kind = array.type
    children = {code: encode(array.field(number)) for number, code in enumerate(kind.type_codes)}
    # From the buffers: ``type_codes`` and ``offsets`` of a slice are those of the whole.
    start, stop, buffers = array.offset, array.offset + len(array), array.buffers()
    codes = memoryview(buffers[1]).cast("b")[start:stop]
    places = memoryview(buffers[2]).cast("i")[start:stop] if kind.mode == "dense" else range(len(array))
    return [bytes([code]) + children[code][place] for code, place in zip(codes, places, strict=True)]


def _shown(value: Any) -> str:
    """One value, as Python writes it or else as Arrow does."""
    try:
        return repr(value[0].as_py())
    except (pa.ArrowException, ValueError, OverflowError, LookupError):
        return " ".join(value.to_string().split()).strip("[] ")
