"""The pipeline as a value: what the methods refuse, what ``validate`` finds, and what ``explain`` shows."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

import engine
from engine import sinks, sources
from engine.errors import PipelineError, StateError

ROWS = pa.table({"id": [1, 2], "event_id": ["a", "b"], "ts": pa.array([0, 1], pa.timestamp("us"))})


def same(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows


def started() -> engine.Pipeline:
    return engine.Pipeline("orders").read(sources.memory(ROWS, id="orders"))


def test_every_method_returns_a_new_pipeline() -> None:
    first = started()
    second = first.dedup("event_id")
    assert first is not second
    assert len(first.graph.stages) == 0
    assert len(second.graph.stages) == 1


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101, None, 7])
def test_a_name_that_is_no_directory_is_refused(name: object) -> None:
    with pytest.raises(PipelineError, match="expected a name"):
        engine.Pipeline(name)  # type: ignore[arg-type]


def test_order_of_calls() -> None:
    with pytest.raises(PipelineError, match=r"read\(\) comes first"):
        engine.Pipeline("x").dedup("a")
    with pytest.raises(PipelineError, match="reads once"):
        started().read(ROWS)
    with pytest.raises(PipelineError, match="partitioned once"):
        started().key_by("id").key_by("id")
    with pytest.raises(PipelineError, match="nothing can follow"):
        started().write(sinks.call(print)).map(same)
    with pytest.raises(PipelineError, match="expected a sink"):
        started().write("out/")  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="say how to read it"):
        engine.Pipeline("x").read("events/")


def test_all_faults_are_found_at_once_with_the_nearest_name() -> None:
    pipeline = started().dedup("event_di").key_by("event_id").filter(pc.field("id")).select("nothing")
    with pytest.raises(PipelineError) as caught:
        pipeline.validate()
    assert caught.value.faults == (
        'dedup: no column "event_di"; did you mean "event_id"? (id, event_id, ts)',
        "filter: expected a predicate of type bool; id is int64",
        'select: no column "nothing". (id, event_id, ts)',
    )
    assert str(caught.value).startswith('3 faults in "orders"\n  dedup: no column')


@pytest.mark.parametrize(
    ("pipeline", "fault"),
    [
        (started().dedup("id", within=0), "from 1 to"),
        (started().dedup("id", within=timedelta(seconds=1)), "needs by="),
        (started().dedup("id", within=timedelta(seconds=1), by="id"), 'by="id" must be a timestamp, found int64'),
        (started().dedup("id", within=timedelta(0), by="ts"), "above zero"),
        (started().dedup("id", by="ts"), "goes with within="),
        (started().dedup("id", exact="full"), "exact= must be 'fingerprint' or 'bytes', found 'full'"),
        (started().key_by("id").dedup("event_id"), "behind key_by its keys must include id"),
        (started().dedup("id").dedup("id"), "stands twice"),
        (started().map(lambda rows: None), "returned None"),
        (started().map(lambda rows: 1 // 0), "failed on zero rows"),
        (started().map(same, batch_rows=0), "batch_rows must be at least 1"),
        (started().map(same, concurrency=0), "concurrency must be at least 1"),
        (started().map(same, timeout_s=0), "timeout_s must be above zero"),
        (started().filter(pc.field("nothing") > 1), "does not fit the columns"),
        (started().select(), "at least one column"),
        (started().select("id", id=pc.field("id")), "given twice"),
        (engine.Pipeline("none"), "there is no source"),
    ],
)
def test_a_fault_is_named(pipeline: engine.Pipeline, fault: str) -> None:
    with pytest.raises(PipelineError) as caught:
        pipeline.validate()
    assert fault in str(caught.value)


@pytest.mark.parametrize("partitions", [0, -1, 1025, 1.5, "8"])
def test_partitions_out_of_bounds(partitions: object) -> None:
    with pytest.raises(PipelineError, match="partitions must be from 1 to 1,024"):
        started().key_by("id", partitions=partitions)  # type: ignore[arg-type]


def test_a_nested_key_is_refused() -> None:
    lists = pa.array([["a"], ["b"]])
    for column in (lists, pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), lists)):
        rows = pa.table({"tags": column})
        with pytest.raises(PipelineError, match="nested column cannot be a key"):
            engine.Pipeline("x").read(sources.memory(rows)).key_by("tags").validate()


def test_sources_must_fit_each_other() -> None:
    other = pa.table({"id": ["1"], "event_id": ["a"], "ts": pa.array([0], pa.timestamp("us"))})
    pipeline = engine.Pipeline("x").read(sources.memory(ROWS, id="a"), sources.memory(other, id="b"))
    with pytest.raises(PipelineError, match='"id" is string there, and int64 here'):
        pipeline.validate()
    with pytest.raises(PipelineError, match="two sources are both"):
        engine.Pipeline("x").read(sources.memory(ROWS, id="a"), sources.memory(ROWS, id="a")).validate()


def test_what_depends_on_a_state(tmp_path: Path) -> None:
    pipeline = started().write(sinks.parquet(str(tmp_path / "out")))
    with pytest.raises(PipelineError, match="needs state=…, to be exactly-once"):
        engine.run(pipeline)
    nameless = engine.Pipeline("x").read(ROWS).write(sinks.parquet(str(tmp_path / "out")))
    with pytest.raises(PipelineError, match="needs id="):
        engine.run(nameless, state=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"memory": "lots"}, {"memory": "1KiB"}, {"memory": 0}, {"commit_every_s": 0}, {"commit_every_bytes": 0}]
)
def test_options_that_make_no_sense(options: dict[str, object], tmp_path: Path) -> None:
    pipeline = started().write(sinks.parquet(str(tmp_path / "out")))
    with pytest.raises(PipelineError):
        engine.run(pipeline, state=tmp_path / "state", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_explain_as_text_and_as_mermaid() -> None:
    pipeline = started().dedup("event_id", within=1000).key_by("id", partitions=4).map(same).write(sinks.call(print))
    text = pipeline.explain()
    assert "4 partitions, order kept per key" in text
    assert "exact, within 1,000 rows" in text
    assert "at-least-once" in text
    chart = pipeline.explain(format="mermaid")
    assert chart.startswith("flowchart LR")
    assert chart.count("-->") == 4
    with pytest.raises(PipelineError, match="format must be"):
        pipeline.explain(format="dot")  # type: ignore[arg-type]


def test_only_whole_keys_are_part_of_the_graphs_fingerprint() -> None:
    by_default, by_bytes = started().dedup("id"), started().dedup("id", exact="bytes")
    assert by_default.graph.fingerprint() == started().dedup("id", exact="fingerprint").graph.fingerprint()
    assert "exact" not in str(by_default.graph.fingerprint())
    assert by_default.graph.fingerprint() != by_bytes.graph.fingerprint()
    assert "exact by bytes, for ever" in by_bytes.write(sinks.call(print)).explain()


def test_whole_keys_are_kept_from_run_to_run(tmp_path: Path) -> None:
    inputs, out, state = tmp_path / "in", tmp_path / "out", tmp_path / "state"
    inputs.mkdir()

    def run(day: int) -> list[str]:
        texts = [f"a text of more than sixteen bytes {number}" for number in range(day * 50, day * 50 + 100)]
        parquet.write_table(pa.table({"id": texts}), inputs / f"day-{day}.parquet")
        pipeline = engine.Pipeline("texts").read(sources.parquet(str(inputs))).dedup("id", exact="bytes")
        engine.run(pipeline.write(sinks.parquet(str(out))), state=state)
        return sorted(text for path in out.iterdir() for text in parquet.read_table(path)["id"].to_pylist())

    assert len(run(0)) == 100
    assert any(path.name.startswith("keys-") for path in state.rglob("*.log"))
    both = run(1)
    assert len(both) == len(set(both)) == 150
    relaxed = engine.Pipeline("texts").read(sources.parquet(str(inputs))).dedup("id").write(sinks.parquet(str(out)))
    with pytest.raises(StateError, match="exact"):
        engine.run(relaxed, state=state)
