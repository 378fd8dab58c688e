"""Partitioning and gathering against naive lists, over every type, form, slice and selection."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arrays import ALL_FORMS, FIXED_BINARY, KEY_FORMS, VARIABLE, DrawnBatch, arrays, batches, plain_values
from guarded import guarded
from hash_model import hash_row
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._core import pool
from engine._core.partition import Partitioner, combine_selection, gather, gather_all, joinable, key_groups

KEYED = st.builds(
    lambda key, rest: [key, *rest],
    st.sampled_from(sorted(KEY_FORMS)),
    st.lists(st.sampled_from(sorted(ALL_FORMS)), max_size=3),
)
ANY = st.lists(st.sampled_from(sorted(ALL_FORMS)), max_size=4)


class Tag(pa.ExtensionType):  # type: ignore[misc]
    """An extension over any storage."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.tag")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"tag"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Tag:
        return cls(storage)


def partition_of(row: tuple[Any, ...], partitions: int) -> int:
    return (hash_row(row) >> 49) * partitions >> 15


def children(source: Any) -> tuple[pa.Schema, list[list[Any]]]:
    """The schema and the plain values of a batch's columns, or of a struct's, where a null of the struct counts."""
    if isinstance(source, pa.RecordBatch):
        return source.schema, [plain_values(column) for column in source.columns]
    fields = [source.type.field(index) for index in range(source.type.num_fields)]
    valid = source.is_valid().to_pylist()
    columns = [plain_values(source.field(index)) for index in range(len(fields))]
    return pa.schema(fields), [
        [value if has else None for value, has in zip(values, valid, strict=True)] for values in columns
    ]


def assert_rows(found: pa.RecordBatch, source: Any, rows: list[int]) -> None:
    """`found` is valid, has the schema of `source` and holds its rows `rows`, in that order."""
    schema, columns = children(source)
    found.validate(full=True)
    assert found.schema.equals(schema, check_metadata=True)
    assert found.num_rows == len(rows)
    for mine, values in zip(found.columns, columns, strict=True):
        assert repr(plain_values(mine)) == repr([values[row] for row in rows])


def selections(rows: int) -> st.SearchStrategy[bytes | None]:
    flags = st.lists(st.sampled_from([0, 1, 1, 255]), min_size=rows, max_size=rows)
    return st.none() | flags.map(bytes) | st.sampled_from([bytes(rows), b"\1" * rows])


@settings(max_examples=70)
@given(batches(KEYED), st.integers(1, 9) | st.sampled_from([64, 1000, 1024]), st.data())
def test_partition_agrees_with_the_model(drawn: DrawnBatch, partitions: int, data: st.DataObject) -> None:
    keys = [index for index, form in enumerate(drawn.forms) if form in KEY_FORMS]
    columns = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3))
    selection = data.draw(selections(drawn.rows))
    raw = list(zip(*(drawn.columns[index] for index in columns), strict=True))
    expected: list[list[int]] = [[] for _ in range(partitions)]
    for row in range(drawn.rows):
        if selection is None or selection[row]:
            expected[partition_of(raw[row], partitions)].append(row)
    found = Partitioner(columns, partitions).partition(drawn.batch, selection)
    assert len(found) == partitions
    for index in {0, partitions - 1, *(index for index, rows in enumerate(expected) if rows)}:
        assert_rows(found[index], drawn.batch, expected[index])
    assert sum(batch.num_rows for batch in found) == sum(map(len, expected))


@given(batches(ANY), st.data())
def test_gather_agrees_with_the_model(drawn: DrawnBatch, data: st.DataObject) -> None:
    selection = data.draw(selections(drawn.rows))
    rows = [row for row in range(drawn.rows) if selection is None or selection[row]]
    assert_rows(gather(drawn.batch, selection), drawn.batch, rows)


PLAIN_KEYS = sorted(name for name, form in KEY_FORMS.items() if joinable(pa.schema([("column", form.type)])))


@settings(max_examples=70)
@given(st.lists(st.sampled_from(PLAIN_KEYS), min_size=1, max_size=4), st.sampled_from([1, 3, 64]), st.data())
def test_several_batches_are_split_as_one_would_be(forms: list[str], partitions: int, data: st.DataObject) -> None:
    drawn = [data.draw(batches(st.just(forms))) for _ in range(data.draw(st.integers(1, 4)))]
    chosen = [data.draw(selections(each.rows)) for each in drawn]
    found = Partitioner([0], partitions).partition_all([each.batch for each in drawn], chosen)
    apart = [
        Partitioner([0], partitions).partition(each.batch, selection)
        for each, selection in zip(drawn, chosen, strict=True)
    ]
    for index, whole in enumerate(found):
        whole.validate(full=True)
        pieces = [list(zip(*(plain_values(column) for column in one[index].columns), strict=True)) for one in apart]
        assert repr(list(zip(*(plain_values(column) for column in whole.columns), strict=True))) == repr(
            [row for piece in pieces for row in piece]
        )
    whole = gather_all([each.batch for each in drawn], chosen)
    whole.validate(full=True)
    gathered = [gather(each.batch, selection) for each, selection in zip(drawn, chosen, strict=True)]
    assert repr(plain_values(whole.column(0))) == repr(
        [value for one in gathered for value in plain_values(one.column(0))]
    )


