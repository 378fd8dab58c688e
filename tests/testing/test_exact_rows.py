"""Rows as bytes: equal where Arrow holds the same values, different wherever a bit is; and any row can be shown."""

import decimal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from engine.testing.exact_rows import encode, exact_rows, surely_equal


def floats(*words: int) -> pa.Array:
    return pa.array(np.array(words, np.uint64).view(np.float64))


ZERO, MINUS_ZERO, NAN, OTHER_NAN = 0, 1 << 63, 0x7FF8000000000000, 0x7FF8000000000001


def test_numbers_are_their_bits():
    words = (ZERO, MINUS_ZERO, NAN, OTHER_NAN, NAN)
    found = exact_rows(pa.table({"x": floats(*words)}))
    for row, word in zip(found, words, strict=True):
        assert row.data == b"\1" + struct.pack("<Q", word)
        assert [row == other for other in found] == [word == other for other in words]
    assert len(set(found)) == 4


TEXT = ["a" * 50, "", None, "b", "a" * 50]
INTS = [[1, None], None, [], [2, 3], [None]]
MAPS = [[("a", 1)], None, [], [("a", None), ("b", 2)], [("a", 1)]]
STRUCTS = [{"a": 1, "b": "x"}, None, {"a": None, "b": "x"}, {"a": 1, "b": None}, {"a": 2, "b": "x"}]
NAMED = pa.struct({"a": pa.int64(), "b": pa.string()})

FORMS = {
    "text": [
        pa.array(TEXT),
        pa.array(TEXT, pa.large_string()),
        pa.array(TEXT, pa.string_view()),
        pa.array(TEXT).dictionary_encode(),
        pc.run_end_encode(pa.array(TEXT)),
        pa.DictionaryArray.from_arrays(pa.array([1, 2, 0, 3, 1]), pa.array([None, "a" * 50, "", "b"])),
    ],
    "lists": [pa.array(INTS, form(pa.int64())) for form in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)],
    "pairs": [
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2)),
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8())),
    ],
    "maps": [
        pa.array(MAPS, pa.map_(pa.string(), pa.int64())),
        pa.array(
            [None if m is None else [{"key": k, "value": v} for k, v in m] for m in MAPS],
            pa.list_(pa.struct({"key": pa.string(), "value": pa.int64()})),
        ),
    ],
    "structs": [
        pa.array(STRUCTS, NAMED),
        pa.DictionaryArray.from_arrays(
            pa.array([0, None, 1, 2, 3]), pa.array([STRUCTS[n] for n in (0, 2, 3, 4)], NAMED)
        ),
    ],
    "booleans": [pa.array([True, None, False]), pa.array([True, None, False]).dictionary_encode()],
}


@pytest.mark.parametrize("form", FORMS)
def test_how_arrow_holds_a_value_does_not_count(form):
    first = encode(FORMS[form][0])
    values = FORMS[form][0].to_pylist()
    for array in FORMS[form]:
        assert encode(array) == first
        for start in range(len(array)):
            assert encode(array.slice(start, 2)) == first[start : start + 2]
    for one, value in zip(first, values, strict=True):
        assert [one == other for other in first] == [value == other for other in values]


def test_what_lies_below_a_null_does_not_count():
    validity = pa.py_buffer(b"\x01")
    one, other = (
        pa.Array.from_buffers(pa.int64(), 2, [validity, pa.py_buffer(struct.pack("<qq", 7, hidden))])
        for hidden in (1, 2)
    )
    assert encode(one) == encode(other)


WIDE = {
    "decimals": [
        pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-1.25")], form)
        for form in (pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 2))
    ],
    "times": [
        pa.array([1, None, 2**62], kind)
        for kind in (pa.timestamp("ns"), pa.timestamp("us"), pa.timestamp("s", "Nowhere/Known"), pa.duration("ns"))
    ],
    "others": [
        pa.array([1, None, 2**31 - 1], pa.date32()),
        pa.array([(1, 2, 3), None, (1, 2, 4)], pa.month_day_nano_interval()),
        pa.array(np.array([1, 2, 3], np.float16)),
        pa.array([b"ab", None, b"\xff\xfe"], pa.binary(2)),
        pa.array([b"ab", None, b"\xff"]).view(pa.string()),
        pa.array([b"ab" * 20, None, b"\xff" * 20], pa.binary_view()),
        pa.array([[1], [1, 2], []], pa.list_(pa.timestamp("ns"))),
        pa.array([b"0" * 16, None, b"1" * 16], pa.uuid()),
        pa.nulls(3),
        pa.UnionArray.from_dense(
            pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([1, 2]), pa.array(["a"])]
        ),
        pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])]),
    ],
}


@pytest.mark.parametrize("array", [array for arrays in WIDE.values() for array in arrays], ids=lambda a: str(a.type))
def test_every_type_has_rows_that_can_be_compared_and_shown(array):
    table = pa.table({"n": pa.array(range(len(array))), "x": array})
    found = exact_rows(table, ["n"])
    assert found == exact_rows(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    distinct = 1 if array.type == pa.null() else len(array)
    assert len(set(encode(array))) == distinct
    assert len(set(found)) == len({row.key for row in found}) == len(array)
    for number, row in enumerate(found):
        assert repr(row).startswith(f"({number}, ")
        assert repr(row.key) == f"({number})"


def test_rows_without_columns():
    table = pa.table({"n": [1, 2, 3]}).select([])
    assert [row.data for row in exact_rows(table)] == [b"", b"", b""]
    assert len({row.key for row in exact_rows(pa.table({"n": [1, 2, 3]}), [])}) == 1


def test_values_do_not_run_into_each_other():
    left, right = pa.table({"a": ["ab", "a"], "b": ["c", "bc"]}), pa.table({"a": ["abc"], "b": [""]})
    assert len({row.data for row in (*exact_rows(left), *exact_rows(right))}) == 3


def test_what_is_surely_equal_has_the_same_bits():
    words = (ZERO, MINUS_ZERO, NAN, OTHER_NAN)
    whole = pa.table({"x": floats(*words), "n": pa.array([1, None, 3, 4])})
    assert surely_equal(whole, pa.concat_tables([whole.slice(0, 3), whole.slice(3)]))
    assert not surely_equal(whole, whole.slice(1))
    for word in words:
        ones = pa.table({"x": floats(*[word] * 4), "n": whole.column("n")})
        assert surely_equal(ones, ones)
        assert not surely_equal(whole, ones)
