"""Whole runs in one process: the rows that come out against plain models, and how a run ends when something fails."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine import sinks, sources
from engine._runtime import reading
from engine.errors import PipelineError, SinkError, SourceError, StageError

SCHEMA = pa.schema([("id", pa.int64()), ("key", pa.string()), ("value", pa.int64())])


def table(ids: list[int | None], keys: int = 5) -> pa.Table:
    return pa.table(
        {"id": ids, "key": [f"key-{n % keys}" for n in range(len(ids))], "value": range(len(ids))}, schema=SCHEMA
    )


def in_batches(rows: pa.Table, size: int) -> list[pa.RecordBatch]:
    return rows.combine_chunks().to_batches(max_chunksize=size)


def doubled(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.set_column(2, "value", pc.multiply(rows.column("value"), 2))


def distinct(ids: list[int | None], within: int | None) -> list[int]:
    """The values (positions) that exact dedup keeps."""
    kept, seen, position = [], dict[int, int](), 0
    for value, number in enumerate(ids):
        if number is None:
            kept.append(value)
            continue
        if number not in seen or (within is not None and seen[number] < position - within):
            kept.append(value)
        seen[number] = position
        position += 1
    return kept


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=200),
    size=st.integers(1, 70),
    within=st.one_of(st.none(), st.integers(1, 50)),
    partitions=st.integers(1, 9),
)
def test_rows_out_are_those_of_the_model(ids: list[int | None], size: int, within: int | None, partitions: int) -> None:
    pipeline = (
        engine.Pipeline("model")
        .read(in_batches(table(ids), size) or table(ids))
        .dedup("id", within=within)
        .filter(pc.field("value") != 7)
        .key_by("key", partitions=partitions)
        .map(doubled)
    )
    found = engine.collect(pipeline)
    kept = [value for value in distinct(ids, within) if value != 7]
    assert sorted(found["value"].to_pylist()) == [2 * value for value in kept]
    for key in set(found["key"].to_pylist()):
        of_key = found.filter(pc.equal(found["key"], key))["value"].to_pylist()
        assert of_key == sorted(of_key)


def test_without_key_by_the_order_is_that_of_the_input() -> None:
    rows = table(list(range(1000)))
    found = engine.collect(engine.Pipeline("x").read(in_batches(rows, 33)).dedup("id").map(doubled))
    assert found["id"].to_pylist() == list(range(1000))


def test_several_sources_keep_their_own_order() -> None:
    first, second = table(list(range(500))), table(list(range(500, 1000)))
    found = engine.collect(
        engine.Pipeline("x").read(
            sources.memory(in_batches(first, 10), id="a"),
            sources.memory(in_batches(second.select(["value", "key", "id"]), 10), id="b"),
        )
    )
    ids = found["id"].to_pylist()
    assert [n for n in ids if n < 500] == list(range(500))
    assert [n for n in ids if n >= 500] == list(range(500, 1000))


def test_sources_that_differ_in_what_may_be_null() -> None:
    never = pa.RecordBatch.from_arrays([pa.array([1, 2])], schema=pa.schema([pa.field("a", pa.int64(), False)]))
    maybe = pa.record_batch({"a": pa.array([3, None])})
    for first, second in ((never, maybe), (maybe, never)):
        read = engine.Pipeline("x").read(sources.memory([first], id="a"), sources.memory([second], id="b"))
        for pipeline in (read, read.key_by("a", partitions=2)):
            found = engine.collect(pipeline)
            found.validate(full=True)
            assert found.schema.field("a").nullable
            assert sorted(found["a"].to_pylist(), key=str) == [1, 2, 3, None]


def test_select_and_filter_on_what_was_marked() -> None:
    rows = table([1, 1, 2, 3])
    pipeline = (
        engine.Pipeline("x").read(rows).dedup("id").select("id", half=pc.divide(pc.field("value"), pc.field("id")))
    )
    assert engine.collect(pipeline).to_pydict() == {"id": [1, 2, 3], "half": [0, 1, 1]}
    plain = engine.collect(engine.Pipeline("x").read(rows).dedup("id").select("value", "key"))
    assert plain.column_names == ["value", "key"]
    assert plain["value"].to_pylist() == [0, 2, 3]


def test_text_in_views_goes_through_every_stage() -> None:
    """As data tools give it: most of Arrow's functions know no views."""
    texts = ["a", "b", None, "a text that is not inlined"] * 5
    views = pa.array(texts, pa.string_view())
    rows = pa.table(
        {
            "id": range(20),
            "text": views,
            "coded": views.dictionary_encode(),
            "list": pa.array([[text] for text in texts], pa.large_list(pa.string_view())),
            "struct": pa.StructArray.from_arrays([views, views.dictionary_encode()], ["x", "y"]),
        }
    )
    started = engine.Pipeline("x").read(rows).dedup("id").filter(pc.field("text") != "b")
    started = started.filter(pc.field("coded") != "c").key_by("text", partitions=3)
    found = engine.collect(started)
    wanted = [text in ("a", "a text that is not inlined") for text in texts]
    assert found.schema.types == rows.schema.types
    assert sorted(found.to_pylist(), key=lambda row: row["id"]) == [
        row for row, keep in zip(rows.to_pylist(), wanted, strict=True) if keep
    ]
    upper = engine.collect(engine.Pipeline("x").read(rows).select(as_is=pc.field("text"), upper=_upper("text")))
    assert upper.schema == pa.schema([("as_is", pa.string()), ("upper", pa.string())])
    assert upper["upper"].to_pylist() == [text and text.upper() for text in texts]
    as_is = engine.collect(engine.Pipeline("x").read(rows).select(renamed=pc.field("text")))
    assert as_is.schema.field("renamed").type == pa.string_view()


