"""The right answers that contests are held to: they notice every kind of wrong work, and agree with a plain model."""

import importlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from engine.testing.workload import generate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    """Imports a module of the benchmarks by name, as they import each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def partitions():
    """The rows of a stream, each once, in two partitions by key."""
    events = pa.Table.from_batches(generate(3_000, seed=5, keys=50, max_distance=300))
    kept = events.filter(pc.field("delivery") == 0)
    first = pc.less(kept["key"], "user-000025")
    return [kept.filter(first), kept.filter(pc.invert(first))]


def column_changed(table, name, change):
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, change(table[name]))


def swapped(column):
    """The first and the last value, which differ, change places."""
    assert column[0] != column[-1]
    order = np.arange(len(column))
    order[[0, -1]] = order[[-1, 0]]
    return column.take(pa.array(order))


def test_partitions_and_forms_do_not_count(harness, partitions):
    outcome_of = harness("job_outcome").outcome_of
    right = outcome_of(partitions)
    assert (right.rows, right.keys_torn, right.breaks) == (2_700, 0, 0)
    assert outcome_of([pa.concat_tables(partitions)]) == right
    views = [table.cast(table.schema.set(1, pa.field("key", pa.string_view()))) for table in partitions]
    assert outcome_of(views) == right
    assert (
        outcome_of([column_changed(table, "event_id", lambda ids: ids.cast(pa.binary())) for table in views]) == right
    )


@pytest.mark.parametrize("name", ["event_id", "key", "seq", "ts", "amount", "payload"])
def test_two_values_that_changed_places_are_noticed(harness, partitions, name):
    outcome_of = harness("job_outcome").outcome_of
    wrong = [column_changed(partitions[0], name, swapped), partitions[1]]
    assert outcome_of(wrong).digest != outcome_of(partitions).digest


def test_lost_doubled_torn_and_disordered_rows_are_noticed(harness, partitions):
    outcome_of = harness("job_outcome").outcome_of
    right, (left, other) = outcome_of(partitions), partitions
    assert outcome_of([left.slice(1), other]).rows == right.rows - 1
    doubled = outcome_of([pa.concat_tables([left, left.slice(0, 1)]), other])
    assert doubled.digest != right.digest
    assert doubled.breaks == 1
    torn = outcome_of([left.slice(0, 700), pa.concat_tables([left.slice(700), other])])
    assert torn.digest == right.digest
    assert torn.keys_torn > 0
    backwards = outcome_of([left.take(pa.array(np.arange(len(left))[::-1])), other])
    assert (backwards.digest, backwards.keys_torn) == (right.digest, 0)
    assert backwards.breaks > 0


def test_files_are_read_by_partition(harness, partitions, tmp_path):
    outcome = harness("job_outcome")
    for number, table in enumerate(partitions):
        half = len(table) // 2
        for part, rows in enumerate((table.slice(0, half), table.slice(half))):
            pq.write_table(rows, tmp_path / f"{part}-{number}.parquet")
    (tmp_path / "notes.txt").write_text("not rows")
    assert outcome.outcome_of_files(tmp_path) == outcome.outcome_of(partitions)


@pytest.mark.parametrize("kind", ["binary", "text"])
@pytest.mark.parametrize("duplicates_percent", [1, 10, 50])
@pytest.mark.parametrize("within", [2_000, 7_777])
def test_the_stream_of_ids_agrees_with_a_dictionary(harness, kind, duplicates_percent, within):
    stream = harness("id_stream").IdStream(within, duplicates_percent, kind)
    last, position, late = {}, 0, 0
    for start in range(0, 30_000, 3_500):
        batch, kept = stream.batch(start, start + 3_500)
        for event, keep in zip(batch.column(0).to_pylist(), kept, strict=True):
            seen = last.get(event)
            assert keep == (seen is None or seen < position - within)
            late += seen is not None and keep
            last[event] = position
            position += 1
    assert late > 10, "some rows come after their window"
    share = 1 - sum(stream.batch(10_000, 20_000)[1]) / 10_000
    assert share == pytest.approx(duplicates_percent / 100, abs=0.002)
