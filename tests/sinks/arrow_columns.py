"""A column of every Arrow type, with nulls, for round trips."""

from decimal import Decimal

import pyarrow as pa


def dictionary(indices, values, index_type=None):
    return pa.DictionaryArray.from_arrays(pa.array(indices, index_type or pa.int8()), values)


def extension(kind, storage):
    return pa.ExtensionArray.from_storage(kind, storage)


NUMBERS = {
    str(kind): pa.array([0, None, 1, 100], kind)
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
        *(pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("s")),
    )
}

DECIMALS = {
    str(kind): pa.array([Decimal("1.23"), None, Decimal("-4.50"), Decimal(0)], kind)
    for kind in (pa.decimal32(5, 2), pa.decimal64(15, 2), pa.decimal128(10, 2), pa.decimal256(50, 2))
}

TEXTS = {
    str(kind): pa.array(["a", None, "x" * 40, ""], kind)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
}

LISTS = {
    str(kind): pa.array([[1, 2], None, [], [None]], kind)
    for kind in (
        *(pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_view(pa.int64()), pa.large_list_view(pa.int64())),
    )
}

SAME = {
    **NUMBERS,
    **DECIMALS,
    **TEXTS,
    **LISTS,
    "bool": pa.array([True, None, False, True]),
    "fixed binary": pa.array([b"abcd", None, b"\0\0\0\0", b"efgh"], pa.binary(4)),
    "fixed list": pa.array([[1, 2], None, [3, 4], [5, None]], pa.list_(pa.int64(), 2)),
    "null": pa.nulls(4),
    "dictionary": dictionary([0, None, 1, 0], pa.array(["a", "b"])),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": "y"}]),
    "map": pa.array([[("a", 1)], None, [], [("b", None)]], pa.map_(pa.string(), pa.int32())),
    "list of dictionaries": pa.array([["a"], None, ["b", "a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "list of structs": pa.array([[{"a": 1}], None, [], [{"a": None}]]),
    "uuid": extension(pa.uuid(), pa.array([b"a" * 16, None, b"b" * 16, b"c" * 16], pa.binary(16))),
    "json": extension(pa.json_(), pa.array(["{}", None, "1", "[]"])),
}
"""Types that both formats give back as they were."""

CHANGED = {
    "timestamp in seconds": (pa.array([0, None, 1, 2], pa.timestamp("s")), pa.timestamp("ms")),
    "time in seconds": (pa.array([0, None, 1, 2], pa.time32("s")), pa.time32("ms")),
    "date64": (pa.array([0, None, 86_400_000, 0], pa.date64()), pa.date32()),
    "dictionary of numbers": (dictionary([0, None, 1, 0], pa.array([10, 20])), pa.int64()),
    "dictionary with null": (
        dictionary([0, 1, None, 0], pa.array(["a", None])),
        pa.dictionary(pa.int8(), pa.string()),
    ),
    "dictionary of views": (
        dictionary([0, None, 1, 0], pa.array(["a", "b"], pa.string_view())),
        pa.dictionary(pa.int8(), pa.string()),
    ),
    "dictionary of views with null": (
        dictionary([0, 1, None, 0], pa.array([b"a", None], pa.binary_view())),
        pa.dictionary(pa.int8(), pa.binary()),
    ),
    "list of dictionaries of views": (
        pa.ListArray.from_arrays(
            pa.array([0, 1, None, 1, 3], pa.int32()), dictionary([0, None, 1], pa.array(["a", "b"], pa.string_view()))
        ),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ),
    "struct of views": (
        pa.array([{"a": "x"}, None, {"a": None}, {"a": "y"}], pa.struct([("a", pa.string_view())])),
        pa.struct([("a", pa.string())]),
    ),
    "views in a struct in a list": (
        pa.array([[{"a": b"x"}], None, [], [None]], pa.list_(pa.struct([("a", pa.binary_view())]))),
        pa.list_(pa.struct([("a", pa.binary())])),
    ),
    "run ends": (
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 4], pa.int32()), pa.array(["a", None, "b"])),
        pa.string(),
    ),
}
"""Types that Parquet gives back in another form, with the same values."""

NOT_IN_PARQUET = {
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None] * 2),
    "struct of nothing": pa.array([{}, None, {}, {}], pa.struct([])),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1], pa.int8()), [pa.array(range(4)), pa.array(list("abcd"))]
    ),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0, 1], pa.int8()), pa.array([0, 0, 1, 1], pa.int32()), [pa.array([1, 2]), pa.array(["a", "b"])]
    ),
}


def values_of(rows):
    """The rows as plain values, by column; nanoseconds as integers, for Python has no times as fine."""
    found = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        fine = pa.types.is_time64(column.type) or pa.types.is_timestamp(column.type)
        found[name] = (column.cast(pa.int64()) if fine else column).to_pylist()
    return found
