"""Windows that compare whole keys, with fingerprints so short that keys collide all the time, against the model."""

import json
import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_model import SEED, Deferred, History, Inline, MortalStorage, WatchedStorage, left_by, small_window

from engine.errors import CorruptState, StateError
from engine.stages.key_window import KeyWindow
from engine.storage import Storage


def key_of(number):
    return f"key {number:05} of a size that is told by the number: {'x' * (number % 40)}"


def batch_of(numbers, kind=None):
    return pa.record_batch({"id": pa.array([key_of(n) for n in numbers], kind or pa.string())})


def exact_window(directory, *, within, bits=4, **options):
    return small_window(directory, within=within, exact="bytes", fingerprint_bits=bits, **options)


def probe(window, numbers):
    """Mark and commit; the mask."""
    found = window.probe_batch(batch_of(numbers))
    assert found.fresh + found.duplicates == len(numbers)
    return found.selection


steps = st.lists(
    st.tuples(
        st.sampled_from(["probe", "probe", "probe", "commit", "commit", "commit", "abort", "restart", "background"]),
        st.lists(st.integers(0, 40), min_size=4, max_size=30),
    ),
    min_size=8,
    max_size=25,
)


@settings(max_examples=150)
@given(
    steps,
    st.sampled_from([1, 7, 40, 200, None]),
    st.sampled_from([0, 1, 3, 6]),
    st.sampled_from([3_000, 8_000, 10**6]),
    st.booleans(),
)
def test_colliding_keys_are_told_apart_whatever_happens(tmp_path_factory, steps, within, bits, memory_bytes, durable):
    directory = tmp_path_factory.mktemp("window")
    background = Deferred()
    options = {"within": within, "bits": bits, "memory_bytes": memory_bytes, "durable": durable}
    window = exact_window(directory, background=background, **options)
    committed, now, pending = History(within), History(within), []
    for number, (step, numbers) in enumerate(steps):
        if step == "probe":
            token, found = window.probe_open(batch_of(numbers))
            assert found.selection == now.probe(numbers)
            pending.append((token, numbers))
        elif step == "commit" and pending:
            token, numbers = pending.pop(0)
            committed.probe(numbers)
            window.commit(token)
        elif step == "abort" and pending:
            keep = len(pending) // 2
            window.abort(pending[keep][0])
            del pending[keep:]
            now = committed.copy()
            for _, numbers in pending:
                now.probe(numbers)
        elif step == "background":
            background.take_steps(len(numbers))
        elif step == "restart":
            before = window
            if durable:
                state = json.loads(json.dumps(window.snapshot()))
                window.release(state)
                window.close()
                window = exact_window(directory, background=background, **options)
                window.restore(state)
            else:
                state, contents = window.contents()
                window = exact_window(directory / str(number), background=background, **options)
                window.load(json.loads(json.dumps(state)), contents)
                before.close()
            now, pending = committed.copy(), []
    window.close()


def long_job(directory, within, *, epochs=30, rows=100, **options):
    chance = random.Random(3)
    window, history = exact_window(directory, within=within, **options), History(within)
    for epoch in range(1, epochs + 1):
        numbers = [chance.randrange(epoch * rows) for _ in range(rows)]
        assert probe(window, numbers) == history.probe(numbers)
    return window, history


@pytest.mark.parametrize(("within", "bits"), [(150, 9), (1_200, 11), (None, 12)])
@pytest.mark.parametrize("durable", [False, True])
def test_keys_are_compared_in_memory_in_files_and_behind_runs(tmp_path, within, bits, durable):
    window, _ = long_job(tmp_path, within, durable=durable, memory_bytes=12_000, bits=bits)
    statistics = window.statistics()
    assert window._exact.collisions > 100
    assert statistics.exact_hits_recent > 0
    assert statistics.key_disk_bytes > 0
    assert 0 < window._exact.store.page_bytes <= 12_000 * 5 / 8 <= statistics.key_disk_bytes
    if within is None:
        assert statistics.exact_hits_runs > 0
    window.close()


