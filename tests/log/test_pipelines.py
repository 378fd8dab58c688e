"""Logs at both ends of pipelines: every row once, whatever is interrupted."""

import errno
import multiprocessing
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio
from crash import jobs

import engine
from engine import Log, Pipeline, sinks, sources
from engine._runtime.run import Options, execute
from engine.errors import EngineError, InputError, PipelineError, SinkError
from engine.progress import Token
from engine.sinks.durable_log import LogSink
from engine.storage import Storage
from engine.testing.storage import SimulatedStorage

PARTITIONS = 3
COMMIT_BYTES = 200_000
"""How much a job that is killed reads an epoch: a thirtieth of its input or less."""


def table(start: int, count: int) -> pa.Table:
    numbers = range(start, start + count)
    keys = pa.array([f"key {n % 7}" for n in numbers], pa.string())
    return pa.table({"n": pa.array(numbers, pa.int64()), "key": keys})


def numbers(path: Path, partition: int = 0) -> list[int]:
    with Log(path, write=False) as log:
        return [n for batch in log.read(log.start(), partition=partition) for n in batch.column("n").to_pylist()]


def everything(path: Path) -> list[list[int]]:
    with Log(path, write=False) as log:
        partitions = log.partitions
    return [numbers(path, partition) for partition in range(partitions)]


def test_rows_go_through_a_log_and_out_again(tmp_path):
    before = Pipeline("before").read(sources.memory(table(0, 5_000), id="rows")).key_by("key", partitions=PARTITIONS)
    report = engine.run(before.write(sinks.log(tmp_path / "log")), state=tmp_path / "state")
    assert (report.guarantee, report.total.rows_out) == ("exactly-once", 5_000)
    found = everything(tmp_path / "log")
    assert sorted(n for partition in found for n in partition) == list(range(5_000))
    assert all(partition == sorted(partition) for partition in found)

    after = Pipeline("after").read(sources.log(tmp_path / "log", group="after")).write(sinks.parquet(tmp_path / "out"))
    engine.run(after, state=tmp_path / "state")
    assert sorted(pq.read_table(tmp_path / "out").column("n").to_pylist()) == list(range(5_000))
    with Log(tmp_path / "log", write=False) as log:
        assert log.groups["after"].offsets() == tuple(len(partition) for partition in found)

    # What others append meanwhile is for the next run, of both.
    with Log(tmp_path / "log") as log:
        log.append(table(5_000, 10), partition=1)
    report = engine.run(after, state=tmp_path / "state")
    assert (report.this_run.rows_in, report.total.rows_out) == (10, 5_010)


def test_another_log_in_the_place_of_the_one_that_was_read_is_refused(tmp_path):
    def job() -> Pipeline:
        read = sources.log(tmp_path / "log", group="job")
        return Pipeline("job").read(read).write(sinks.parquet(tmp_path / "out"))

    with Log(tmp_path / "log") as log:
        log.append(table(0, 10))
    engine.run(job(), state=tmp_path / "state")
    shutil.rmtree(tmp_path / "log")
    with Log(tmp_path / "log") as log:
        log.append(table(0, 50))
    with pytest.raises(InputError, match="It is another log in its place"):
        engine.run(job(), state=tmp_path / "state")
    with Log(tmp_path / "log", write=False) as log:
        assert list(log.groups) == []


def test_from_an_offset_to_an_offset(tmp_path):
    with Log(tmp_path / "log") as log:
        for start in range(0, 100, 10):
            log.append(table(start, 10))
    rows = engine.collect(Pipeline("some").read(sources.log(tmp_path / "log", start=25, stop=61)))
    assert rows.column("n").to_pylist() == list(range(25, 61))
    for wrong in ({"start": -1}, {"start": 5, "stop": 4}, {"group": ""}):
        with pytest.raises(PipelineError, match="read: log:"):
            sources.log(tmp_path / "log", **wrong)
    with pytest.raises(PipelineError, match="is no log"):
        engine.collect(Pipeline("none").read(sources.log(tmp_path / "none")))


@pytest.mark.parametrize("prepare", [False, True])
def test_a_row_that_no_frame_holds_is_an_error_of_the_sink(tmp_path, monkeypatch, prepare):
    monkeypatch.setattr("engine.log.body.BodyEncoder.encode.__defaults__", (1_000,))
    sink = LogSink(str(tmp_path / "log"), None)
    schema = pa.schema([("text", pa.string())])
    start = Token("ef" * 16, 0, "0", "log")
    sink.open(schema, token=start, partitions=1, memory_bytes=1 << 20 if prepare else 1)
    writer = sink.writer(0, Token("ef" * 16, 1, "0", "log"))
    row = pa.record_batch({"text": ["x" * 2_000]})
    if prepare:
        writer.write(row, origin=None)
    refused = writer.prepare if prepare else partial(writer.write, row, origin=None)
    with pytest.raises(SinkError, match=r"one row takes .* bytes; a frame holds at most 1,000") as raised:
        refused()
    assert raised.value.partition == 0
    sink.close()


