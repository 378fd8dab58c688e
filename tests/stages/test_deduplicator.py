"""The public deduplicator: batches of any Arrow form, tokens, snapshots that stand alone, files that go away."""

import os
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_model import History

from engine.errors import CorruptState, InputError, PipelineError, StateError
from engine.stages.deduplicator import Deduplicator
from engine.storage import Storage


def batch_of(numbers):
    return pa.record_batch({"id": pa.array(numbers, pa.int64()), "other": pa.array([0] * len(numbers))})


def test_the_first_of_each_key_is_kept_and_nulls_are_counted():
    with Deduplicator("id") as seen:
        probe = seen.probe(batch_of([1, 2, 1, None, None]))
        assert probe.mask.to_pylist() == [True, True, False, True, True]
        assert (probe.fresh, probe.duplicates, probe.null_keys) == (2, 1, 2)
        seen.commit(probe.token)
        assert seen.probe(batch_of([2, 3])).mask.to_pylist() == [False, True]


steps = st.lists(
    st.tuples(st.sampled_from(["probe", "probe", "probe", "commit", "abort", "copy"]), st.lists(st.integers(0, 50))),
    max_size=25,
)


@settings(max_examples=60)
@given(steps, st.sampled_from([1, 10, 80, None]))
def test_tokens_and_snapshots_mean_what_they_say(steps, within):
    seen = Deduplicator("id", within=within)
    committed, now, pending = History(within), History(within), []
    for step, numbers in steps:
        if step == "probe":
            probe = seen.probe(batch_of(numbers))
            assert bytes(probe.mask.to_pylist()) == now.probe(numbers)
            pending.append((probe.token, numbers))
        elif step == "commit" and pending:
            token, numbers = pending.pop(0)
            committed.probe(numbers)
            seen.commit(token)
        elif step == "abort" and pending:
            keep = len(pending) // 2
            seen.abort(pending[keep][0])
            del pending[keep:]
            now = committed.copy()
            for _, numbers in pending:
                now.probe(numbers)
        elif step == "copy":
            snapshot = seen.snapshot()
            seen.close()
            seen = Deduplicator("id", within=within)
            seen.restore(snapshot)
            now, pending = committed.copy(), []
    seen.close()


