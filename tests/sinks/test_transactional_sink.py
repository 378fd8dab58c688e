"""The sinks of databases by their contract: invisible until the commit, once however often it is called, and never by
guess.
"""

import json
import os
import re
import threading

import pyarrow as pa
import pytest
from databases import ids, marks
from sink_runs import INCARNATION, OTHER, CommitLog, drive, files_below, opened, origin, staged, token

from engine.errors import SinkError
from engine.progress import Token
from engine.sink import ChecksSchema, Guarantee, Sink, StagesInState, Writer
from engine.sinks.segments import Segments

ROWS = pa.record_batch({"id": pa.array([1, 2, 3]), "name": ["a", None, "ü🎉"]})


def batch(*numbers):
    return pa.record_batch({"id": pa.array(numbers, pa.int64()), "name": [f"n{number}" for number in numbers]})


@pytest.fixture
def make(database, tmp_path):
    """``make(epoch=…)``: a sink that was opened after that commit; another start of the same pipeline."""

    def build(*, epoch=0, state="state", schema=ROWS.schema, table="events", mode="error", **options):
        sink = database.sink(table, mode)
        sink.directory = str(tmp_path / state / table)
        return opened(sink, schema, epoch=epoch, **options)

    return build


def committed(sink, *batches, epoch=1, **options):
    """Commit an epoch with one batch a partition; its handles, as the COMMIT holds them."""
    handles = [
        staged(sink, rows, epoch=epoch, partition=partition, **options) for partition, rows in enumerate(batches)
    ]
    handles = json.loads(json.dumps(handles))
    sink.commit(handles)
    return handles


def test_the_contract(make, database):
    sink = make()
    assert isinstance(sink, Sink)
    assert isinstance(sink, StagesInState)
    assert isinstance(sink, ChecksSchema)
    assert isinstance(sink.writer(0, token(1, sink)), Writer)
    assert sink.guarantee is Guarantee.EXACTLY_ONCE
    assert sink.name.startswith(f"{database.kind}(")
    assert sink.name.endswith(", table=events)")
    assert "secret" not in sink.name


def test_rows_are_invisible_until_the_commit_and_then_in_the_order_of_partitions(make, database):
    sink = make()
    second = staged(sink, [batch(5), batch(6)], partition=1)
    first = staged(sink, [batch(1, 2), batch(3)], partition=0)
    assert ids(database) == []
    sink.commit([second, None, first])
    assert ids(database) == [1, 2, 3, 5, 6]
    assert marks(database) == [(INCARNATION, "events", 1)]


def test_a_commit_that_is_repeated_changes_nothing(make, database):
    sink = make()
    handles = committed(sink, batch(1), batch(2))
    for _ in range(3):
        sink.commit(handles)
    again = make(epoch=1)
    again.commit(handles)
    again.discard_after(token(1, again))
    committed(again, batch(3), epoch=2)
    assert ids(database) == [1, 2, 3]


def test_an_epoch_without_rows_commits_nothing(make, database):
    sink = make()
    writer = sink.writer(0, token(1, sink))
    assert writer.prepare() is None
    sink.commit([None])
    sink.commit([])
    assert marks(database) == [(INCARNATION, "events", 0)]
    committed(make(epoch=3), batch(1), epoch=4)
    assert ids(database) == [1]


def test_killed_between_prepare_and_commit(make, database):
    handles = json.loads(json.dumps([staged(make(), batch(1, 2)), staged(make(), batch(3), partition=1)]))
    sink = make(epoch=1)
    sink.commit(handles)
    sink.discard_after(token(1, sink))
    assert ids(database) == [1, 2, 3]


def test_segments_go_with_their_commit_and_one_name_stays_without_rows(make, tmp_path):
    sink = make()
    for epoch in (1, 2, 4):
        committed(sink, batch(epoch), batch(epoch), epoch=epoch)
        assert files_below(tmp_path / "state") == [f"events/{epoch:012}-00000.arrow"]
        assert os.path.getsize(tmp_path / "state" / f"events/{epoch:012}-00000.arrow") == 4


