"""Bad input and bad surroundings, through the public API: a clear message, and state and output stay as they were."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio

import engine
from engine import sinks, sources
from engine._runtime.run import Options, execute
from engine.errors import EngineError, InputError, PipelineError, SinkError, StageError, StateError
from engine.sinks.parquet_files import ParquetSink
from engine.storage import File, Storage

SCHEMA = pa.schema([("id", pa.int64()), ("key", pa.string())])


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"id": range(start, stop), "key": [f"k{n % 7}" for n in range(start, stop)]}, schema=SCHEMA)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with two input files."""
    (tmp_path / "in").mkdir()
    pq.write_table(rows(0, 100), tmp_path / "in" / "day-01.parquet")
    pq.write_table(rows(100, 200), tmp_path / "in" / "day-02.parquet")
    return tmp_path


def job(place: Path, **changes: str) -> engine.Pipeline:
    return (
        engine.Pipeline("orders")
        .read(sources.parquet(changes.get("input", str(place / "in"))))
        .dedup(changes.get("key", "id"))
        .key_by("key", partitions=int(changes.get("partitions", "2")))
        .write(sinks.parquet(changes.get("output", str(place / "out"))))
    )


def run(place: Path, **changes: str) -> engine.Report:
    return engine.run(job(place, **changes), state=place / "state")


def contents(place: Path) -> dict[str, bytes]:
    """Every file of state and output, but for the records and locks that each start writes."""
    found = {}
    for name in ("out", "state"):
        for path in sorted((place / name).rglob("*")):
            if path.is_file() and not path.name.startswith(("manifest", "LOCK")):
                found[str(path.relative_to(place))] = path.read_bytes()
    return found


@contextmanager
def refused(place: Path, error: type[EngineError], *texts: str) -> Iterator[None]:
    """The block raises ``error`` with all ``texts`` in it, and nothing has changed."""
    before = contents(place)
    with pytest.raises(error) as caught:
        yield
    for text in texts:
        assert text in str(caught.value)
    assert contents(place) == before


def ids(place: Path) -> list[int]:
    return sorted(pq.read_table(place / "out")["id"].to_pylist())


def test_a_missing_column(place: Path) -> None:
    with refused(place, PipelineError, 'dedup: no column "idd"; did you mean "id"? (id, key)'):
        run(place, key="idd")


def test_zero_files(place: Path) -> None:
    with refused(place, PipelineError, "nothing-here"):
        run(place, input=str(place / "nothing-here"))