def _upper(column: str) -> pc.Expression:
    return pc.utf8_upper(pc.field(column))


def test_a_predicate_may_fail_on_rows_that_were_dropped() -> None:
    rows = pa.table({"text": ["1", "x", "3"]})
    pipeline = (
        engine.Pipeline("x").read(rows).filter(pc.field("text") != "x").filter(pc.field("text").cast(pa.int64()) > 1)
    )
    assert engine.collect(pipeline)["text"].to_pylist() == ["3"]
    with pytest.raises(StageError, match="filter"):
        engine.collect(engine.Pipeline("x").read(rows).filter(pc.field("text").cast(pa.int64()) > 1))


def test_zero_rows() -> None:
    empty = SCHEMA.empty_table()
    found = engine.collect(engine.Pipeline("x").read(empty).dedup("id").key_by("key").map(doubled))
    assert found.num_rows == 0
    assert found.schema.names == SCHEMA.names


class TestMap:
    rows = table(list(range(100)))

    @pytest.fixture(autouse=True)
    def _every_batch_travels_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "TRAVEL_ROWS", 1)

    def collected(self, fn: Any, **options: Any) -> pa.Table:
        return engine.collect(engine.Pipeline("x").read(in_batches(self.rows, 10)).map(fn, **options))

    def test_async_functions_overlap_and_leave_in_order(self) -> None:
        """Four are under way together, and no fifth; the first ends behind another of them, and leaves before it."""
        under_way = 0
        most = 0
        four, go_on, overtaken = trio.Event(), trio.Event(), trio.Event()

        async def waits_for_others(rows: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal under_way, most
            if not rows.num_rows:  # to learn the schema
                return rows
            under_way += 1
            most = max(most, under_way)
            if under_way == 4:
                four.set()
            with trio.fail_after(60):
                if rows.column("id")[0].as_py() == 0:
                    await four.wait()
                    await trio.testing.wait_all_tasks_blocked(cushion=0.1)
                    go_on.set()
                    await overtaken.wait()
                await go_on.wait()
            overtaken.set()
            under_way -= 1
            return rows

        assert self.collected(waits_for_others, concurrency=4)["id"].to_pylist() == list(range(100))
        assert most == 4

    def test_a_class_is_instantiated_once_per_partition(self) -> None:
        made: list[object] = []

        class Stamp:
            def __init__(self) -> None:
                made.append(self)

            def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
                return rows

        keyed = engine.Pipeline("x").read(self.rows).key_by("id", partitions=3)
        assert engine.collect(keyed.map(Stamp, schema=SCHEMA)).num_rows == 100
        assert len(made) == 3
        made.clear()
        assert engine.collect(keyed.map(Stamp)).num_rows == 100
        assert len(made) == 1 + 3  # One more, to learn the schema.

    def test_lists_tables_and_other_libraries_batches(self) -> None:
        assert self.collected(lambda rows: [rows, rows]).num_rows == 200
        assert self.collected(lambda rows: pa.Table.from_batches([rows])).num_rows == 100

    def test_batch_rows_bounds_a_call(self) -> None:
        sizes: list[int] = []

        def note(rows: pa.RecordBatch) -> pa.RecordBatch:
            sizes.append(rows.num_rows)
            return rows

        self.collected(note, batch_rows=3, schema=SCHEMA)
        assert max(sizes) == 3
        assert sum(sizes) == 100

    @pytest.mark.parametrize(
        ("returned", "text"),
        [
            (None, "returned None"),
            (7, "returned int"),
            (pa.RecordBatch.from_pydict({"id": ["x"]}), "returned the columns"),
            (pa.RecordBatch.from_pydict({"id": ["1"], "key": ["a"], "value": [1]}), '"id" as string, expected int64'),
        ],
    )
    def test_what_is_no_batch_of_the_schema(self, returned: object, text: str) -> None:
        with pytest.raises(StageError, match="map <lambda> failed") as caught:
            self.collected(lambda rows: returned, schema=SCHEMA)
        assert text in str(caught.value)

    def test_a_failure_names_stage_rows_and_cause(self) -> None:
        def bad(rows: pa.RecordBatch) -> pa.RecordBatch:
            if 42 in rows.column("id").to_pylist():
                raise ValueError("bad rate ''")
            return rows

        with pytest.raises(StageError) as caught:
            self.collected(bad)
        assert "map bad failed on a batch of 10 rows: ValueError: bad rate ''" in str(caught.value)
        assert "memory rows 40-50, partition 0, attempt 1" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.stage == "map bad"

    def test_retries_only_what_it_is_told_to(self) -> None:
        calls = 0

        def flaky(rows: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal calls
            calls += 1
            if calls % 3:
                raise OSError("try again")
            return rows

        retry = engine.Retry(attempts=3, first_s=0.001)
        assert self.collected(flaky, retry=retry, schema=SCHEMA).num_rows == 100
        assert calls == 30
        with pytest.raises(StageError, match="attempt 1"):
            self.collected(lambda rows: 1 // 0, retry=retry, schema=SCHEMA)
        with pytest.raises(StageError, match="attempt 2"):
            self.collected(flaky, retry=engine.Retry(attempts=2, first_s=0.0), schema=SCHEMA)

    def test_a_time_limit(self) -> None:
        async def stuck(rows: pa.RecordBatch) -> pa.RecordBatch:
            await trio.sleep_forever()
            return rows

        with pytest.raises(StageError, match=r"no result within 0\.01 s"):
            self.collected(stuck, timeout_s=0.01, schema=SCHEMA)
        release = threading.Event()

        def hangs(rows: pa.RecordBatch) -> pa.RecordBatch:
            release.wait()
            return rows

        with pytest.raises(StageError, match=r"no result within 0\.01 s"):
            self.collected(hangs, timeout_s=0.01, schema=SCHEMA)
        release.set()


class TestDurableRuns:
    def pipeline(self, directory: Path, rows: pa.Table, **maps: Any) -> engine.Pipeline:
        built = engine.Pipeline("run").read(sources.memory(in_batches(rows, 50), id="rows")).dedup("id")
        built = built.key_by("key", partitions=3).map(maps.get("fn", doubled), schema=SCHEMA)
        return built.write(maps.get("sink") or sinks.parquet(str(directory / "out")))

    def test_the_second_run_finds_nothing_to_do(self, tmp_path: Path) -> None:
        rows = table([n // 2 for n in range(1000)])
        first = engine.run(self.pipeline(tmp_path, rows), state=tmp_path / "state", commit_every_bytes=1)
        assert first.this_run == first.total
        assert (first.total.rows_in, first.total.rows_out, first.total.duplicates) == (1000, 500, 500)
        assert first.resumed_at_epoch is None
        assert first.epochs == 20
        assert sum(first.rows_by_partition) == 500
        second = engine.run(self.pipeline(tmp_path, rows), state=tmp_path / "state")
        assert second.this_run.rows_in == 0
        assert second.total == first.total
        assert second.resumed_at_epoch == 20
        assert second.epochs == 0
        assert "complete, exactly-once, resumed at epoch 20" in str(second)
        assert pq.read_table(tmp_path / "out").num_rows == 500

    def test_more_rows_later(self, tmp_path: Path) -> None:
        rows = table(list(range(1000)))
        engine.run(self.pipeline(tmp_path, rows.slice(0, 400)), state=tmp_path / "state")
        report = engine.run(self.pipeline(tmp_path, rows), state=tmp_path / "state")
        assert report.this_run.rows_in == 600
        assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(1000))

    @pytest.mark.parametrize("failing_call", [1, 2, 5, 11])
    def test_a_failure_leaves_the_state_resumable(self, tmp_path: Path, failing_call: int) -> None:
        calls = 0

        def fails_once(rows: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal calls
            calls += 1
            if calls == failing_call:
                raise RuntimeError("not today")
            return doubled(rows)

        rows = table([n // 2 for n in range(1000)])
        failing = self.pipeline(tmp_path, rows, fn=fails_once)
        with pytest.raises(StageError, match="not today") as caught:
            engine.run(failing, state=tmp_path / "state", commit_every_bytes=1)
        assert isinstance(caught.value.__cause__, RuntimeError)
        engine.run(self.pipeline(tmp_path, rows), state=tmp_path / "state")
        assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(500))

    def test_what_is_no_exception_goes_through_as_it_is(self, tmp_path: Path) -> None:
        def leaves(rows: pa.RecordBatch) -> pa.RecordBatch:
            raise SystemExit(3)

        with pytest.raises(SystemExit):
            engine.run(self.pipeline(tmp_path, table([1]), fn=leaves), state=tmp_path / "state")

    def test_a_failing_sink_function(self, tmp_path: Path) -> None:
        def refuses(rows: pa.RecordBatch, token: object) -> None:
            raise ConnectionError("no route")

        with pytest.raises(SinkError, match="no route") as caught:
            engine.run(self.pipeline(tmp_path, table([1]), sink=sinks.call(refuses)))
        assert isinstance(caught.value.__cause__, ConnectionError)

    def test_call_gets_every_row(self) -> None:
        got: list[int] = []
        lock = threading.Lock()

        def take(rows: pa.RecordBatch, token: object) -> None:
            with lock:
                got.extend(rows.column("id").to_pylist())

        report = engine.run(self.pipeline(Path(), table(list(range(300))), sink=sinks.call(take)))
        assert sorted(got) == list(range(300))
        assert report.guarantee == "at-least-once"
        assert report.total.rows_out == 300

    def test_a_failing_source(self, tmp_path: Path) -> None:
        def rows() -> Any:
            yield from in_batches(table(list(range(100))), 50)
            raise OSError("the cable is out")

        pipeline = engine.Pipeline("x").read(sources.memory(rows(), schema=SCHEMA)).dedup("id")
        with pytest.raises(SourceError, match="the cable is out") as caught:
            engine.collect(pipeline)
        assert isinstance(caught.value.__cause__, OSError)

    def test_cancelled_under_trio_it_resumes(self, tmp_path: Path) -> None:
        rows = table(list(range(2000)))
        scope = trio.CancelScope()

        async def cancels(batch: pa.RecordBatch) -> pa.RecordBatch:
            if 1500 in batch.column("id").to_pylist():
                scope.cancel()
            return doubled(batch)

        async def main() -> None:
            with scope:
                pipeline = self.pipeline(tmp_path, rows, fn=cancels)
                await engine.run_async(pipeline, state=tmp_path / "state", commit_every_bytes=1)

        trio.run(main)
        assert scope.cancelled_caught
        report = engine.run(self.pipeline(tmp_path, rows), state=tmp_path / "state")
        assert report.total.rows_in == 2000
        assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(2000))

    def test_progress_is_told(self, tmp_path: Path) -> None:
        told: list[engine.Statistics] = []
        engine.run(self.pipeline(tmp_path, table(list(range(1000)))), state=tmp_path / "state", progress=told.append)
        assert told[-1].rows_in == 1000
        assert told[-1].rows_out == 1000
        assert told[-1].pipeline == "run"
        assert told[-1].epoch == 1

    def test_what_progress_raises_ends_the_run(self, tmp_path: Path) -> None:
        def fails(statistics: engine.Statistics) -> None:
            raise LookupError("no terminal")

        with pytest.raises(LookupError):
            engine.run(self.pipeline(tmp_path, table([1])), state=tmp_path / "state", progress=fails)


def test_dedup_within_a_time() -> None:
    minutes = np.array([0, 1, 2, 30, 31, 200], "int64")
    rows = pa.table({"id": [1, 2, 1, 1, 2, 1], "ts": pa.array(minutes * 60_000_000, pa.timestamp("us")), "n": range(6)})
    pipeline = engine.Pipeline("x").read(rows).dedup("id", within=timedelta(minutes=28), by="ts")
    # 1 again at 2 and at 30 (28 after 2); 2 again at 31, 30 after 1: forgotten; 1 again at 200: forgotten.
    assert engine.collect(pipeline)["n"].to_pylist() == [0, 1, 4, 5]


def test_a_pipeline_with_and_without_a_sink() -> None:
    with pytest.raises(PipelineError, match="there is no sink"):
        engine.run(engine.Pipeline("x").read(table([1])))
    with pytest.raises(PipelineError, match=r"run\(\) it"):
        engine.collect(engine.Pipeline("x").read(table([1])).write(sinks.call(print)))


def test_an_interrupt_before_anyone_listens_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*signals: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(trio, "open_signal_receiver", interrupted)
    pipeline = engine.Pipeline("x").read(table([1])).write(sinks.call(lambda rows, token: None))
    with pytest.raises(KeyboardInterrupt):
        engine.run(pipeline)
