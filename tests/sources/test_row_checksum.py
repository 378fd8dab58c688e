"""The checksum depends on rows and their order, and on nothing else."""

from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources.row_checksum import RowChecksum

NESTED = pa.struct(
    {
        "list": pa.list_(pa.int64()),
        "deep": pa.list_(pa.struct({"a": pa.string(), "b": pa.list_(pa.bool_())})),
        "pair": pa.list_(pa.int32(), 2),
        "map": pa.map_(pa.string(), pa.int64()),
        "flat": pa.float64(),
    }
)
VALUES = st.fixed_dictionaries(
    {
        "list": st.none() | st.lists(st.none() | st.integers(-3, 3), max_size=4),
        "deep": st.none()
        | st.lists(
            st.none() | st.fixed_dictionaries({"a": st.text(max_size=3), "b": st.lists(st.booleans(), max_size=2)}),
            max_size=3,
        ),
        "pair": st.none() | st.lists(st.integers(0, 3), min_size=2, max_size=2),
        "map": st.none() | st.lists(st.tuples(st.text(max_size=2), st.integers(0, 3)), max_size=2),
        "flat": st.none() | st.floats(width=16, allow_nan=False),
    }
)


def checksum(batches: Sequence[pa.RecordBatch]) -> str:
    whole = RowChecksum()
    for batch in batches:
        whole.update(batch)
    return whole.hexdigest()


def batch_of(rows: Sequence[object]) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(len(rows))), "x": pa.array(rows, NESTED)})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | VALUES, min_size=1, max_size=12), st.data())
def test_borders_of_batches_do_not_count(rows: list[object], data: st.DataObject) -> None:
    whole = batch_of(rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    places = [0, *cuts, len(rows)]
    parts = [whole.slice(one, other - one) for one, other in pairwise(places)]
    copies = [pa.RecordBatch.from_pylist(part.to_pylist(), whole.schema) for part in parts]
    assert checksum(parts) == checksum([whole]) == checksum(copies)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | VALUES, min_size=1, max_size=6), st.lists(st.none() | VALUES, min_size=1, max_size=6))
def test_other_rows_have_another_checksum(one: list[object], other: list[object]) -> None:
    same = batch_of(one).to_pylist() == batch_of(other).to_pylist()
    assert (checksum([batch_of(one)]) == checksum([batch_of(other)])) is same


def test_order_and_number_count() -> None:
    rows = pa.record_batch({"x": pa.array([1, 2, 3])})
    turned = rows.take(pa.array([1, 0, 2]))
    assert len({checksum([rows]), checksum([turned]), checksum([rows.slice(0, 2)]), checksum([])}) == 4


def test_null_empty_and_absent_lists_differ() -> None:
    values = [None, [], [None], [0], [0, 0], [[]]]
    arrays = [pa.array([value], pa.list_(pa.int64())) for value in values[:-1]]
    assert len({checksum([pa.record_batch({"x": array})]) for array in arrays}) == 5


@pytest.mark.parametrize(
    ("plain", "form"),
    [
        (pa.array(["a", None, "b"]), pa.large_string()),
        (pa.array(["a", None, "b"]), pa.string_view()),
        (pa.array(["a", None, "b"]), pa.dictionary(pa.int8(), pa.string())),
        (pa.array([[1], None, []]), pa.large_list(pa.int64())),
    ],
)
def test_the_form_in_arrow_does_not_count(plain: pa.Array, form: pa.DataType) -> None:
    assert checksum([pa.record_batch({"x": plain})]) == checksum([pa.record_batch({"x": plain.cast(form)})])


def test_list_views_are_lists() -> None:
    views = pa.array([[1], None, [], [2, 3]], pa.list_view(pa.int64()))
    lists = pa.array([[1], None, [], [2, 3]], pa.list_(pa.int64()))
    assert checksum([pa.record_batch({"x": views})]) == checksum([pa.record_batch({"x": lists})])


def test_rare_types() -> None:
    runs = pc.run_end_encode(pa.array([1, 1, 2]))
    assert checksum([pa.record_batch({"x": runs})]) == checksum([pa.record_batch({"x": pa.array([1, 1, 2])})])
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    assert checksum([pa.record_batch({"x": union})]) != checksum([pa.record_batch({"x": union.take(pa.array([1, 0]))})])
    nested = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([[1], [2]]))
    assert len(checksum([pa.record_batch({"x": nested})])) == 16
    intervals = pa.array([(1, 2, 3), None], pa.month_day_nano_interval())
    assert len(checksum([pa.record_batch({"x": intervals})])) == 16


def test_the_value_is_fixed() -> None:
    """It is stored in commits: it must not change between versions."""
    rows = pa.record_batch({"id": pa.array([1, 2, None]), "name": ["a", "b", "c"], "list": [[1], [], None]})
    assert checksum([rows]) == "1048c6ab37ded7ef"
