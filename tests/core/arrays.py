"""Hypothesis strategies for Arrow arrays and batches of every type that kernels take, shared by the tests of the core.

A drawn array comes with its raw values (None, bool, int, float, bytes or Unscaled), which naive models compute with.
Raw values do not depend on the Arrow form: the same values drawn in two forms must be equal keys. Slices with offsets
are part of what is drawn, for arrays, for record batches and for structs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st


@dataclass(frozen=True)
class Unscaled:
    """A decimal as its unscaled integer and the bytes of its canonical form."""

    value: int
    size_bytes: int


Raw = None | bool | int | float | bytes | Unscaled


@dataclass(frozen=True)
class Form:
    """One Arrow type: how raw values are drawn and how an array is made of them."""

    type: pa.DataType
    values: st.SearchStrategy[Any]
    make: Callable[[list[Any]], pa.Array]


def _integer(kind: pa.DataType) -> Form:
    low, high = (0, 2**kind.bit_width - 1) if pa.types.is_unsigned_integer(kind) else _signed_range(kind.bit_width)
    return Form(kind, st.integers(low, high) | st.integers(max(low, -3), 3), lambda raw: pa.array(raw, kind))


def _signed_range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _temporal(kind: pa.DataType, per_day: int = 0) -> Form:
    """Dates, times and the like as their integers; times stay within a day of `per_day` units, date64 at its start."""
    stored = pa.int32() if kind.bit_width == 32 else pa.int64()
    values = st.integers(*_signed_range(kind.bit_width)) | st.integers(-3, 3)
    if pa.types.is_time(kind):
        values = st.integers(0, per_day - 1)
    elif pa.types.is_date64(kind):
        values = st.integers(-(10**6), 10**6).map(lambda day: day * per_day)
    return Form(kind, values, lambda raw: pa.array(raw, stored).view(kind))


def _floating(kind: pa.DataType) -> Form:
    values = st.floats(width=kind.bit_width) | st.sampled_from([0.0, -0.0, math.nan, 1.0])
    if kind.bit_width == 16:
        return Form(kind, values, lambda raw: pa.array([None if v is None else np.float16(v) for v in raw], kind))
    return Form(kind, values, lambda raw: pa.array(raw, kind))


def _decimal(kind: pa.DataType) -> Form:
    size_bytes = 32 if kind.bit_width == 256 else 16
    limit = 10**kind.precision - 1
    values = st.integers(-limit, limit).map(lambda value: Unscaled(value, size_bytes))

    def exact(value: int) -> Decimal:
        digits = tuple(int(digit) for digit in str(abs(value)))
        return Decimal((int(value < 0), digits, -kind.scale))

    return Form(kind, values, lambda raw: pa.array([None if v is None else exact(v.value) for v in raw], kind))


def _binary(kind: pa.DataType, values: st.SearchStrategy[bytes]) -> Form:
    return Form(kind, values, lambda raw: pa.array(raw, kind))


def _text(kind: pa.DataType) -> Form:
    values = TEXT.map(lambda text: text.encode())
    return Form(kind, values, lambda raw: pa.array([None if v is None else v.decode() for v in raw], kind))


def dictionary_form(values: Form, index: pa.DataType) -> Form:
    """Dictionary-encoded `values`: nulls are in the indices, or (the first null) in the dictionary too."""

    def make(raw: list[Any]) -> pa.Array:
        if not raw:
            return pa.DictionaryArray.from_arrays(pa.array([], index), values.make([]))
        keys = list(dict.fromkeys(repr(value) for value in raw if value is not None))
        first = {repr(value): value for value in reversed(raw)}
        in_dictionary = raw[0] is None
        dictionary = values.make([*[first[key] for key in keys], *([None] if in_dictionary else []), *raw[:1]])
        null_index = len(keys) if in_dictionary else None
        indices = [null_index if value is None else keys.index(repr(value)) for value in raw]
        return pa.DictionaryArray.from_arrays(pa.array(indices, index), dictionary)

    return Form(pa.dictionary(index, values.type), values.values, make)


TEXT = st.text(max_size=6) | st.text("ab", max_size=40) | st.sampled_from(["", "a" * 12, "a" * 13, "x" * 16, "y" * 17])
BINARY = st.binary(max_size=6) | st.binary(max_size=70) | st.sampled_from([b"", b"\0", b"\0\0", b"0" * 16, b"1" * 32])

INTEGERS = {
    **{str(kind): _integer(kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(kind): _integer(kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{str(kind): _temporal(kind) for kind in (pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"))},
    **{str(kind): _temporal(kind) for kind in (pa.timestamp("ns", "Europe/Prague"), pa.duration("us"))},
    str(pa.date64()): _temporal(pa.date64(), 86_400_000),
    **{str(pa.time32(unit)): _temporal(pa.time32(unit), 86_400 * many) for unit, many in (("s", 1), ("ms", 1000))},
    **{
        str(pa.time64(unit)): _temporal(pa.time64(unit), 86_400 * many) for unit, many in (("us", 10**6), ("ns", 10**9))
    },
}
FLOATS = {str(kind): _floating(kind) for kind in (pa.float16(), pa.float32(), pa.float64())}
DECIMALS = {
    str(kind): _decimal(kind)
    for kind in (pa.decimal32(9, 2), pa.decimal64(18, 4), pa.decimal128(38, 3), pa.decimal256(76, 5))
}
FIXED_BINARY = {
    str(pa.binary(size)): _binary(pa.binary(size), st.binary(min_size=size, max_size=size))
    for size in (1, 5, 16, 20, 40)
}
VARIABLE = {
    **{str(kind): _binary(kind, BINARY) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())},
    **{str(kind): _text(kind) for kind in (pa.string(), pa.large_string(), pa.string_view())},
}
PLAIN = {
    **INTEGERS,
    **FLOATS,
    **DECIMALS,
    **FIXED_BINARY,
    **VARIABLE,
    "bool": Form(pa.bool_(), st.booleans(), lambda raw: pa.array(raw, pa.bool_())),
    "null": Form(pa.null(), st.none(), lambda raw: pa.nulls(len(raw))),
}
DICTIONARIES = {
    f"{values} by {index}": dictionary_form(PLAIN[values], index)
    for values, index in (
        ("string", pa.int8()),
        ("large_string", pa.uint16()),
        ("string_view", pa.int32()),
        ("binary", pa.int64()),
        ("int64", pa.uint8()),
        ("double", pa.int16()),
        ("fixed_size_binary[16]", pa.uint32()),
        ("bool", pa.uint64()),
    )
}
KEY_FORMS = {**PLAIN, **DICTIONARIES}


def _nested(kind: pa.DataType, values: st.SearchStrategy[Any]) -> Form:
    return Form(kind, values, lambda raw: pa.array(raw, kind))


NESTED = {
    "list": _nested(pa.list_(pa.int64()), st.lists(st.integers(-5, 5), max_size=3)),
    "list of text": _nested(pa.large_list(pa.string()), st.lists(st.text("ab", max_size=3), max_size=3)),
    "list of views": _nested(pa.large_list(pa.string_view()), st.lists(st.text("ab", max_size=20), max_size=3)),
    "views below all": _nested(
        pa.struct(
            [
                pa.field("map", pa.map_(pa.string_view(), pa.binary_view()), nullable=False),
                ("fixed", pa.list_(pa.list_(pa.binary_view()), 1)),
                ("large", pa.large_list(pa.field("x", pa.string_view(), metadata={"a": "b"}))),
            ]
        ),
        st.fixed_dictionaries(
            {
                "map": st.lists(st.tuples(st.text("ab", max_size=14), BINARY), max_size=2),
                "fixed": st.lists(st.lists(BINARY, max_size=2), min_size=1, max_size=1),
                "large": st.none() | st.lists(st.text("ab", max_size=14), max_size=2),
            }
        ),
    ),
    "fixed list": _nested(pa.list_(pa.int16(), 2), st.lists(st.integers(-5, 5), min_size=2, max_size=2)),
    "struct": _nested(
        pa.struct([("a", pa.int32()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.none() | st.integers(0, 9), "b": st.text("ab", max_size=3)}),
    ),
    "map": _nested(
        pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(st.text("ab", max_size=2), st.just(1)), max_size=2)
    ),
    "run-end encoded": Form(
        pa.run_end_encoded(pa.int32(), pa.string()),
        st.text("ab", max_size=2),
        lambda raw: pc.run_end_encode(pa.array(raw, pa.string())),
    ),
}
ALL_FORMS = {**KEY_FORMS, **NESTED}


@dataclass(frozen=True)
class Drawn:
    """An array and its raw values."""

    array: pa.Array
    raw: list[Any]


def draw_raw(draw: st.DrawFn, form: Form, rows: int, nulls: bool = True) -> list[Any]:
    """`rows` raw values of a form, with repetitions."""
    values = form.values if not nulls else st.none() | form.values | form.values
    pool = draw(st.lists(values, min_size=1, max_size=8))
    return draw(st.lists(st.sampled_from(pool), min_size=rows, max_size=rows))


@st.composite
def arrays(draw: st.DrawFn, form: Form, rows: int, nulls: bool = True) -> Drawn:
    """An array of `rows` values, sliced out of a longer one as often as not."""
    raw = draw_raw(draw, form, rows, nulls)
    before = draw(st.sampled_from([0, 0, 1, 3, 8, 11]))
    after = draw(st.sampled_from([0, 0, 2]))
    spare = draw_raw(draw, form, before + after, nulls)
    array = form.make([*spare[:before], *raw, *spare[before:]])
    return Drawn(array.slice(before, rows), raw)


@dataclass(frozen=True)
class DrawnBatch:
    """A record batch or a struct array, and the raw values of its columns (all None where the struct is null)."""

    batch: Any
    columns: list[list[Any]]
    forms: list[str]
    rows: int


@st.composite
def batches(draw: st.DrawFn, names: st.SearchStrategy[list[str]], max_rows: int = 24) -> DrawnBatch:
    """A batch of columns of the forms `names`: whole or sliced, a RecordBatch or a StructArray with its own nulls."""
    forms = draw(names)
    rows = draw(st.integers(0, max_rows))
    shape = draw(st.sampled_from(["batch", "sliced batch", "struct", "sliced struct"]))
    before, after = (draw(st.integers(1, 9)), draw(st.integers(0, 3))) if shape.startswith("sliced") else (0, 0)
    whole = before + rows + after
    columns = [draw(arrays(ALL_FORMS[name], whole)) for name in forms]
    labels = [f"c{index}" for index in range(len(forms))]
    kept = slice(before, before + rows)
    raw = [column.raw[kept] for column in columns]
    if shape.endswith("batch") or not forms:
        schema = pa.schema(
            [
                pa.field(label, column.array.type, metadata={"k": "v"})
                for label, column in zip(labels, columns, strict=True)
            ],
            metadata={"origin": "drawn"},
        )
        batch = pa.RecordBatch.from_arrays([column.array for column in columns], schema=schema)
        return DrawnBatch(batch.slice(before, rows), raw, forms, rows if forms else 0)
    missing = draw(st.lists(st.booleans(), min_size=whole, max_size=whole)) if draw(st.booleans()) else [False] * whole
    struct = pa.StructArray.from_arrays(
        [column.array for column in columns], labels, mask=pa.array(missing, pa.bool_())
    )
    raw = [[None if gone else value for value, gone in zip(c, missing[kept], strict=True)] for c in raw]
    return DrawnBatch(struct.slice(before, rows), raw, forms, rows)


def plain_values(array: pa.Array) -> list[Any]:
    """An array's values as Python objects, to compare by `repr`: temporal ones as integers, encoded ones decoded."""
    if isinstance(array, pa.ExtensionArray):
        return plain_values(array.storage)
    if pa.types.is_dictionary(array.type):
        # Some dictionaries cannot be decoded by pyarrow: views have no `take`.
        values = plain_values(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if pa.types.is_run_end_encoded(array.type):
        return plain_values(pc.run_end_decode(array))
    if pa.types.is_temporal(array.type):
        return array.view(pa.int32() if array.type.bit_width == 32 else pa.int64()).to_pylist()
    return array.to_pylist()