def test_what_points_into_its_own_batch_does_not_join() -> None:
    apart = [
        pa.dictionary(pa.int8(), pa.string()),
        pa.string_view(),
        pa.list_(pa.int8()),
        pa.run_end_encoded(pa.int32(), pa.int8()),
    ]
    for kind in apart:
        assert not joinable(pa.schema([("a", pa.int64()), ("b", kind)]))
        batch = pa.RecordBatch.from_arrays([pa.nulls(3, kind)], names=["b"])
        with pytest.raises(ValueError, match="scattered together"):
            gather_all([batch, batch], [None, None])
    one, other = (pa.RecordBatch.from_arrays([pa.nulls(3, kind)], names=["b"]) for kind in (pa.int64(), pa.int32()))
    with pytest.raises(ValueError, match="scattered together"):
        Partitioner([0], 2).partition_all([one, other], [None, None])
    with pytest.raises(ValueError, match="at least one batch"):
        gather_all([], [])
    with pytest.raises(ValueError):
        gather_all([one], [None, None])


@pytest.mark.parametrize("name", sorted(ALL_FORMS))
@settings(max_examples=10)
@given(data=st.data())
def test_every_type_travels(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 20))
    drawn = data.draw(arrays(ALL_FORMS[name], rows))
    key = [row * 7 % 5 for row in range(rows)]
    batch = pa.RecordBatch.from_arrays([pa.array(key, pa.int32()), drawn.array], names=["key", "value"])
    selection = data.draw(selections(rows))
    found = Partitioner([0], 4).partition(batch, selection)
    for index in range(4):
        wanted = [row for row in range(rows) if selection is None or selection[row]]
        assert_rows(found[index], batch, [row for row in wanted if partition_of((key[row],), 4) == index])


@pytest.mark.parametrize("form", ["string", "large_binary", "string_view"])
@pytest.mark.parametrize("sizes", [(0, 5), (0, 16), (10, 33), (0, 200), (64, 64)])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_long_columns_of_text(form: str, sizes: tuple[int, int], share: float) -> None:
    random = np.random.default_rng(sizes[1])
    rows = 3000
    raw = [bytes([97 + row % 26]) * int(random.integers(sizes[0], sizes[1] + 1)) for row in range(rows)]
    batch = pa.RecordBatch.from_arrays([pa.array(range(rows)), KEY_FORMS[form].make(raw)], names=["key", "text"])
    selection = (random.random(rows) < share).astype(np.uint8)
    wanted = np.flatnonzero(selection).tolist()
    found = Partitioner([0], 16).partition(batch, selection)
    for index in range(16):
        assert_rows(found[index], batch, [row for row in wanted if partition_of((row,), 16) == index])
    assert_rows(gather(batch, selection), batch, wanted)


def test_partition_ids_are_stable() -> None:
    batch = pa.record_batch(
        {"user": ["ada", "bob", "cleo", "", None, "a longer name than most"], "n": pa.array(range(6))}
    )
    assert np.frombuffer(key_groups(batch, [0]), np.uint16).tolist() == GOLDEN_GROUPS
    assert np.frombuffer(key_groups(batch, [0, 1]), np.uint16).tolist() == GOLDEN_PAIR_GROUPS
    where = {
        row: index for index, part in enumerate(Partitioner([0], 8).partition(batch)) for row in part["n"].to_pylist()
    }
    assert [where[row] for row in range(6)] == [group * 8 >> 15 for group in GOLDEN_GROUPS]


GOLDEN_GROUPS = [27566, 31885, 23563, 18091, 24362, 18376]
GOLDEN_PAIR_GROUPS = [19189, 16325, 18482, 4234, 15552, 7758]


@given(batches(st.lists(st.sampled_from(sorted(KEY_FORMS)), min_size=1, max_size=2)))
def test_key_groups_are_the_top_bits_of_the_hash(drawn: DrawnBatch) -> None:
    groups = np.frombuffer(key_groups(drawn.batch, list(range(len(drawn.forms)))), np.uint16).tolist()
    assert groups == [hash_row(row) >> 49 for row in zip(*drawn.columns, strict=True)]


