"""Whole pipelines into databases: resumed, busy, interrupted at every step of a commit, and checked before they run."""

import dataclasses
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import sql_jobs
from crash.nursery_of_kills import KILLED
from databases import ids, marks
from sql_jobs import Job

import engine
from engine import sources
from engine.errors import PipelineError, SinkError


@pytest.fixture
def job(database, tmp_path):
    return Job(kind=database.kind, database=database.database, state=str(tmp_path / "state"), rows=6_000)


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch):
    monkeypatch.setattr("engine._runtime.coordinator._PUBLISH_WAIT_S", 0.01)


def check_exactly_once(database, job):
    found = database.arrow(f'SELECT id, text FROM "{job.table}" ORDER BY id')
    assert found.to_pydict() == sql_jobs.rows_of(job).to_pydict()


def test_a_pipeline_resumes_where_it_ended(database, job):
    report = sql_jobs.run(job)
    assert report.guarantee == "exactly-once"
    assert report.output == f"{database.sink('events', 'error')._target.label}, table events"
    assert report.output_files is None
    assert report.epochs >= 3
    check_exactly_once(database, job)
    more = dataclasses.replace(job, rows=8_000)
    again = sql_jobs.run(more)
    assert again.resumed_at_epoch == report.epochs
    assert again.this_run.rows_out == 2_000
    check_exactly_once(database, more)
    [(_, table, epoch)] = marks(database)
    assert table == "events"
    assert sql_jobs.run(more).resumed_at_epoch == epoch
    check_exactly_once(database, more)


def test_keys_keep_their_order(database, job):
    one = dataclasses.replace(job, partitions=1)
    sql_jobs.run(one)
    assert ids(database) == list(range(job.rows))


@pytest.mark.parametrize("event", ["commit.prepared", "commit.committed", "commit.published", "commit.acked"])
def test_an_exception_at_a_step_of_the_commit(database, job, event):
    raised = []

    def failing(name, /, **fields):
        if name == event and fields["epoch"] == 2:
            raised.append(fields)
            raise RuntimeError("injected")

    with pytest.raises(RuntimeError, match="injected"):
        sql_jobs.run(job, failing)
    assert len(raised) == 1
    sql_jobs.run(job)
    check_exactly_once(database, job)


@pytest.mark.parametrize(
    ("event", "occurrence"),
    [("commit.prepared", 2), ("commit.committed", 2), ("insert", 5), ("commit.published", 2), ("commit.acked", 2)],
)
def test_killed_at_a_step_of_the_commit(database, zygote, job, event, occurrence):
    assert zygote.run(dataclasses.replace(job, kill_at=event, kill_on=occurrence)) == KILLED, zygote.said()
    committed = 2 if event in ("commit.published", "commit.acked") else 1
    assert [epoch for _, _, epoch in marks(database)] == [committed]
    assert len(ids(database)) == len(set(ids(database)))
    sql_jobs.run(job)
    check_exactly_once(database, job)


def test_killed_again_in_every_recovery(database, zygote, job):
    for _ in range(2):
        assert zygote.run(dataclasses.replace(job, kill_at="insert", kill_on=2)) == KILLED, zygote.said()
        assert ids(database) == []
    for event in ("commit.published", "commit.acked"):
        assert zygote.run(dataclasses.replace(job, kill_at=event)) == KILLED, zygote.said()
    sql_jobs.run(job)
    check_exactly_once(database, job)


def test_an_answer_that_was_lost(database, job, monkeypatch):
    target = type(database.sink()._target)
    transact, lost = target.transact, []

    def losing(self, work):
        result = transact(self, work)
        if len(lost) < 3:
            lost.append(result)
            if len(lost) > 1:  # the first is the opening
                raise ConnectionResetError(104, "the answer was lost")
        return result

    monkeypatch.setattr(target, "transact", losing)
    events = []
    sql_jobs.run(job, lambda event, /, **fields: events.append(event))
    assert events.count("commit.publish_failed") == 2
    check_exactly_once(database, job)


@pytest.mark.usefixtures("impatient")
def test_a_busy_database_is_waited_for(database, job):
    holds, events = [], []

    def instrument(event, /, **fields):
        events.append(event)
        if event == "commit.committed" and fields["epoch"] == 2:
            holds.append(database.blocked())
            holds[0].__enter__()
        elif event == "commit.publish_failed" and events.count(event) == 2:
            holds.pop().__exit__(None, None, None)

    sql_jobs.run(job, instrument)
    assert holds == []
    assert events.count("commit.publish_failed") >= 2
    check_exactly_once(database, job)


@pytest.mark.usefixtures("impatient")
def test_a_database_that_stays_busy_ends_the_run_and_the_next_one_publishes(database, job):
    holds = []

    def instrument(event, /, **fields):
        if event == "commit.committed" and fields["epoch"] == 2:
            holds.append(database.blocked())
            holds[0].__enter__()

    with pytest.raises(SinkError, match="epoch 2 cannot be committed") as raised:
        sql_jobs.run(job, instrument)
    assert any("the next run on the same state publishes it" in note for note in raised.value.__notes__)
    holds.pop().__exit__(None, None, None)
    sql_jobs.run(job)
    check_exactly_once(database, job)


def test_a_damaged_segment_ends_the_run_and_is_named(database, job):
    def failing(event, /, **fields):
        if event == "commit.committed" and fields["epoch"] == 2:
            raise RuntimeError("injected")

    with pytest.raises(RuntimeError, match="injected"):
        sql_jobs.run(job, failing)
    [segment] = Path(job.state).rglob("000000000002-00001.arrow")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    before = ids(database)
    with pytest.raises(SinkError, match=r"000000000002-00001\.arrow: is damaged"):
        sql_jobs.run(job)
    assert ids(database) == before
    segment.write_bytes(whole)
    sql_jobs.run(job)
    check_exactly_once(database, job)


def test_a_lost_state_directory_is_refused(database, job, tmp_path):
    sql_jobs.run(job)
    with pytest.raises(SinkError, match="belongs to another incarnation"):
        sql_jobs.run(dataclasses.replace(job, state=str(tmp_path / "new")))
    check_exactly_once(database, job)


def test_an_older_copy_of_the_state_directory_is_refused(database, job, tmp_path):
    sql_jobs.run(job)
    subprocess.run(["cp", "-r", job.state, tmp_path / "backup"], check=True)
    more = dataclasses.replace(job, rows=8_000)
    sql_jobs.run(more)
    with pytest.raises(SinkError, match=r"ahead of epoch \d+, the last that the state\s+directory knows"):
        sql_jobs.run(dataclasses.replace(more, state=str(tmp_path / "backup")))
    check_exactly_once(database, more)


def test_a_pipeline_is_checked_before_it_runs(database):
    table = pa.table({"id": [1], "took": pa.array([1], pa.duration("s"))})
    built = engine.Pipeline("p").read(sources.memory(table, id="t")).write(database.sink())
    with pytest.raises(PipelineError, match=r'write: column "took" is duration\[s\]; '):
        built.validate()
    with pytest.raises(PipelineError, match=r"write: \w+\(.*, table=events\) needs state=…, to be exactly-once"):
        engine.run(built)
    assert "exactly-once" in built.explain()