def test_keys_go_to_disk_and_come_back_from_a_snapshot(tmp_path):
    numbers = np.arange(600_000)
    with Deduplicator("id", memory="4MiB", spill=tmp_path) as seen:
        for first in range(0, 600_000, 50_000):
            seen.commit(seen.probe(batch_of(numbers[first : first + 50_000])).token)
        statistics = seen.statistics()
        assert statistics.runs >= 1
        assert statistics.recent_bytes + statistics.filter_bytes <= 4 * 2**20
        snapshot = seen.snapshot()
        seen.restore(snapshot)
        assert seen.probe(batch_of(numbers[::100])).duplicates == 6_000
        with Deduplicator("id", memory="4MiB", spill=tmp_path) as other:
            other.restore(snapshot)
            assert other.statistics().rows == 600_000
            assert other.probe(batch_of(numbers[::100] + 600_000)).fresh == 6_000
            assert other.probe(batch_of(numbers[::50])).duplicates == 12_000
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50)
@given(st.data())
def test_a_damaged_snapshot_is_refused_and_nothing_has_changed(data):
    seen = Deduplicator("id", within=100)
    seen.commit(seen.probe(batch_of(range(20))).token)
    snapshot = bytearray(seen.snapshot())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(snapshot) * 8 - 1))
        snapshot[bit // 8] ^= 1 << bit % 8
    else:
        del snapshot[data.draw(st.integers(0, len(snapshot) - 1)) :]
    with pytest.raises((CorruptState, StateError)):
        seen.restore(bytes(snapshot))
    assert seen.probe(batch_of([5, 25])).mask.to_pylist() == [False, True]
    seen.close()


def test_a_snapshot_of_other_keys_or_another_window_is_refused():
    seen = Deduplicator("id", within=100)
    snapshot = seen.snapshot()
    with pytest.raises(StateError, match="of keys"):
        Deduplicator("other", within=100).restore(snapshot)
    with pytest.raises(StateError, match="another window"):
        Deduplicator("id", within=101).restore(snapshot)


def test_any_arrow_object_with_rows_goes_in():
    class Foreign:
        def __init__(self, batch):
            self.batch = batch

        def __arrow_c_array__(self, requested_schema=None):
            return self.batch.__arrow_c_array__(requested_schema)

    with Deduplicator(["id", "other"]) as seen:
        seen.probe(batch_of([1, 2]))
        assert seen.probe(Foreign(batch_of([2, 3]))).mask.to_pylist() == [False, True]
        assert seen.probe(pa.StructArray.from_arrays(batch_of([3, 4]).columns, ["id", "other"])).fresh == 1
        assert seen.probe(batch_of([])).mask.to_pylist() == []


def test_columns_may_change_places():
    with Deduplicator("id") as seen:
        seen.probe(batch_of([1]))
        assert seen.probe(batch_of([1, 2]).select(["other", "id"])).duplicates == 1


def test_what_cannot_be_probed_is_refused():
    with Deduplicator("event_id") as seen:
        with pytest.raises(InputError, match='no column "event_id"; did you mean "event_di"'):
            seen.probe(pa.record_batch({"event_di": [1], "ts": [2]}))
        with pytest.raises(InputError, match="batches one by one"):
            seen.probe(pa.table({"event_id": [1]}))
        with pytest.raises(InputError, match="expected a record batch"):
            seen.probe(pa.array([1]))


def test_a_doubled_column_is_refused_where_it_is_asked_for():
    doubled = pa.record_batch([pa.array([1]), pa.array([2]), pa.array([3])], ["id", "id", "other"])
    with Deduplicator("id") as seen, pytest.raises(InputError, match='column "id" is there 2 times; rename or select'):
        seen.probe(doubled)
    with Deduplicator("other") as seen:
        assert seen.probe(doubled).fresh == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ()}, "at least one key column"),
        ({"keys": 5}, "names of columns, found 5"),
        ({"keys": b"id"}, "names of columns, found b'id'"),
        ({"keys": ["id", 1]}, "names of columns, found 1"),
        ({"keys": ["id", "id"]}, "given twice"),
        ({"keys": "id", "spill": 5}, "spill= must be the path of a directory, found 5"),
        ({"keys": "id", "within": timedelta(1), "by": 5}, "by= must name a column, found 5"),
        ({"keys": "id", "within": 0}, "above zero"),
        ({"keys": "id", "within": True}, "above zero"),
        ({"keys": "id", "within": timedelta(0), "by": "ts"}, "above zero"),
        ({"keys": "id", "within": timedelta(1)}, "needs by="),
        ({"keys": "id", "within": 5, "by": "ts"}, "by= goes with"),
        ({"keys": "id", "memory": "plenty"}, "memory"),
        ({"keys": "id", "exact": "full"}, "exact= must be 'fingerprint' or 'bytes', found 'full'"),
    ],
)
def test_arguments_without_sense_are_refused(arguments, message):
    with pytest.raises(PipelineError, match=message):
        Deduplicator(**arguments)


def test_a_window_of_time_goes_by_the_column():
    with Deduplicator("id", within=timedelta(minutes=1), by="ts") as seen:
        times = pa.array([0, 59, 60, 200], pa.timestamp("s"))
        assert seen.probe(pa.record_batch({"ts": times, "id": [1, 1, 2, 1]})).mask.to_pylist() == [1, 0, 1, 1]


def test_tokens_out_of_order_and_a_closed_deduplicator_are_refused():
    seen = Deduplicator("id")
    first = seen.probe(batch_of([1])).token
    second = seen.probe(batch_of([2])).token
    with pytest.raises(ValueError, match="order"):
        seen.commit(second)
    seen.abort(first)
    with pytest.raises(ValueError, match="not open"):
        seen.abort(second)
    seen.close()
    seen.close()
    with pytest.raises(StateError, match="closed"):
        seen.probe(batch_of([1]))


@pytest.mark.parametrize("token", [1.5, 1.0, True, None, -1, 0, 2, 2**64, 2**64 + 1, "1", [1]])
def test_what_is_no_open_token_is_refused(token):
    with Deduplicator("id") as seen:
        open_one = seen.probe(batch_of([1])).token
        assert open_one == 1
        for take in (seen.commit, seen.abort):
            with pytest.raises(ValueError, match="is not open"):
                take(token)
        assert seen.probe(batch_of([1])).duplicates == 1
        seen.commit(open_one)