def test_without_collisions_every_row_is_probed_once(tmp_path):
    window, _ = long_job(tmp_path, None, bits=128)
    assert window._exact.collisions == 0
    probes = []
    inner = window.probe_ids
    window.probe_ids = lambda *args, **options: probes.append(1) or inner(*args, **options)
    probe(window, range(500))
    assert len(probes) == 1
    window.close()


@pytest.mark.parametrize("exact", ["fingerprint", "bytes"])
def test_only_whole_keys_tell_colliding_keys_apart(tmp_path, exact):
    window = small_window(tmp_path, within=None, exact=exact)
    bits = exact_window(tmp_path / "few", within=None, bits=0)
    assert probe(window, [1, 2, 1]) == probe(bits, [1, 2, 1]) == b"\1\1\0"
    assert probe(bits, [2, 1, 3]) == b"\0\0\1"
    window.close()
    bits.close()


def test_a_key_that_became_the_owner_in_a_probe_that_was_aborted_did_not(tmp_path):
    """The window of time moves in the aborted probe, key 1 is forgotten there, and key 2 takes its fingerprint."""

    def rows(numbers, seconds):
        times = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=s) for s in seconds]
        return pa.record_batch({"id": batch_of(numbers).column(0), "at": pa.array(times, pa.timestamp("us", "UTC"))})

    window = KeyWindow(
        [0],
        by=1,
        within=timedelta(seconds=10),
        memory_bytes=10**6,
        storage=Storage(),
        directory=str(tmp_path),
        seed=SEED,
        durable=False,
        background=Inline(),
        exact="bytes",
        fingerprint_bits=0,
    )
    window.probe_batch(rows([1], [0]))
    token, found = window.probe_open(rows([1, 3, 2, 1], [1, 1, 60, 60]))
    assert list(found.selection) == [0, 1, 1, 1]
    window.abort(token)
    assert list(window.probe_batch(rows([1, 2, 3], [2, 3, 3])).selection) == [0, 1, 1]
    assert list(window.probe_batch(rows([3, 2, 1], [4, 4, 4])).selection) == [0, 0, 0]
    window.close()


def test_whole_ids_keep_no_keys_and_meet_equal_keys_of_another_form(tmp_path):
    window = exact_window(tmp_path, within=None, bits=0)
    whole = [bytes([n]) * 16 for n in range(3)]
    window.probe_batch(pa.record_batch({"id": pa.array(whole, pa.binary(16))}))
    assert window.statistics().key_bytes == 0
    window.probe_batch(pa.record_batch({"id": pa.array([1, 2], pa.int64())}))
    assert window.statistics().key_bytes == 0
    texts = exact_window(tmp_path / "texts", within=None, bits=128)
    texts.probe_batch(pa.record_batch({"id": pa.array(whole, pa.binary(16))}))
    found = texts.probe_batch(pa.record_batch({"id": pa.array([whole[1], b"other", b"longer than sixteen bytes"])}))
    assert list(found.selection) == [0, 1, 1]
    found = texts.probe_batch(pa.record_batch({"id": pa.array([whole[2], b"x" * 16], pa.binary(16))}))
    assert list(found.selection) == [0, 1]
    found = texts.probe_batch(pa.record_batch({"id": pa.array([b"x" * 16, b"other", whole[0]])}))
    assert list(found.selection) == [0, 0, 0]
    texts.close()
    window.close()


def test_nulls_and_rows_not_wanted_have_no_key(tmp_path):
    window = exact_window(tmp_path, within=None, bits=0)
    batch = pa.record_batch({"id": pa.array(["aaa", None, "bbb", "aaa", "ccc", None])})
    found = window.probe_batch(batch, bytes([1, 1, 0, 1, 1, 0]))
    assert list(found.selection) == [1, 1, 0, 0, 1, 0]
    assert window.probe_batch(batch.slice(2)).fresh == 1
    window.close()


@pytest.mark.parametrize("kind", ["large", "view", "dictionary", "binary"])
def test_equal_keys_meet_in_every_form(tmp_path, kind):
    types = {
        "large": pa.large_string(),
        "view": pa.string_view(),
        "dictionary": pa.dictionary(pa.int8(), pa.string()),
        "binary": pa.binary(),
    }
    window = exact_window(tmp_path, within=None, bits=1)
    window.probe_batch(batch_of(range(10)))
    texts = [key_of(n) for n in range(5, 15)]
    other = pa.record_batch({"id": pa.array(texts).cast(types[kind])})
    assert list(window.probe_batch(other).selection) == [0] * 5 + [1] * 5
    window.close()


