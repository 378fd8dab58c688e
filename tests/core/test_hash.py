"""Hashes and key identities against a naive model, over every type, form and slice; golden vectors pin the formats.

Every hash is computed at each level of vector instructions that the machine has.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arrays import DICTIONARIES, FIXED_BINARY, KEY_FORMS, VARIABLE, DrawnBatch, arrays, batches
from guarded import guarded
from hash_model import hash_row, key_id
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._core import simd
from engine._core.hash import HASH_VERSION, KeyIds, hash_rows, key_ids

SEED = bytes(range(16))
KEYS = st.lists(st.sampled_from(sorted(KEY_FORMS)), min_size=1, max_size=3)


def hashes(batch: Any, columns: list[int]) -> list[int]:
    """The hashes, the same at every level."""
    chosen = np.frombuffer(hash_rows(batch, columns), np.uint64).tolist()
    for level in simd.levels():
        assert np.frombuffer(hash_rows(batch, columns, level), np.uint64).tolist() == chosen, level
    return chosen


def ids(batch: Any, columns: list[int], seed: bytes = SEED) -> list[bytes | None]:
    """The identities as bytes, None for rows that have none; checks that the parts of the answer agree."""
    found = key_ids(batch, columns, seed)
    whole = bytes(found.ids)
    keyed = [True] * len(found) if found.keyed is None else [flag == 1 for flag in bytes(found.keyed)]
    assert len(whole) == 16 * len(keyed) == 16 * len(found)
    assert found.null_count == keyed.count(False)
    assert (found.keyed is None) == (found.null_count == 0)
    split = [whole[at : at + 16] for at in range(0, len(whole), 16)]
    assert all(has or value == bytes(16) for value, has in zip(split, keyed, strict=True))
    return [value if has else None for value, has in zip(split, keyed, strict=True)]


def one_column(array: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], names=["key"])


@given(batches(KEYS))
def test_hashes_agree_with_the_model(drawn: DrawnBatch) -> None:
    columns = list(range(len(drawn.forms)))
    assert hashes(drawn.batch, columns) == [hash_row(row) for row in zip(*drawn.columns, strict=True)]


@given(batches(KEYS))
def test_key_ids_agree_with_the_model(drawn: DrawnBatch) -> None:
    columns = list(range(len(drawn.forms)))
    assert ids(drawn.batch, columns) == [key_id(row, SEED) for row in zip(*drawn.columns, strict=True)]


@pytest.mark.parametrize("name", sorted(KEY_FORMS))
@settings(max_examples=15)
@given(data=st.data())
def test_every_type_alone(name: str, data: st.DataObject) -> None:
    drawn = data.draw(arrays(KEY_FORMS[name], data.draw(st.integers(0, 20))))
    batch = one_column(drawn.array)
    assert hashes(batch, [0]) == [hash_row([raw]) for raw in drawn.raw]
    assert ids(batch, [0]) == [key_id([raw], SEED) for raw in drawn.raw]


@pytest.mark.parametrize("rows", [63, 64, 65, 1000, 4099])
@pytest.mark.parametrize("name", ["int64", "float", "string", "string_view", "bool", "string by int8"])
def test_long_columns(name: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    pool: list[Any] = {
        "int64": [None, 0, -1, 7],
        "float": [None, 0.0, -0.0, math.nan, 1.5],
        "bool": [None, True, False],
    }.get(name, [None, b"", b"short", b"x" * 13, b"y" * 16, b"z" * 50])
    raw = [pool[i] for i in random.integers(0, len(pool), rows + 3)]
    batch = one_column(KEY_FORMS[name].make(raw)).slice(3)
    assert hashes(batch, [0]) == [hash_row([value]) for value in raw[3:]]
    assert ids(batch, [0]) == [key_id([value], SEED) for value in raw[3:]]


@pytest.mark.parametrize("form", ["string", "large_string", "string_view", "large_string by uint16"])
@pytest.mark.parametrize(
    "sizes", [range(17), range(40), [0] * 9, [16] * 20, [*range(17)] * 9 + [200] + [3] * 100, [47, 48, 49, 64, 65]]
)
def test_text_of_every_size(form: str, sizes: list[int]) -> None:
    """Short texts go by eight, longer ones one by one, and the last ones are read with care."""
    raw = [bytes([97 + row % 26]) * size for row, size in enumerate(sizes)]
    array = KEY_FORMS[form].make(raw)
    for start in range(min(len(raw), 10)):
        found = hashes(one_column(array.slice(start)), [0])
        assert found == [hash_row([value]) for value in raw[start:]]
        assert ids(one_column(array.slice(start)), [0]) == [key_id([value], SEED) for value in raw[start:]]


@pytest.mark.parametrize("size", [0, 1, 3, 8, 15, 16, 17, 32, 33, 50])
def test_fixed_binary_of_every_size(size: int) -> None:
    raw = [bytes([row + at & 255 for at in range(size)]) for row in range(40)]
    array = pa.array(raw, pa.binary(size))
    assert hashes(one_column(array.slice(1)), [0]) == [hash_row([value]) for value in raw[1:]]
    if size:
        assert hashes(one_column(guarded(array)), [0]) == [hash_row([value]) for value in raw]


def test_equal_values_meet_in_every_form() -> None:
    text = ["", "a", None, "x" * 16, "exactly thirteen", "twelve chars"]
    forms = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
    texts = [pa.array(text, pa.string()).cast(pa.binary()).cast(kind) for kind in forms]
    texts += [array.dictionary_encode() for array in texts if array.type not in (pa.string_view(), pa.binary_view())]
    sixteen = pa.array([b"0123456789abcdef"])
    numbers = [
        pa.array([0, 1, None, 100], kind) for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.date32())
    ]
    floats = [pa.array([np.float16(v) for v in (0.0, 1.5, -2.0, math.nan)], pa.float16())]
    floats += [pa.array([-0.0, 1.5, -2.0, -math.nan], kind) for kind in (pa.float32(), pa.float64())]
    decimals = [
        pa.array([1, -5, None], pa.decimal128(9, 2)).cast(kind) for kind in (pa.decimal32(9, 2), pa.decimal64(9, 2))
    ]
    decimals.append(pa.array([1, -5, None], pa.decimal128(9, 2)))
    for group in (
        texts,
        [sixteen, sixteen.cast(pa.binary(16)), sixteen.cast(pa.large_string())],
        numbers,
        floats,
        decimals,
    ):
        assert len({tuple(hashes(one_column(array), [0])) for array in group}) == 1
        assert len({tuple(ids(one_column(array), [0])) for array in group}) == 1


def test_the_dictionary_may_be_longer_than_the_batch() -> None:
    array = pa.DictionaryArray.from_arrays(
        pa.array([3, None, 1, 3], pa.int16()), pa.array(["a", "bb", "c", None, "e", "f"])
    )
    raw = [None, None, b"bb", None]
    assert hashes(one_column(array), [0]) == [hash_row([value]) for value in raw]
    assert ids(one_column(array), [0]) == [key_id([value], SEED) for value in raw]
    nulls = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int8()), pa.nulls(1))
    assert ids(one_column(nulls), [0]) == [None, None]
    assert hashes(one_column(nulls), [0]) == [hash_row([None])] * 2


def test_order_and_borders_of_columns_matter() -> None:
    batch = pa.record_batch({"a": ["ab", "a", "x", "y"], "b": ["c", "bc", "y", "x"]})
    for found in (hashes(batch, [0, 1]), ids(batch, [0, 1])):
        assert len(set(found)) == 4
    assert hashes(batch, [0, 1])[2] != hashes(batch, [1, 0])[2]
    assert hashes(batch, [0, 1])[2] == hashes(batch, [1, 0])[3]


def test_values_that_differ_only_in_zeros_differ() -> None:
    values = pa.array([b"\0" * size for size in range(40)])
    assert len(set(hashes(one_column(values), [0]))) == 40
    assert len(set(ids(one_column(values), [0]))) == 40


def test_golden_hashes() -> None:
    assert HASH_VERSION == 1
    batch = pa.record_batch(
        {
            "number": pa.array([0, 1, -1, None, 2**40]),
            "text": ["", "a", "0123456789abcdef", None, "a longer text, of 33 bytes in all."],
        }
    )
    assert hashes(batch, [0]) == GOLDEN_NUMBERS
    assert hashes(batch, [1]) == GOLDEN_TEXT
    assert hashes(batch, [0, 1]) == GOLDEN_ROWS


def test_golden_ids() -> None:
    batch = pa.record_batch({"text": ["", "a", "0123456789abcdef", "z" * 33], "number": pa.array([0, 1, -1, 5])})
    assert [value.hex() for value in ids(batch, [0]) if value] == GOLDEN_IDS
    assert [value.hex() for value in ids(batch, [0, 1]) if value] == GOLDEN_ROW_IDS
    assert ids(batch, [1])[2] == b"\xff" * 8 + bytes(8)


GOLDEN_NUMBERS: list[int] = [
    0x7ACDBB98B1344213,
    0xBE0627CE1831F633,
    0x3BFB2E89B6CC4D41,
    0xBE5466CF34E90C6C,
    0x41FBD542526072A9,
]
GOLDEN_TEXT: list[int] = [
    0x8D56C4C20ABEC675,
    0x3BCBA8BDA8862309,
    0xD8562C69A16222CC,
    0xBE5466CF34E90C6C,
    0x9FDAFCF76BC35052,
]
GOLDEN_ROWS: list[int] = [
    0x419FC5D2C9934415,
    0x893AAEF05B924A97,
    0xC35E00254DBFE14F,
    0xE5F0E1DBFCA7F170,
    0xDC1B834A1F106374,
]
GOLDEN_IDS: list[str] = [
    "805bdefec86d749059c387915b1e8054",
    "e81e723964406a22df2d2bd01dd6cd30",
    "30313233343536373839616263646566",
    "d62a68faff688f0a83e3f38f60fe3edf",
]
GOLDEN_ROW_IDS: list[str] = [
    "d038fcffa36786b2c646db90aadfcc1f",
    "9b58f80e47460766d8cd1ad2223c9b78",
    "6bfd327a8da0118b40191f2b44f82336",
    "d8c9c82109009ea8ff7767e28581264e",
]


def test_whole_ids_are_the_batchs_own_memory() -> None:
    array = pa.array([bytes([i]) * 16 for i in range(5)], pa.binary(16))
    batch = one_column(array).slice(2)
    found = key_ids(batch, [0], SEED)
    assert found.ids.readonly
    view = np.frombuffer(found.ids, np.uint8)
    assert view.ctypes.data == array.buffers()[1].address + 2 * 16
    del array, batch
    assert bytes(found.ids) == b"".join(bytes([i]) * 16 for i in range(2, 5))


def test_nulls_in_whole_ids_make_a_copy() -> None:
    array = pa.array([b"a" * 16, None, b"b" * 16], pa.binary(16))
    assert ids(one_column(array), [0]) == [b"a" * 16, None, b"b" * 16]
    assert key_ids(one_column(array.slice(2)), [0], SEED).ids.readonly


def test_the_seed_decides_fingerprints_and_nothing_else() -> None:
    batch = pa.record_batch({"text": ["short", "0123456789abcdef"], "number": [1, 2]})
    ours, theirs = (ids(batch, [0], seed) for seed in (SEED, bytes(16)))
    assert ours[0] != theirs[0]
    assert ours[1] == theirs[1] == b"0123456789abcdef"
    assert ids(batch, [1]) == ids(batch, [1], bytes(16))
    flipped = {tuple(ids(batch, [0], (1 << bit).to_bytes(16, "little"))) for bit in range(128)}
    assert len(flipped) == 128


def test_fingerprints_avalanche() -> None:
    """Each flipped bit of input flips each of the 128 bits of output half of the time."""
    random = np.random.default_rng(7)
    for size in (3, 15, 17, 40):
        base = random.integers(0, 256, (200, size), np.uint8)
        flips = []
        for bit in range(0, size * 8, 5):
            other = base.copy()
            other[:, bit // 8] ^= 1 << bit % 8
            words = [
                np.frombuffer(key_ids(one_column(pa.array([bytes(row) for row in rows])), [0], SEED).ids, np.uint8)
                for rows in (base, other)
            ]
            flips.append(np.unpackbits((words[0] ^ words[1]).reshape(-1, 16), axis=1))
        shares = np.concatenate(flips).mean(axis=0)
        assert abs(shares.mean() - 0.5) < 0.01
        assert (
            0.5 - 6 / math.sqrt(4 * len(flips) * 200)
            < shares.min()
            <= shares.max()
            < 0.5 + 6 / math.sqrt(4 * len(flips) * 200)
        )


def test_hashes_spread_over_the_high_bits() -> None:
    for array in (pa.array(range(40_000)), pa.array([str(i) for i in range(40_000)])):
        groups = np.bincount(
            np.frombuffer(hash_rows(one_column(array), [0]), np.uint64) >> np.uint64(54), minlength=1024
        )
        assert groups.min() > 10
        assert groups.max() < 80


@pytest.mark.parametrize("name", sorted({**FIXED_BINARY, **VARIABLE}))
@pytest.mark.parametrize("text", [[b"abcde"], [b"x" * 5, b"y" * 16, b"z" * 17, b"", b"w" * 40], [b"a", b"b", None]])
def test_no_read_past_the_end_of_a_buffer(name: str, text: list[bytes | None]) -> None:
    form = KEY_FORMS[name]
    width = getattr(form.type, "byte_width", 0) if name in FIXED_BINARY else 0
    raw = [None if value is None else value.ljust(width, b"-")[: width or None] for value in text]
    array = guarded(form.make(raw))
    assert hashes(one_column(array), [0]) == [hash_row([value]) for value in raw]
    assert ids(one_column(array), [0]) == [key_id([value], SEED) for value in raw]


@pytest.mark.parametrize("name", ["int8", "int64", "double", "halffloat", "bool", "decimal128(38, 3)"])
def test_no_read_past_the_end_of_numbers(name: str) -> None:
    form = KEY_FORMS[name if name in KEY_FORMS else "float16"]
    one = form.make([None]).type
    values = pa.array([True, None, False] * 3) if name == "bool" else pa.array([1, None, 3] * 3).cast(one)
    assert hashes(one_column(guarded(values)), [0]) == hashes(one_column(values), [0])


def test_empty_batches() -> None:
    for form in {**KEY_FORMS, **DICTIONARIES}.values():
        batch = one_column(form.make([]))
        assert hashes(batch, [0]) == []
        assert ids(batch, [0]) == []


def test_refusals() -> None:
    batch = pa.record_batch({"a": [1], "b": [[1]], "c": [{"x": 1}]})
    for make in (hash_rows, lambda source, columns: key_ids(source, columns, SEED)):
        with pytest.raises(ValueError, match=r"column 'b' of Arrow format '\+l': a nested type cannot be a key"):
            make(batch, [0, 1])
        with pytest.raises(ValueError, match="column 'c'"):
            make(batch, [2])
        with pytest.raises(ValueError, match="at least one key column"):
            make(batch, [])
        with pytest.raises(IndexError, match="no column 3: the batch has 3"):
            make(batch, [3])
        with pytest.raises(IndexError, match="no column -1"):
            make(batch, [-1])
        with pytest.raises(TypeError, match="__arrow_c_array__"):
            make(None, [0])
    with pytest.raises(ValueError, match="this machine has no level 'sse9'"):
        hash_rows(batch, [0], "sse9")
    with pytest.raises(ValueError, match="seed of key ids must be 16 bytes, not 5"):
        key_ids(batch, [0], b"short")


def test_key_ids_is_a_value() -> None:
    made = KeyIds(b"0" * 32, None, 0)  # type: ignore[arg-type]
    assert len(made) == 2