def test_a_log_is_not_its_own_input(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(table(0, 10))
    pipeline = Pipeline("circle").read(sources.log(tmp_path / "log")).write(sinks.log(tmp_path / "log"))
    with pytest.raises(PipelineError, match="log"):
        engine.run(pipeline, state=tmp_path / "state")


class Interrupted(Storage):
    """The n-th rename raises, before or after it was done."""

    def __init__(self, at: int, *, done: bool) -> None:
        self.at = at
        self.done = done
        self.renames = 0

    def rename(self, source: str, target: str) -> None:
        self.renames += 1
        if self.renames == self.at and not self.done:
            raise KeyboardInterrupt
        super().rename(source, target)
        if self.renames == self.at:
            raise KeyboardInterrupt


def staged(path: Path, storage: Storage, epoch: int, start: int) -> tuple[LogSink, list]:
    sink = LogSink(str(path), None, storage=storage)
    sink.open(table(0, 0).schema, token=Token("ab" * 16, epoch - 1, "0", "log"), partitions=2, memory_bytes=1 << 20)
    sink.discard_after(Token("ab" * 16, epoch - 1, "0", "log"))
    handles = []
    for partition in range(2):
        writer = sink.writer(partition, Token("ab" * 16, epoch, "0", "log"))
        for at in range(start, start + 40, 10):
            [batch] = table(at, 10).to_batches()
            writer.write(batch, origin=None)
        handles.append(writer.prepare())
    return sink, handles


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_a_commit_that_was_interrupted_anywhere_is_finished_once(tmp_path, done, others):
    fired = 0
    for at in range(1, 30):
        path = tmp_path / f"log-{at}"
        storage = Interrupted(10**9, done=done)
        sink, handles = staged(path, storage, 1, 0)
        storage.at, storage.renames = at, 0
        try:
            sink.commit(handles)
        except KeyboardInterrupt:
            fired += 1
        sink.close()
        if others:
            with Log(path) as log:
                log.append(table(1_000, 3), partition=1)
        # The next run: another process would have nothing but the handles.
        again = LogSink(str(path), None)
        again.open(table(0, 0).schema, token=Token("ab" * 16, 1, "0", "log"), partitions=2, memory_bytes=1 << 20)
        again.commit(handles)
        again.commit(handles)
        again.discard_after(Token("ab" * 16, 1, "0", "log"))
        again.close()
        first, second = everything(path)
        assert first == list(range(40))
        assert [n for n in second if n < 1_000] == list(range(40))
        assert [n for n in second if n >= 1_000] == ([1_000, 1_001, 1_002] if others else [])
        assert list((path / "staging").iterdir()) == []
        if storage.renames < at:
            break
    assert fired == at - 1 >= 3  # two segments and the mark


def test_a_segment_that_is_staged_once_more_is_not_published_twice(tmp_path):
    """By a process that lost the state directory: it was writing the segment anew, on its way into the rename."""
    path, storage = tmp_path / "log", Interrupted(10**9, done=True)
    sink, handles = staged(path, storage, 1, 0)
    copies = {file: file.read_bytes() for file in (path / "staging").iterdir()}
    storage.at, storage.renames = 2, 0  # two segments, and not the mark
    with pytest.raises(KeyboardInterrupt):
        sink.commit(handles)
    sink.close()
    for copy, content in copies.items():
        copy.write_bytes(content)
    (path / "staging" / f"{'ab' * 8}-0000000001-00007.seg").touch()
    again = LogSink(str(path), None)
    token = Token("ab" * 16, 1, "0", "log")
    again.open(table(0, 0).schema, token=token, partitions=2, memory_bytes=1 << 20)
    again.commit(handles)
    again.discard_after(token)
    again.close()
    assert everything(path) == [list(range(40))] * 2
    assert list((path / "staging").iterdir()) == []


def test_epochs_are_written_ahead_and_what_is_later_is_discarded(tmp_path):
    sink = LogSink(str(tmp_path / "log"), None)
    start = Token("cd" * 16, 0, "0", "log")
    sink.open(table(0, 0).schema, token=start, partitions=1, memory_bytes=1 << 20)
    writers = []
    for epoch in range(1, 5):
        writer = sink.writer(0, Token("cd" * 16, epoch, "0", "log"))
        if epoch != 2:
            writer.write(table(epoch * 10, 10).to_batches()[0], origin=None)
        writers.append(writer)
    handles = [writers[0].prepare()]
    sink.commit(handles)
    sink.commit([writers[1].prepare()])
    handles = [writers[2].prepare()]
    sink.close()
    again = LogSink(str(tmp_path / "log"), None)
    last = Token("cd" * 16, 3, "0", "log")
    again.open(table(0, 0).schema, token=last, partitions=1, memory_bytes=1 << 20)
    with pytest.raises(SinkError, match="has rows of epochs up to 2; the state directory knows that 3 was"):
        again.discard_after(last)
    again.commit(handles)
    again.discard_after(last)
    again.close()
    assert numbers(tmp_path / "log") == [*range(10, 20), *range(30, 40)]
    assert list((tmp_path / "log" / "staging").iterdir()) == []
    with pytest.raises(SinkError, match="rows of epoch 3; the state directory knows epochs up to 2"):
        again.open(table(0, 0).schema, token=Token("cd" * 16, 2, "0", "log"), partitions=1, memory_bytes=1 << 20)
    again.open(table(0, 0).schema, token=last, partitions=1, memory_bytes=1 << 20)
    with pytest.raises(SinkError, match="is gone, and its rows are not in the log"):
        again.commit([{**handles[0], "epoch": 4, "after": 3}])
    again.close()


def counted(start: int, stop: int, name: str = "job", path: Path | None = None) -> Pipeline:
    rows = sources.memory(table(start, stop - start), id="counted")
    return Pipeline(name).read(rows).write(sinks.log(path))


def test_a_log_whose_state_directory_is_gone_is_refused(tmp_path):
    path, state = tmp_path / "log", tmp_path / "state"
    engine.run(counted(0, 10, path=path), state=state)
    state.rename(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="has rows of job from another state directory"):
        engine.run(counted(0, 10, path=path), state=state)
    assert numbers(path) == [*range(10)]
    engine.run(counted(10, 20, "other", path), state=state)  # another pipeline may append
    engine.run(counted(0, 20, path=path), state=tmp_path / "elsewhere")  # and the first one goes on
    assert numbers(path) == [*range(20), *range(10, 20)]


def test_an_incarnation_that_published_nothing_gives_way(tmp_path):
    path = tmp_path / "log"

    def broken(rows):
        if rows.num_rows:
            raise ValueError("broken")
        return rows

    with pytest.raises(EngineError, match="broken"):
        engine.run(
            Pipeline("job").read(sources.memory(table(0, 9), id="some")).map(broken).write(sinks.log(path)),
            state=tmp_path / "a",
        )
    assert len(list((path / "sinks").iterdir())) == 1
    engine.run(counted(0, 10, path=path), state=tmp_path / "b")
    assert numbers(path) == [*range(10)]
    assert len(list((path / "sinks").iterdir())) == 1


@pytest.mark.parametrize("lost", ["segment", "mark", "both", "log"])
def test_what_a_finished_commit_published_and_a_disk_lost_is_missed(tmp_path, lost):
    path, state = tmp_path / "log", tmp_path / "state"
    engine.run(counted(0, 10, path=path), state=state)
    [mark] = (path / "sinks").iterdir()
    before = mark.read_bytes()
    engine.run(counted(0, 20, path=path), state=state)
    *_, newest = sorted((path / "partition-00000").glob("*.seg"))
    if lost in ("segment", "both"):
        newest.unlink()
        (path / "partition-00000" / "durable").unlink()  # which would tell, and is for readers: it is not synced
    if lost in ("mark", "both"):
        mark.write_bytes(before)
    if lost == "log":
        shutil.rmtree(path)
    with pytest.raises(SinkError, match=r"ends at offset 10 in partition 0; 20 was|has rows of epochs up to"):
        engine.run(counted(0, 30, path=path), state=state)


def _job(directory: Path) -> Pipeline:
    source = sources.log(directory / "in", group="job")
    keyed = Pipeline("job").read(source).dedup("n", within=10_000).key_by("key", partitions=PARTITIONS)
    return keyed.write(sinks.log(directory / "out"))


def _run_job(directory: Path, kill: jobs.Job) -> None:
    job = _job(directory)
    options = Options(
        state=directory / "state",
        commit_every_s=3600,
        commit_every_bytes=COMMIT_BYTES,
        instrument=jobs.Executioner(kill),
    )
    trio.run(execute, job, job.graph.sink, options)


@pytest.mark.parametrize("seed", range(2))
def test_a_job_between_two_logs_that_is_killed_again_and_again(tmp_path, seed):
    """Between all steps of a commit, each time and then at a random moment, which is before a commit's end at the
    latest: the job is always too long to end by itself.
    """
    chance = random.Random(seed)
    with Log(tmp_path / "in") as log:
        for start in range(0, 400_000, 1_000):
            log.append(table(max(0, start - chance.choice([0, 0, 50])), 1_000))
        expected = sorted({n for batch in log.read() for n in batch.column("n").to_pylist()})
    context = multiprocessing.get_context("fork")
    events = tmp_path / "events"
    kills = [kill for gap in chance.sample(jobs.GAPS, len(jobs.GAPS)) for kill in ((gap, None), (jobs.GAPS[-1], 0.2))]
    for gap, longest_s in kills:
        executioner = jobs.Job("", events=str(events), kill_at=gap, kill_on=1 if longest_s else chance.randint(1, 2))
        child = context.Process(target=_run_job, args=(tmp_path, executioner))
        child.start()
        child.join(longest_s and chance.uniform(0.0, longest_s))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    print(events.read_text().count("commit.committed"), "commits")
    engine.run(_job(tmp_path), state=tmp_path / "state")
    found = everything(tmp_path / "out")
    assert sorted(n for partition in found for n in partition) == expected


def test_a_segment_whose_name_was_not_synced_is_synced_by_the_repetition():
    storage = SimulatedStorage(7)
    sink, handles = staged(Path("/log"), storage, 1, 0)
    sync, failures = storage.sync_directory, [OSError(errno.EIO, "injected")]

    def failing(path: str) -> None:
        if path.endswith("partition-00001") and failures:
            raise failures.pop()
        sync(path)

    storage.sync_directory = failing  # type: ignore[method-assign]
    with pytest.raises(SinkError, match="epoch 1 cannot be published"):
        sink.commit(handles)
    assert not failures
    sink.commit(handles)
    with Log("/log", write=False, storage=storage.crash("nothing")) as log:
        for partition in range(2):
            assert [n for rows in log.read(partition=partition) for n in rows.column("n").to_pylist()] == [*range(40)]


@pytest.mark.parametrize("incarnation", ["ab", "cd"])
def test_rows_of_a_commit_that_the_state_lost_are_seen_behind_those_of_others(tmp_path, incarnation):
    """The segments are published, the mark is not moved, and somebody appended since."""
    storage = Interrupted(10**9, done=False)
    sink, handles = staged(tmp_path / "log", storage, 1, 0)
    storage.at, storage.renames = 3, 0  # two segments, and not the mark
    with pytest.raises(KeyboardInterrupt):
        sink.commit(handles)
    sink.close()
    with Log(tmp_path / "log") as log:
        for partition in range(2):
            log.append(table(1_000, 3), partition=partition)
    again = LogSink(str(tmp_path / "log"), None)
    with pytest.raises(SinkError, match=r"has rows of epoch 1; the state|has rows of .* from another state directory"):
        again.open(table(0, 0).schema, token=Token(incarnation * 16, 0, "0", "log"), partitions=2, memory_bytes=1 << 20)


def test_rows_of_a_commit_that_the_state_lost_are_seen_before_they_are_written_again(tmp_path):
    storage = Interrupted(10**9, done=False)
    sink, handles = staged(tmp_path / "log", storage, 1, 0)
    storage.at, storage.renames = 3, 0  # two segments, and not the mark
    with pytest.raises(KeyboardInterrupt):
        sink.commit(handles)
    sink.close()
    again = LogSink(str(tmp_path / "log"), None)
    with pytest.raises(SinkError, match="rows of epoch 1; the state directory knows epochs up to 0"):
        again.open(table(0, 0).schema, token=Token("ab" * 16, 0, "0", "log"), partitions=2, memory_bytes=1 << 20)
    again.open(table(0, 0).schema, token=Token("ab" * 16, 1, "0", "log"), partitions=2, memory_bytes=1 << 20)
    again.commit(handles)
    again.close()
    assert everything(tmp_path / "log") == [list(range(40))] * 2


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("damage", ["bit", "end"])
def test_a_staged_segment_that_was_damaged_is_not_published(tmp_path, damage, moved):
    sink, handles = staged(tmp_path / "log", Storage(), 1, 0)
    sink.close()
    if moved:
        with Log(tmp_path / "log") as log:
            log.append(table(1_000, 3), partition=0)
    path = tmp_path / "log" / "staging" / handles[0]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:] if damage == "bit" else whole[:-128])
    again = LogSink(str(tmp_path / "log"), None)
    again.open(table(0, 0).schema, token=Token("ab" * 16, 1, "0", "log"), partitions=2, memory_bytes=1 << 20)
    with pytest.raises(SinkError, match="is damaged at byte"):
        again.commit(handles)
    again.close()
    assert everything(tmp_path / "log") == [[1_000, 1_001, 1_002] if moved else [], []]