def run_epochs(window, history, epochs, committed):
    for number, batches in epochs:
        for numbers in batches:
            assert probe(window, numbers) == history.probe(numbers)
        state = json.loads(json.dumps(window.snapshot()))
        committed[:] = [(number + 1, state, history.copy())]
        window.release(state)


@pytest.mark.parametrize("within", [120, None])
def test_a_kill_between_any_two_file_operations_loses_and_repeats_nothing(tmp_path, within):
    chance = random.Random(1)
    epochs = [
        (number, [[chance.randrange(60 * (number + 1)) for _ in range(40)] for _ in range(2)]) for number in range(4)
    ]
    committed, options = [(0, None, History(within))], {"within": within, "bits": 7, "memory_bytes": 9_000}
    watched = WatchedStorage(tmp_path / "whole", committed)
    run_epochs(exact_window(tmp_path / "whole", storage=watched, **options), History(within), epochs, committed)
    for number, (files, (epoch, state, history)) in enumerate(watched.deaths):
        directory = tmp_path / str(number)
        left_by(files, directory)
        committed[:] = [(epoch, state, history)]
        survivor = exact_window(directory, storage=MortalStorage(), **options)
        if state is not None:
            survivor.restore(state)
        run_epochs(survivor, history.copy(), epochs[epoch:], committed)
        final = committed[0][1]
        survivor.close()
        named = {entry["file"] for entry in final["segments"] + final["runs"] + final["exact"]["keys"]["segments"]}
        assert {path.name for path in directory.iterdir() if path.suffix != ".tmp"} == named
    print(f"{watched.taken} kills, {len(watched.deaths)} that differ")
    assert watched.taken > 40
    assert len(watched.deaths) > watched.taken / 2


def test_files_that_fell_out_of_the_window_are_deleted(tmp_path):
    for durable in (True, False):
        window, history = long_job(tmp_path / str(durable), 100, durable=durable, memory_bytes=6_000, bits=8)
        window._exact.store._log._segment_bytes = 4_000
        for first in range(10_000, 12_000, 50):
            assert probe(window, range(first, first + 50)) == history.probe(range(first, first + 50))
            if durable:
                window.release(window.snapshot())
        assert window.statistics().key_disk_bytes < 40_000
        files = [path for path in (tmp_path / str(durable)).iterdir() if path.name.startswith("keys-")]
        assert sum(path.stat().st_size for path in files) == window.statistics().key_disk_bytes
        window.close()


def ask_restored(directory, state):
    window = exact_window(directory, within=None, bits=128)
    window.restore(state)
    window.probe_batch(batch_of(range(300)))


@settings(max_examples=80)
@given(st.data())
def test_a_damaged_file_of_keys_is_noticed(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("damaged")
    window = exact_window(directory, within=None, bits=128)
    probe(window, range(300))
    state = window.snapshot()
    window.close()
    (path,) = directory.glob("keys-*")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    with pytest.raises((CorruptState, StateError), match=path.name):
        ask_restored(directory, state)
    assert path.read_bytes() == content


def test_a_missing_file_of_keys_and_another_exactness_are_refused(tmp_path):
    window = exact_window(tmp_path, within=None)
    probe(window, range(10))
    state = window.snapshot()
    window.close()
    with pytest.raises(StateError, match="another exact="):
        small_window(tmp_path, within=None).restore(state)
    (path,) = tmp_path.glob("keys-*")
    path.unlink()
    with pytest.raises(CorruptState, match="missing"):
        exact_window(tmp_path, within=None).restore(state)


def test_a_probe_that_fails_leaves_the_keys_as_they_were(tmp_path):
    window, history = long_job(tmp_path, None, memory_bytes=9_000, bits=128)
    inner, window._exact.store.compare = window._exact.store.compare, None
    with pytest.raises(TypeError):
        window.probe_open(batch_of(range(40)))
    window._exact.store.compare = inner
    assert probe(window, range(0, 4_000, 9)) == history.probe(range(0, 4_000, 9))
    window.close()