def test_later_epochs_are_discarded_and_files_of_others_left_alone(make, database, tmp_path):
    sink = make()
    committed(sink, batch(1))
    staged(sink, batch(2), epoch=2)
    (tmp_path / "state" / "events" / "notes.txt").write_text("mine")
    again = make(epoch=1)
    again.discard_after(token(1, again))
    assert files_below(tmp_path / "state") == ["events/000000000001-00000.arrow", "events/notes.txt"]
    committed(again, batch(3), epoch=3)
    assert ids(database) == [1, 3]


def test_an_empty_segment_is_of_no_epoch(make, database, tmp_path):
    """A process leaves one that lost the state directory on its way into the call. Later epochs had no rows."""
    committed(make(), batch(1))
    stray = tmp_path / "state" / "events" / "000000000002-00000.arrow"
    stray.touch()
    again = make(epoch=4)
    again.discard_after(token(4, again))
    assert not stray.exists()
    committed(again, batch(5), epoch=5)
    assert ids(database) == [1, 5]


def test_a_writer_that_gives_up_leaves_nothing(make, tmp_path):
    sink = make()
    writer = sink.writer(0, token(1, sink))
    writer.write(batch(1), origin=None)
    writer.abort()
    writer.abort()
    assert files_below(tmp_path / "state") == []
    with pytest.raises(SinkError, match="has ended"):
        writer.write(batch(1), origin=None)


def refusal(sink, handles):
    """The error of a commit, None where there is none."""
    try:
        sink.commit(handles)
    except SinkError as error:
        return error
    return None