@pytest.mark.parametrize(
    "storage", [pa.int32(), pa.string(), pa.binary(16), pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.int8())]
)
def test_extension_types_are_kept(storage: pa.DataType) -> None:
    values = {
        pa.int32(): [1, None, 3],
        pa.binary(16): [b"a" * 16, None, b"b" * 16],
        pa.list_(pa.int8()): [[1], None, []],
    }
    array = pa.ExtensionArray.from_storage(Tag(storage), pa.array(values.get(storage, ["x", None, "y"]), storage))
    batch = pa.record_batch({"key": [1, 2, 3], "tag": array})
    found = gather(batch, b"\1\0\1")
    assert found.schema.field("tag").type == Tag(storage)
    assert_rows(found, batch, [0, 2])


def test_unions_and_list_views_travel() -> None:
    types = pa.array([0, 1, 0], pa.int8())
    sparse = pa.UnionArray.from_sparse(types, [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])])
    dense = pa.UnionArray.from_dense(types, pa.array([0, 0, 1], pa.int32()), [pa.array([1, 3]), pa.array(["b"])])
    views = pa.array([[1], None, [2, 3]], pa.list_view(pa.int8()))
    batch = pa.record_batch({"key": [1, 1, 1], "sparse": sparse, "dense": dense, "views": views})
    assert_rows(gather(batch, b"\0\1\1"), batch, [1, 2])
    one, *none = sorted(Partitioner([0], 3).partition(batch, b"\0\1\1"), key=len, reverse=True)
    assert_rows(one, batch, [1, 2])
    for empty in none:
        assert_rows(empty, batch, [])


def test_nulls_of_a_struct_reach_run_end_encoded_children_but_no_union() -> None:
    runs = ALL_FORMS["run-end encoded"].make(["a", "a", "b"])
    struct = pa.StructArray.from_arrays([runs], ["runs"], mask=pa.array([False, True, False]))
    assert_rows(gather(struct, b"\0\1\1"), struct, [1, 2])
    assert_rows(gather(struct, None), struct, [0, 1, 2])
    union = pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])])
    with pytest.raises(ValueError, match="cannot take over the nulls of its struct"):
        gather(pa.StructArray.from_arrays([union], ["u"], mask=pa.array([False, True])), None)


def test_one_partition_passes_through_uncopied() -> None:
    batch = pa.record_batch({"key": ["same"] * 10, "n": pa.array(range(10))})
    for found in (Partitioner([0], 8).partition(batch), Partitioner([1], 1).partition(batch, b"\1" * 10)):
        whole = [part for part in found if part.num_rows]
        assert len(whole) == 1
        assert whole[0]["n"].buffers()[1].address == batch["n"].buffers()[1].address
    assert gather(batch, None) is gather(batch, b"\1" * 10) is batch


def test_a_dictionary_and_the_text_of_views_are_shared() -> None:
    batch = pa.record_batch(
        {"d": pa.array(["a", "b"] * 5).dictionary_encode(), "v": pa.array(["x" * 40] * 10, pa.string_view())}
    )
    found = gather(batch, b"\1\0" * 5)
    assert found["d"].dictionary.buffers()[2].address == batch["d"].dictionary.buffers()[2].address
    assert found["v"].buffers()[2].address == batch["v"].buffers()[2].address
    del batch
    gc.collect()
    assert found.to_pylist() == [{"d": "a", "v": "x" * 40}] * 5


def test_batches_of_no_columns_keep_their_rows() -> None:
    batch = pa.record_batch({"a": [1, 2, 3]}).select([])
    assert gather(batch, b"\1\0\1").num_rows == 2


def test_empty_batches_of_every_type() -> None:
    for form in ALL_FORMS.values():
        batch = pa.RecordBatch.from_arrays([pa.array([], pa.int8()), form.make([])], names=["key", "value"])
        for found in (
            *Partitioner([0], 3).partition(batch),
            *Partitioner([0], 3).partition(batch, b""),
            gather(batch, b""),
        ):
            assert_rows(found, batch, [])
        some = pa.RecordBatch.from_arrays([pa.array([1], pa.int8()), form.make([None])], names=["key", "value"])
        assert_rows(gather(some, b"\0"), some, [])


