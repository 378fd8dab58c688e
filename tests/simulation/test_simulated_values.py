"""Rows on a simulated machine: values that Python has no form for, columns in names of directories, wrong arguments."""

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from engine import Pipeline, sinks, sources
from engine.errors import PipelineError
from engine.testing.simulate import simulate
from engine.testing.storage_faults import FlipBit, LyingSync

ROWS = 240
SEEDS = range(2)

BYTES = pa.array([b"\xff", b"\xfe", None, b"plain"] * (ROWS // 4))
WHOLE = pa.array(range(ROWS), pa.int64())
VALUES = {
    "not a number": pa.array([float("nan"), -0.0, 0.0, None] * (ROWS // 4)),
    "nanoseconds": WHOLE.cast(pa.timestamp("ns")),
    "beyond Python's years": pc.add(WHOLE, 2**62).cast(pa.timestamp("us")),
    "a zone that is nowhere": WHOLE.cast(pa.timestamp("us", "Nowhere/Known")),
    "durations": WHOLE.cast(pa.duration("ns")),
    "text that is none": BYTES.view(pa.string()),
    "such text in a dictionary": BYTES.view(pa.string()).dictionary_encode(),
    "such text in a list": pa.ListArray.from_arrays(range(ROWS + 1), BYTES.view(pa.string())),
    "numbers that are none in a struct": pa.StructArray.from_arrays([pa.array([float("nan")] * ROWS)], ["x"]),
}


def pipeline(sink: Callable[[], Any], columns: dict[str, pa.Array], *keys: str) -> Callable[[], Pipeline]:
    table = pa.table({"n": range(ROWS), **columns})

    def make() -> Pipeline:
        read = Pipeline("values").read(sources.memory(table.to_batches(max_chunksize=40), id="rows"))
        read = read.dedup(list(keys)) if keys else read
        return read.key_by("n", partitions=2).write(sink())

    return make


def complaining(tables: dict[int, pa.Table]) -> list[str]:
    """A check that is wrong: what it says must come out."""
    assert sum(table.num_rows for table in tables.values()) == ROWS
    return ["no row is right"]


SINKS = {
    "parquet": lambda: sinks.parquet("/out/parquet"),
    "arrow_ipc": lambda: sinks.arrow_ipc("/out/ipc"),
    "log": lambda: sinks.log("/out/log"),
}


@pytest.mark.parametrize("sink", SINKS)
def test_rows_whose_values_python_has_no_form_for(sink: str) -> None:
    for outcome in simulate(pipeline(SINKS[sink], VALUES), seeds=SEEDS):
        assert outcome.problem is None, outcome
        assert outcome.fired


KEYS = [name for name in VALUES if not any(form in name for form in ("list", "struct"))]


@pytest.mark.parametrize("values", KEYS)
def test_keys_whose_values_python_has_no_form_for(values: str) -> None:
    for outcome in simulate(pipeline(SINKS["parquet"], {"x": VALUES[values]}, "x"), seeds=SEEDS):
        assert outcome.problem is None, outcome


@pytest.mark.parametrize("values", VALUES)
def test_such_rows_are_compared(values: str) -> None:
    """A run that differs from the first one is found out, and its rows are shown."""
    lost = ROWS - 2
    made = []

    def make() -> Pipeline:
        made.append(None)
        rows = ROWS if len(made) < 4 else lost  # the pipeline itself, a run to measure it, one to compare with
        read = Pipeline("values").read(
            sources.memory(pa.table({"n": range(rows), "x": VALUES[values].slice(0, rows)}), id="rows")
        )
        return read.write(sinks.arrow_ipc("/out/ipc"))

    problems = [outcome.problem for outcome in simulate(make, seeds=range(5))]
    found = [problem for problem in problems if problem is not None]
    assert found
    for problem in found:
        assert problem.startswith(f"partition 0: 2 rows lost (first: ({lost}, ")


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.0, -0.0), (float("nan"), 0.0), (float("nan"), None)],
    ids=["signs of zero", "not a number", "null"],
)
def test_another_bit_is_another_row(one: float, other: float | None) -> None:
    made = []

    def make() -> Pipeline:
        made.append(None)
        value = one if len(made) < 4 else other
        rows = pa.table({"n": range(ROWS), "x": pa.array([value] * ROWS, pa.float64())})
        return Pipeline("values").read(sources.memory(rows, id="rows")).write(sinks.arrow_ipc("/out/ipc"))

    problems = [outcome.problem for outcome in simulate(make, seeds=range(5))]
    assert any(problem is not None and "rows lost" in problem and "not expected" in problem for problem in problems)


# Columns in names of directories.

TEXTS = ["a", "b/c", None, "ü =%"]
DAYS = [datetime.date(2026, 3, 1), None, datetime.date(1969, 12, 31), datetime.date(2100, 1, 1)]
TIMES = [datetime.datetime(2026, 3, 1, 12, 30, second, second, tzinfo=datetime.UTC) for second in range(4)]
PARTITIONED = {
    "text": pa.array(TEXTS),
    "a dictionary": pa.array(TEXTS).dictionary_encode(),
    "numbers": pa.array([1, -1, None, 2**62]),
    "small numbers": pa.array([0, 1, None, 255], pa.uint8()),
    "booleans": pa.array([True, False, None, True]),
    "days": pa.array(DAYS),
    "decimals": pa.array(
        [decimal.Decimal("1.50"), decimal.Decimal("-2.25"), None, decimal.Decimal(0)], pa.decimal128(9, 2)
    ),
    "times": pa.array(TIMES, pa.timestamp("us", "Europe/Berlin")),
    "nanoseconds": pa.array([0, 1, None, 10**18 + 1], pa.timestamp("ns")),
}


@pytest.mark.parametrize(("sink", "values"), [*(("parquet", each) for each in PARTITIONED), ("arrow_ipc", "text")])
def test_columns_in_names_of_directories(sink: str, values: str) -> None:
    column = pa.concat_arrays([PARTITIONED[values]] * (ROWS // 4))
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    make = pipeline(lambda: getattr(sinks, sink)("/out/apart", partition_by="x"), {"x": column})
    seen = []

    def check(tables: dict[int, pa.Table]) -> list[str]:
        whole = pa.concat_tables(tables.values()).sort_by("n")
        seen.append(whole.schema.names)
        return [] if whole.column("x").combine_chunks().cast(plain).equals(column.cast(plain)) else ["other values"]

    for outcome in simulate(make, seeds=SEEDS, check=check):
        assert outcome.problem is None, outcome
    assert seen
    assert all(names == ["n", "x"] for names in seen)


def test_a_row_in_another_directory_is_found() -> None:
    made = []

    def make() -> Pipeline:
        made.append(None)
        rows = pa.table({"n": range(ROWS), "x": ["right" if len(made) < 4 else "wrong"] * ROWS})
        return (
            Pipeline("apart").read(sources.memory(rows, id="rows")).write(sinks.parquet("/out/apart", partition_by="x"))
        )

    problems = [outcome.problem for outcome in simulate(make, seeds=range(5))]
    assert any(problem is not None and "(0, 'right')" in problem for problem in problems)


# Arguments.

PLAIN = pipeline(SINKS["arrow_ipc"], {"x": WHOLE})


@pytest.mark.parametrize("seed", ["a", 1.5, None, True, -1], ids=repr)
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(PipelineError, match=r"^simulate: each of seeds must be a whole number, at least 0; found "):
        list(simulate(PLAIN, seeds=[seed]))  # type: ignore[list-item]


def test_seeds_are_several() -> None:
    with pytest.raises(PipelineError, match=r"^simulate: seeds must be several whole numbers.* found 5$"):
        list(simulate(PLAIN, seeds=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [None, 5, "jobs:pipeline"], ids=repr)
def test_make_pipeline_gives_a_pipeline(made: Any) -> None:
    with pytest.raises(PipelineError, match=r"^simulate: make_pipeline must give a Pipeline, found "):
        list(simulate(lambda: made, seeds=SEEDS))
    with pytest.raises(PipelineError, match=r"^simulate: make_pipeline must be a function"):
        list(simulate(PLAIN(), seeds=SEEDS))  # type: ignore[arg-type]


def test_a_pipeline_without_a_sink() -> None:
    with pytest.raises(PipelineError, match=r'^simulate: "bare" has no sink'):
        list(simulate(lambda: Pipeline("bare").read(sources.memory(pa.table({"n": [1]}))), seeds=SEEDS))


def test_commits_need_some_bytes() -> None:
    with pytest.raises(PipelineError, match="commit_every_bytes"):
        list(simulate(PLAIN, seeds=SEEDS, commit_every_bytes=0))


def without_corruption(seeds: range) -> list[int]:
    """Those whose rows are checked in the end, whatever happened before."""
    found = [
        outcome.seed
        for outcome in simulate(PLAIN, seeds=seeds)
        if {FlipBit.kind, LyingSync.kind}.isdisjoint(outcome.fired)
    ]
    assert found
    return found


@pytest.mark.parametrize("complaints", [None, "all is wrong", 5, [None], [("a", 1)]], ids=repr)
def test_check_gives_complaints(complaints: Any) -> None:
    with pytest.raises(PipelineError, match=r"^simulate: check must give a list of complaints"):
        list(simulate(PLAIN, seeds=without_corruption(range(4)), check=lambda tables: complaints))


def test_what_check_complains_of_and_raises_comes_out() -> None:
    seeds = without_corruption(range(4))
    assert {outcome.problem for outcome in simulate(PLAIN, seeds=seeds, check=complaining)} == {"no row is right"}

    def raising(tables: dict[int, pa.Table]) -> list[str]:
        raise OSError("the file of expected rows is gone")

    with pytest.raises(OSError, match="expected rows is gone"):
        list(simulate(PLAIN, seeds=seeds, check=raising))