def test_zero_rows(place: Path) -> None:
    (place / "none").mkdir()
    pq.write_table(rows(0, 0), place / "none" / "empty.parquet")
    report = run(place, input=str(place / "none"))
    assert report.total.rows_in == 0
    assert not (place / "out").exists() or list((place / "out").iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all", None])
def test_an_unreadable_or_truncated_file(place: Path, damage: bytes | None) -> None:
    run(place)
    path = place / "in" / "day-03.parquet"
    pq.write_table(rows(200, 300), path)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with refused(place, EngineError, "day-03.parquet"):
        run(place)
    pq.write_table(rows(200, 300), path)
    run(place)
    assert ids(place) == list(range(300))


def test_a_schema_that_changes_between_files(place: Path) -> None:
    run(place)
    pq.write_table(pa.table({"id": ["x"], "key": ["y"]}), place / "in" / "day-03.parquet")
    with refused(place, EngineError, "day-03.parquet", '"id" is string', "int64"):
        run(place)


def test_a_file_that_changed_since_the_last_run(place: Path) -> None:
    run(place)
    pq.write_table(rows(500, 600), place / "in" / "day-01.parquet")
    with refused(place, InputError, "day-01.parquet", "changed since the last run"):
        run(place)


def test_a_file_that_is_gone(place: Path) -> None:
    run(place)
    (place / "in" / "day-01.parquet").unlink()
    with refused(place, InputError, "day-01.parquet", "gone"):
        run(place)


def test_a_state_that_is_in_use(place: Path) -> None:
    script = "import sys, engine.storage as s; lock = s.Storage().lock(sys.argv[1]); print('held', flush=True); input()"
    run(place)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(place / "state" / "orders" / "LOCK")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with refused(place, StateError, "is in use by pid", str(holder.pid), "give this process its own state="):
            run(place)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    assert run(place).this_run.rows_in == 0


def test_a_state_of_another_graph(place: Path) -> None:
    run(place)
    with refused(place, StateError, "partitions"):
        run(place, partitions="3")
    with refused(place, StateError, "sink"):
        run(place, output=str(place / "elsewhere"))
    with refused(place, StateError, "dedup"):
        run(place, key="key")


def test_an_output_with_files_of_others(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "old.parquet").write_bytes(b"mine")
    with refused(place, SinkError, "old.parquet", 'mode="append"', "Nothing was touched"):
        run(place)


def test_an_output_whose_state_is_lost(place: Path) -> None:
    run(place)
    with refused(place, SinkError, "another"):
        engine.run(job(place), state=place / "state-2")
    assert ids(place) == list(range(200))


def test_an_output_inside_of_the_input(place: Path) -> None:
    with refused(place, PipelineError, "would read the output"):
        run(place, output=str(place / "in" / "out"))


def test_a_type_that_parquet_cannot_hold(place: Path) -> None:
    table = pa.table({"id": pa.array([pa.MonthDayNano([1, 2, 3])])})
    pipeline = engine.Pipeline("x").read(sources.memory(table, id="x")).write(sinks.parquet(str(place / "out")))
    with refused(place, PipelineError, "id"):
        engine.run(pipeline, state=place / "state")


def test_memory_with_other_rows_on_resume(place: Path) -> None:
    def of(table: pa.Table) -> engine.Pipeline:
        built = engine.Pipeline("x").read(sources.memory(table, id="frame"))
        return built.write(sinks.parquet(str(place / "out")))

    engine.run(of(rows(0, 100)), state=place / "state")
    with refused(place, InputError, "other rows"):
        engine.run(of(rows(1, 101)), state=place / "state")
    with refused(place, InputError):
        engine.run(of(rows(0, 99)), state=place / "state")
    assert engine.run(of(rows(0, 150)), state=place / "state").this_run.rows_in == 50


def test_an_iterator_cannot_resume_unless_told_how(place: Path) -> None:
    def of(resume: str | None) -> engine.Pipeline:
        source = sources.memory(iter(rows(0, 100).to_batches()), id="once", schema=SCHEMA, resume=resume)  # type: ignore[arg-type]
        return engine.Pipeline("x").read(source).write(sinks.parquet(str(place / "out")))

    engine.run(of(None), state=place / "state")
    with refused(place, InputError, "resume="):
        engine.run(of(None), state=place / "state")
    assert engine.run(of("skip"), state=place / "state").this_run.rows_in == 0
    assert engine.run(of("continue"), state=place / "state").this_run.rows_in == 100


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda batch: None, "returned None"),
        (lambda batch: batch.select(["key"]), "returned the columns ['key'], expected ['id', 'key']"),
    ],
)
def test_a_map_that_returns_what_it_should_not(
    place: Path, fn: Callable[[pa.RecordBatch], pa.RecordBatch], text: str
) -> None:
    pipeline = engine.Pipeline("x").read(sources.parquet(str(place / "in"))).map(fn, schema=SCHEMA)
    with refused(place, StageError, text):
        engine.run(pipeline.write(sinks.parquet(str(place / "out"))), state=place / "state")


class FullDisk(Storage):
    """Takes ``room_bytes`` more, then says that there is no space left: at first after half of a write, as disks do."""

    def __init__(self, room_bytes: int) -> None:
        super().__init__()
        self.room_bytes = room_bytes
        self.refusals = 0

    def create(self, path: str, *, mode: int = 0o600) -> File:
        file = super().create(path, mode=mode)
        append = file.append

        def limited(*buffers: bytes) -> int:
            data = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
            if len(data) > self.room_bytes:
                append(data[: self.room_bytes])
                self.room_bytes = 0
                self.refusals += 1
                raise OSError(errno.ENOSPC, "No space left on device", path)
            self.room_bytes -= len(data)
            return append(data)

        file.append = limited  # type: ignore[method-assign]
        file.write = lambda data: (limited(data), memoryview(data).nbytes)[1]  # type: ignore[method-assign, arg-type, return-value]
        return file


@pytest.mark.parametrize("room_bytes", [0, 100, 1_000, 3_000, 5_000, 9_000])
def test_a_full_disk(place: Path, room_bytes: int) -> None:
    storage = FullDisk(room_bytes)
    pipeline = job(place)
    sink = pipeline.graph.sink
    assert isinstance(sink, ParquetSink)
    sink.storage = storage
    with pytest.raises(EngineError) as caught:
        trio.run(execute, pipeline, sink, Options(state=place / "state", storage=storage, commit_every_bytes=1))
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    assert cause is not None
    assert cause.errno == errno.ENOSPC
    assert storage.refusals > 0
    run(place)
    assert ids(place) == list(range(200))


def test_a_named_pipe_is_no_file(place: Path) -> None:
    os.mkfifo(place / "in" / "day-03.parquet")
    with refused(place, EngineError, "day-03.parquet", "not a regular file"):
        run(place)