def test_a_damaged_segment_is_named_and_nothing_of_the_epoch_inserted(make, database, tmp_path):
    sink = make()
    handles = [staged(sink, batch(1)), staged(sink, batch(*range(50)), partition=1)]
    path = tmp_path / "state" / "events" / "000000000001-00001.arrow"
    whole = path.read_bytes()
    flipped = {"first": 0, "middle": len(whole) // 2, "last": len(whole) - 1}
    damages = {name: whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for name, at in flipped.items()}
    damages |= {"short": whole[:-1], "long": whole + b"\0", "gone": None}
    again = make(epoch=1)
    for damage, damaged in damages.items():
        path.unlink() if damaged is None else path.write_bytes(damaged)
        error = refusal(again, handles)
        assert error is not None, damage
        assert re.search(r"000000000001-00001\.arrow: (is|has) ", str(error)), damage
        assert error.partition == 1, damage
        assert ids(database) == [], damage
        assert marks(database) == [(INCARNATION, "events", 0)], damage
    path.write_bytes(whole)
    again.commit(handles)
    assert ids(database) == [1, *range(50)]


def test_a_commit_that_breaks_in_the_middle_leaves_nothing(make, database, monkeypatch):
    sink = make()
    handles = [staged(sink, batch(partition), partition=partition) for partition in range(3)]
    reading, reads = Segments.reading, []

    def breaking(self, handle):
        reads.append(handle)
        if len(reads) == 3:
            raise OSError(5, "gone in the middle")
        return reading(self, handle)

    monkeypatch.setattr(Segments, "reading", breaking)
    with pytest.raises(SinkError, match="gone in the middle") as raised:
        sink.commit(handles)
    assert isinstance(raised.value.__cause__, OSError)
    assert ids(database) == []
    sink.commit(handles)
    assert ids(database) == [0, 1, 2]
    assert len(reads) == 6


@pytest.mark.usefixtures("impatient")
def test_a_busy_database_is_an_error_that_may_pass(make, database):
    sink = make()
    handles = [staged(sink, batch(1))]
    with database.blocked():
        with pytest.raises(SinkError, match="epoch 1 cannot be committed") as raised:
            sink.commit(handles)
        assert isinstance(raised.value.__cause__, OSError)
    sink.commit(handles)
    assert ids(database) == [1]


@pytest.mark.usefixtures("impatient")
def test_a_database_that_is_held_when_a_run_begins(make, database):
    committed(make(), batch(1))
    with database.blocked(), pytest.raises(SinkError) as raised:
        make(epoch=1)
    assert str(raised.value).startswith(f"{database.kind}(")
    assert "table=events): cannot be opened: " in str(raised.value)
    assert "End what holds the database, another process or a transaction, and run again." in str(raised.value)
    make(epoch=1)


def test_without_a_directory_nothing_is_opened(database):
    with pytest.raises(SinkError, match="needs state="):
        opened(database.sink(), ROWS.schema)


# -- whose the table is --


def test_a_table_of_somebody_else_is_refused_and_taken_by_append(make, database):
    database.execute(f"CREATE TABLE events (name {database.text}, id BIGINT, note {database.text})")
    database.execute("INSERT INTO events VALUES ('theirs', 7, 'kept')")
    with pytest.raises(
        SinkError, match=r'table events: there is a table that this pipeline did not make.*\n.*"append"'
    ):
        make()
    committed(make(mode="append"), ROWS)
    assert database.execute("SELECT id, name, note FROM events") == [
        (7, "theirs", "kept"),
        (1, "a", None),
        (2, None, None),
        (3, "ü🎉", None),
    ]
    again = make(epoch=1, mode="append")
    committed(again, batch(4), epoch=2)
    assert ids(database) == [7, 1, 2, 3, 4]


def test_another_incarnation_is_refused_and_two_may_append(make, database):
    committed(make(), batch(1))
    with pytest.raises(SinkError, match=f"belongs to another incarnation .{INCARNATION}, at epoch 1"):
        make(state="other", incarnation=OTHER)
    other = make(state="other", incarnation=OTHER, mode="append")
    committed(other, batch(2), incarnation=OTHER)
    committed(make(epoch=1), batch(3), epoch=2)
    assert ids(database) == [1, 2, 3]
    assert marks(database) == [(INCARNATION, "events", 2), (OTHER, "events", 1)]


def test_a_dropped_table_is_not_made_again(make, database):
    committed(make(), batch(1))
    database.execute("DROP TABLE events")
    with pytest.raises(SinkError, match="the table is gone; rows up to epoch 1"):
        make(epoch=1)


def test_who_takes_the_name_of_a_dropped_table_does_not_take_over_its_mark(make, database):
    committed(make(), batch(1))
    database.execute("DROP TABLE events")
    committed(make(state="other", incarnation=OTHER), batch(2), incarnation=OTHER)
    assert ids(database) == [2]
    with pytest.raises(SinkError, match="has no mark of this pipeline, which has committed up to epoch 1"):
        make(epoch=1)


def test_a_view_is_refused(make, database):
    database.execute("CREATE VIEW events AS SELECT 1 AS id, 'x' AS name")
    with pytest.raises(SinkError, match="is a view"):
        make(mode="append")


def test_a_column_that_nobody_can_insert_into_is_refused(make, database):
    stored = "" if database.kind == "duckdb" else "STORED"
    database.execute(f"CREATE TABLE events (id BIGINT, name {database.text} GENERATED ALWAYS AS ('x') {stored})")
    with pytest.raises(SinkError, match=r'no column "name"|generated column'):
        make(mode="append")
    assert ids(database) == []


def test_a_table_of_marks_that_is_not_ours_is_refused(make, database):
    database.execute("CREATE TABLE engine_commits (id BIGINT)")
    with pytest.raises(SinkError, match="has other columns than incarnation"):
        make()


# -- columns that do not fit --


def test_rows_of_another_schema_are_refused_before_anything_is_touched(make, database):
    committed(make(), batch(1))
    other = pa.schema([("id", pa.float64()), ("more", pa.int64()), ("name", pa.string())])
    with pytest.raises(SinkError, match="the table does not fit") as raised:
        make(epoch=1, schema=other)
    assert 'column "id" is ' in str(raised.value)
    assert 'the table has no column "more"' in str(raised.value)
    assert ids(database) == [1]
    assert marks(database) == [(INCARNATION, "events", 1)]


def test_a_column_that_the_table_needs(make, database):
    database.execute(
        f"CREATE TABLE events (id BIGINT, name {database.text}, n BIGINT NOT NULL, d BIGINT NOT NULL DEFAULT 3)"
    )
    with pytest.raises(SinkError, match='no column "n", which allows no nulls and has no default') as raised:
        make(mode="append")
    assert '"d"' not in str(raised.value)


def test_nulls_for_a_column_that_allows_none_are_found_before_they_are_committed(make, database):
    database.execute(f"CREATE TABLE events (id BIGINT, name {database.text} NOT NULL)")
    sink = make(mode="append")
    with pytest.raises(SinkError, match='column "name" holds nulls'):
        staged(sink, ROWS)
    committed(sink, batch(1))
    assert ids(database) == [1]


# -- marks that are elsewhere --


def test_a_database_ahead_of_the_state_is_refused(make, database):
    sink = make()
    committed(sink, batch(1))
    committed(sink, batch(2), epoch=2)
    with pytest.raises(SinkError, match="at epoch 2, ahead of epoch 1, the last that the state directory knows"):
        make(epoch=1)
    assert ids(database) == [1, 2]


def test_a_database_behind_the_state_is_refused(make, database):
    sink = make()
    committed(sink, batch(1))
    committed(sink, batch(2), epoch=2)
    database.execute("DELETE FROM events WHERE id = 2")
    database.execute("UPDATE engine_commits SET epoch = 1")
    with pytest.raises(SinkError, match=r"is at epoch 1; this pipeline has committed up to epoch 2.*\n.*database"):
        make(epoch=2)


def test_a_database_behind_a_commit_that_was_said_to_be_final_is_found_by_recovery(make, database):
    staged(make(), batch(1))
    sink = make(epoch=1)
    with pytest.raises(SinkError, match="is at epoch 0; this pipeline has committed up to epoch 1"):
        sink.discard_after(token(1, sink))


def test_a_database_that_was_lost_is_refused(make, database):
    committed(make(), batch(1))
    database.execute("DROP TABLE events")
    database.execute("DROP TABLE engine_commits")
    with pytest.raises(SinkError, match="has no mark of this pipeline, which has committed up to epoch 1"):
        make(epoch=1)
    assert database.sink()._target.transact(lambda session: session.columns("engine_commits")) is None


def test_lost_segments_are_noticed(make, tmp_path):
    committed(make(), batch(1))
    (tmp_path / "state" / "events" / "000000000001-00000.arrow").unlink()
    with pytest.raises(SinkError, match="segments below the state directory end at epoch 0"):
        make(epoch=1)


def test_a_copy_of_the_state_cannot_commit_beside_the_first(make, database, tmp_path):
    first, second = make(), make(state="copy")
    committed(first, batch(1))
    handle = staged(second, batch(2))
    handle["term"] = "another0"
    with pytest.raises(SinkError, match="is at epoch 1 of start 00000000deadbeef; epoch 0 was expected"):
        second.commit([handle])
    handle = staged(second, batch(2), epoch=5)
    with pytest.raises(SinkError, match="is at epoch 1; epoch 0 was expected, to commit epoch 5: something else moved"):
        second.commit([handle])
    second = database.sink()
    second.directory = str(tmp_path / "state" / "events")
    with pytest.raises(SinkError, match="committed by another start of this pipeline"):
        second.open(
            ROWS.schema, token=Token(INCARNATION, 1, "another0", second.name), partitions=1, memory_bytes=1 << 20
        )
    assert ids(database) == [1]


def test_a_mark_that_is_gone_at_the_commit(make, database):
    sink = make()
    handle = staged(sink, batch(1))
    database.execute("DELETE FROM engine_commits")
    with pytest.raises(SinkError, match="the mark of this pipeline is gone"):
        sink.commit([handle])
    assert ids(database) == []


# -- beside others --


def test_several_sinks_into_one_database_do_not_disturb_each_other(make, database, tmp_path):
    make(table="first")
    chunks = [[batch(*range(number * 10, number * 10 + 9)), batch(number * 10 + 9)] for number in range(6)]
    failures = []

    def work(table):
        sink = database.sink(table)
        sink.directory = str(tmp_path / "state" / table)
        try:
            drive(sink, CommitLog(), chunks)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"table{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(4):
        assert ids(database, f"table{number}") == list(range(60))
    assert [(table, epoch) for _, table, epoch in marks(database)] == [
        ("first", 0),
        *((f"table{number}", 6) for number in range(4)),
    ]


def test_what_a_writer_took_is_in_its_segment(make):
    """Rather than in memory: that nobody counts, and there may be a thousand writers."""
    sink = make()
    writer = sink.writer(0, token(1, sink))
    sizes = []
    for start in range(3):
        writer.write(batch(*range(start * 100, start * 100 + 100)), origin=origin())
        [segment] = files_below(sink.directory)
        sizes.append(os.path.getsize(os.path.join(sink.directory, segment)))
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    writer.abort()
