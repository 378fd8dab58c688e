"""Which casts lose nothing, and which schemas are the same."""

from decimal import Decimal

import pyarrow as pa
import pytest

from engine.errors import InputError
from engine.sources.row_schema import NESTING_MAX, Fit, cast_without_loss, drift, found_schema


@pytest.mark.parametrize(
    ("array", "target"),
    [
        (pa.array([1, None, 100]), pa.int8()),
        (pa.array([1, 2**53]), pa.float64()),
        (pa.array([1.5, float("nan"), None, -0.0]), pa.float32()),
        (pa.array([1.0, 2.0]), pa.int32()),
        (pa.array([0, 1]), pa.bool_()),
        (pa.array(["x", None]), pa.large_string()),
        (pa.array(["x", None]), pa.string_view()),
        (pa.array(["007"]), pa.int64()),
        (pa.array(["x", "y"]).dictionary_encode(), pa.string()),
        (pa.array([7, None]), pa.string()),
        (pa.array([1_000_000], pa.timestamp("ns")), pa.timestamp("ms")),
        (pa.array([Decimal("1.50")]), pa.decimal128(10, 1)),
        (pa.array([[1], None]), pa.list_(pa.int8())),
        (pa.array([{"a": 1}]), pa.struct({"a": pa.float64()})),
        (pa.nulls(3), pa.int64()),
    ],
)
def test_casts_that_lose_nothing(array: pa.Array, target: pa.DataType) -> None:
    assert cast_without_loss(array, target).type == target


@pytest.mark.parametrize(
    ("array", "target"),
    [
        (pa.array([300]), pa.int8()),
        (pa.array([-1]), pa.uint64()),
        (pa.array([2**53 + 1]), pa.float64()),
        (pa.array([0.1]), pa.float32()),
        (pa.array([1.5]), pa.int64()),
        (pa.array([2]), pa.bool_()),
        (pa.array(["x"]), pa.int64()),
        (pa.array([1_000_001], pa.timestamp("ns")), pa.timestamp("ms")),
        (pa.array([Decimal("1.55")]), pa.decimal128(10, 1)),
        (pa.array([86_400_001], pa.timestamp("ms")), pa.date32()),
        (pa.array([[300]]), pa.list_(pa.int8())),
    ],
)
def test_casts_that_would_lose_something(array: pa.Array, target: pa.DataType) -> None:
    with pytest.raises(pa.ArrowInvalid):
        cast_without_loss(array, target)


def test_nested_nullability_and_item_names_are_no_drift() -> None:
    strict = pa.list_(pa.field("element", pa.struct([pa.field("a", pa.int64(), nullable=False)]), nullable=False))
    loose = pa.list_(pa.field("item", pa.struct([pa.field("a", pa.int64())])))
    one, other = pa.schema({"x": strict}), pa.schema({"x": loose})
    assert drift(one, other) == []
    rows = pa.record_batch([pa.array([[{"a": 1}], None], strict)], schema=one)
    assert Fit(one, other, "f", declared=False).apply(rows, 0).schema == other
    assert drift(pa.schema({"x": pa.struct({"b": pa.int64()})}), pa.schema({"x": pa.struct({"a": pa.int64()})}))
    assert drift(pa.schema({"x": pa.list_(pa.int64(), 2)}), pa.schema({"x": pa.list_(pa.int64(), 3)}))
    assert drift(pa.schema({"x": pa.timestamp("us")}), pa.schema({"x": pa.timestamp("ns")}))


def test_nulls_in_a_column_that_is_declared_without() -> None:
    declared = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    rows = pa.record_batch({"x": pa.array([1, None])})
    with pytest.raises(InputError, match='f rows 5-7: "x" has nulls, but is declared not null'):
        Fit(rows.schema, declared, "f", declared=True).apply(rows, 5)


def test_many_differences_are_told_shortly() -> None:
    with pytest.raises(InputError, match="and 37 more differences"):
        Fit(pa.schema({}), pa.schema({f"c{n}": pa.int64() for n in range(40)}), "f", declared=False)


def test_schemas_beyond_reason() -> None:
    deep = pa.int64()
    for _ in range(NESTING_MAX + 1):
        deep = pa.list_(deep)
    with pytest.raises(InputError, match="nested more than"):
        found_schema(pa.schema({"x": deep}), "f")
    with pytest.raises(InputError, match="at most 16,384 are read"):
        found_schema(pa.schema({f"c{n}": pa.null() for n in range(16_385)}), "f")