def test_a_token_from_before_a_restore_is_refused():
    with Deduplicator("id") as seen:
        snapshot = seen.snapshot()
        stale = seen.probe(batch_of([1])).token
        seen.restore(snapshot)
        later = seen.probe(batch_of([2])).token
        for take in (seen.commit, seen.abort):
            with pytest.raises(ValueError, match=f"token {stale} is not open"):
                take(stale)
        seen.commit(later)
        assert seen.probe(batch_of([1, 2])).mask.to_pylist() == [True, False]


def test_threads_may_share_one():
    ids = pa.record_batch({"id": pa.array(range(1000))})
    with Deduplicator("id") as seen, ThreadPoolExecutor(4) as threads:
        probes = list(threads.map(lambda _: seen.probe(ids), range(100)))
    assert sum(probe.fresh for probe in probes) == 1000


def texts(numbers):
    return pa.record_batch({"id": [f"a key of more than sixteen bytes {number}" for number in numbers], "n": numbers})


@pytest.mark.parametrize("keys", ["id", ["id", "n"]])
def test_whole_keys_go_to_disk_and_come_back_from_a_snapshot(tmp_path, keys):
    with Deduplicator(keys, memory="2MiB", spill=tmp_path, exact="bytes") as seen:
        for first in range(0, 100_000, 10_000):
            seen.commit(seen.probe(texts(range(first, first + 10_000))).token)
        statistics = seen.statistics()
        assert statistics.key_disk_bytes > 2 * 2**20
        assert statistics.recent_bytes + statistics.index_bytes + statistics.key_bytes <= 2 * 2**20
        pending = seen.probe(texts([100_000]))
        with Deduplicator(keys, memory="2MiB", spill=tmp_path, exact="bytes") as other:
            other.restore(seen.snapshot())
            assert other.probe(texts(range(0, 100_000, 100))).duplicates == 1_000
            assert other.probe(texts(range(100_000, 100_100))).fresh == 100
        seen.abort(pending.token)
        with pytest.raises(StateError, match="another exact="):
            Deduplicator(keys, spill=tmp_path).restore(seen.snapshot())
    assert list(tmp_path.iterdir()) == []


def test_whole_ids_cost_nothing_more():
    with Deduplicator("id", exact="bytes") as seen:
        seen.commit(seen.probe(batch_of(range(1_000))).token)
        seen.restore(seen.snapshot())
        assert seen.probe(batch_of(range(500, 1_500))).duplicates == 500
        assert seen.statistics().key_bytes == 0


def at_rest(seen, directory):
    """The files when a poll begins nothing any more: what a merge makes may be merged again, and what it read goes."""
    seen._background.join()
    files = None
    while files != (files := sorted(directory.rglob("*"))):
        seen._window._poll()
        seen._background.join()
    return files


def test_a_forked_child_closes_at_once_and_leaves_the_files(tmp_path, monkeypatch):
    gate, begun, turn_taken, ended = (threading.Event() for _ in range(4))
    create = Storage.create

    def held(storage, path, **options):
        begun.set()
        gate.wait()
        return create(storage, path, **options)

    def take_turn(seen):
        with seen._turn:
            turn_taken.set()
            ended.wait()

    with Deduplicator("id", memory="2MiB", spill=tmp_path) as seen:
        for first in range(0, 100_000, 1_000):
            seen.commit(seen.probe(batch_of(range(first, first + 1_000))).token)
        files = at_rest(seen, tmp_path)
        assert len(files) > 1
        monkeypatch.setattr(Storage, "create", held)
        rows = 100_000
        while not seen._window._runs.sealing:
            seen.commit(seen.probe(batch_of(range(rows, rows + 1_000))).token)
            rows += 1_000
        begun.wait()
        other = threading.Thread(target=take_turn, args=(seen,))
        other.start()
        turn_taken.wait()
        answer, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                seen.close()
                with pytest.raises(StateError, match=f"belongs to process {os.getppid()}"):
                    seen.probe(batch_of([1]))
                os.write(told, b"closed")
            finally:
                os._exit(0)
        os.close(told)
        if not select.select([answer], [], [], 20)[0]:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        gate.set()
        ended.set()
        other.join()
        assert os.read(answer, 6) == b"closed"
        os.close(answer)
        assert set(files) <= set(tmp_path.rglob("*"))
        assert seen.probe(batch_of(range(0, rows, 100))).duplicates == rows // 100
    assert list(tmp_path.iterdir()) == []