def test_memory_comes_from_the_pool_and_goes_back() -> None:
    rows = 50_000
    batch = pa.record_batch(
        {"key": pa.array(range(rows)), "text": ["some text"] * rows, "flag": [True, None] * (rows // 2)}
    )
    before = pool.statistics()["in_use_bytes"]
    found = Partitioner([0], 8).partition(batch)
    assert pool.statistics()["in_use_bytes"] - before >= rows * (8 + 4 + 9)
    kept = found[3]
    del found
    column = kept["text"]
    del kept
    assert pool.statistics()["in_use_bytes"] > before
    del column
    assert pool.statistics()["in_use_bytes"] == before


def test_outputs_may_be_released_on_any_thread() -> None:
    batch = pa.record_batch({"key": pa.array(range(20_000)), "text": [str(row) for row in range(20_000)]})
    partitioner = Partitioner([0], 4)
    before = pool.statistics()["in_use_bytes"]
    sums: list[int] = []

    def use() -> None:
        sums.extend(sum(part.num_rows for part in partitioner.partition(batch)) for _ in range(10))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [20_000] * 30
    assert pool.statistics()["in_use_bytes"] == before


@pytest.mark.parametrize("name", sorted({**FIXED_BINARY, **VARIABLE}))
@pytest.mark.parametrize("sizes", [[5], [3, 16, 40], [0, 0, 65], [64, 1, 1]])
def test_no_read_past_the_end_of_a_buffer(name: str, sizes: list[int]) -> None:
    form = KEY_FORMS[name]
    width = form.type.byte_width if name in FIXED_BINARY else None
    raw = [(b"%d" % index * 65)[: width or size] for index, size in enumerate(sizes)]
    text = guarded(form.make(raw))
    batch = pa.RecordBatch.from_arrays([guarded(pa.array(range(len(raw)))), text], names=["key", "text"])
    for found in (Partitioner([0], 8).partition(batch), Partitioner([1], 8).partition(batch)):
        assert sorted(row["key"] for part in found for row in part.to_pylist()) == list(range(len(raw)))
    assert_rows(gather(batch, b"\0" * (len(raw) - 1) + b"\1"), batch, [len(raw) - 1])


def test_no_read_past_the_end_of_bits() -> None:
    flags = guarded(pa.array([True, None, False] * 11))
    selected = guarded(pa.array([1, None, 3] * 11))
    batch = pa.RecordBatch.from_arrays([flags, selected], names=["flag", "n"])
    assert_rows(gather(batch, b"\0\1\1" * 11), batch, [row for row in range(33) if row % 3])
    assert combine_selection(None, flags, 33)[1] == 11


@given(st.data())
def test_combining_selections(data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.sampled_from([True, False, None]), max_size=40))
    offset = data.draw(st.integers(0, len(mask)))
    array = pa.array(mask, pa.bool_()).slice(offset)
    rows = len(array)
    selection = data.draw(selections(rows))
    found, count = combine_selection(selection, array, rows)
    expected = [
        int(flag is True and (selection is None or selection[row] != 0)) for row, flag in enumerate(mask[offset:])
    ]
    assert list(bytes(found)) == expected
    assert count == sum(expected)


def test_a_selection_may_be_any_buffer() -> None:
    batch = pa.record_batch({"n": pa.array(range(4))})
    ours, count = combine_selection(None, pa.array([True, False, None, True]), 4)
    assert count == 2
    for selection in (
        ours,
        bytes(ours),
        bytearray(ours),
        np.frombuffer(ours, np.bool_),
        memoryview(ours),
        pa.py_buffer(ours),
    ):
        assert gather(batch, selection)["n"].to_pylist() == [0, 3]


def test_refusals() -> None:
    batch = pa.record_batch({"a": [1, 2], "b": [[1], [2]]})
    for partitions in (0, 1025, -1):
        with pytest.raises(ValueError, match=f"partitions must be 1 to 1024, not {partitions}"):
            Partitioner([0], partitions)
    with pytest.raises(ValueError, match="at least one key column"):
        Partitioner([], 2)
    with pytest.raises(ValueError, match=r"column 'b'.*a nested type cannot be a key"):
        Partitioner([1], 2).partition(batch)
    with pytest.raises(IndexError, match="no column 2"):
        Partitioner([2], 2).partition(batch)
    with pytest.raises(ValueError, match="one byte a row: 3 bytes for 2 rows"):
        gather(batch, bytes(3))
    with pytest.raises(ValueError, match="one byte a row: 1 bytes for 2 rows"):
        Partitioner([0], 2).partition(batch, bytes(1))
    with pytest.raises(ValueError, match="must be 2 booleans, not 3 values of Arrow format 'b'"):
        combine_selection(None, pa.array([True] * 3), 2)
    with pytest.raises(ValueError, match="must be 2 booleans, not 2 values of Arrow format 'l'"):
        combine_selection(None, pa.array([1, 2]), 2)
    with pytest.raises(TypeError, match="__arrow_c_array__"):
        gather(5, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be an Arrow struct, not of format 'l'"):
        gather(pa.array([1]), None)
