"""The key window in memory, on disk and across restarts and kills, against the plain meaning of dedup."""

import json
import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_model import (
    SEED,
    Deferred,
    History,
    Inline,
    Killed,
    MortalStorage,
    WatchedStorage,
    id_of,
    ids_of,
    left_by,
    probe,
    small_window,
)

from engine.background import BackgroundThread
from engine.errors import InputError, StateError
from engine.stages.id_runs import CROWD
from engine.stages.key_window import KeyWindow
from engine.storage import Storage

EPOCHS = st.lists(st.lists(st.lists(st.integers(0, 400), max_size=60), max_size=4), min_size=1, max_size=12)


BACKGROUNDS = {"inline": Inline, "deferred": Deferred, "thread": lambda: BackgroundThread("test-runs")}


@settings(max_examples=120)
@given(
    EPOCHS,
    st.sampled_from([1, 20, 150, 600, None]),
    st.sampled_from([2, 32]),
    st.lists(st.booleans(), min_size=12),
    st.sampled_from(sorted(BACKGROUNDS)),
    st.booleans(),
    st.data(),
)
def test_seals_and_restarts_change_no_answer(
    tmp_path_factory, epochs, within, hint_bits, restarts, kind, filters_on_top, data
):
    directory = tmp_path_factory.mktemp("window")
    options = {"within": within, "hint_bits": hint_bits, "filters_on_top": filters_on_top}
    background = BACKGROUNDS[kind]()
    window = small_window(directory, background=background, **options)
    history = History(within)
    for epoch, restart in zip(epochs, restarts, strict=False):
        for numbers in epoch:
            assert probe(window, numbers) == history.probe(numbers)
            if kind == "deferred":
                background.take_steps(data.draw(st.integers(0, 5)))
        state = json.loads(json.dumps(window.snapshot()))
        window.release(state)
        if restart:
            before = window.statistics()
            window.close()
            background = BACKGROUNDS[kind]()
            window = small_window(directory, background=background, **options)
            window.restore(state)
            after = window.statistics()
            assert (after.rows, after.duplicates, after.evictions) == (before.rows, before.duplicates, before.evictions)
    window.close()


def long_job(directory, within, *, epochs=12, rows=400, seed=5, **options):
    """A window that has seen duplicates at all distances; the events that it told of."""
    chance, pace = random.Random(seed), random.Random(seed)
    events = []
    window = small_window(
        directory, within=within, instrument=lambda event, **fields: events.append((event, fields)), **options
    )
    history = History(within)
    background = options.get("background")
    fresh = 0
    for _ in range(epochs):
        numbers = []
        for _ in range(rows):
            fresh += 1
            numbers.append(fresh - chance.choice([1, 0, 0, 0, chance.randrange(fresh)]))
        assert probe(window, numbers) == history.probe(numbers)
        if isinstance(background, Deferred):
            background.take_steps(pace.randrange(20))
    return window, history, events


@pytest.mark.parametrize("within", [500, 3000, None])
@pytest.mark.parametrize("kind", sorted(BACKGROUNDS))
def test_many_runs_are_sealed_and_merged(tmp_path, within, kind):
    window, _, events = long_job(tmp_path, within, background=BACKGROUNDS[kind]())
    statistics = window.statistics()
    window.close()
    names = [name for name, _ in events]
    assert names.count("seal.end") >= 5
    assert names.count("seal.begin") - names.count("seal.end") in (0, 1)
    assert "merge.end" in names or within == 500
    assert statistics.exact_hits_runs > 0
    assert statistics.exact_hits_recent + statistics.exact_hits_runs == statistics.duplicates
    hits_out_of_window = statistics.run_lookups - statistics.suspects_cleared - statistics.exact_hits_runs
    assert hits_out_of_window == 0 if within is None else hits_out_of_window >= 0
    assert 0 < statistics.runs <= CROWD


def test_answers_do_not_depend_on_when_the_background_is_done(tmp_path):
    duplicates = set()
    for kind, make in BACKGROUNDS.items():
        window, history, _ = long_job(tmp_path / kind, 2_000, background=make())
        assert probe(window, range(4_000)) == history.probe(range(4_000))
        duplicates.add(window.statistics().duplicates)
        window.close()
    assert len(duplicates) == 1


def test_the_budget_holds(tmp_path):
    window, _, _ = long_job(tmp_path, None, epochs=40, memory_bytes=24_000)
    assert window.memory_bytes <= 24_000 * 3 / 4
    statistics = window.statistics()
    assert statistics.recent_bytes + statistics.filter_bytes + statistics.index_bytes == window.memory_bytes
    assert statistics.filter_bytes <= 24_000 * 3 / 8
    window.close()


def test_filters_may_come_on_top_of_the_budget(tmp_path):
    window, _, _ = long_job(tmp_path, None, epochs=40, memory_bytes=8_000, filters_on_top=True)
    statistics = window.statistics()
    assert statistics.recent_bytes + statistics.index_bytes <= 6_000
    assert statistics.filter_bytes > 2 * (statistics.evictions - statistics.duplicates)
    window.close()


def test_filters_that_do_not_fit_are_read_from_disk_and_clear_as_many_rows(tmp_path):
    cleared = []
    for limited in (False, True):
        window, _, _ = long_job(
            tmp_path / str(limited), None, epochs=60, memory_bytes=9_000, filters_on_top=not limited
        )
        resident = [run.filter.blocks is not None for run in window._runs._runs]
        assert all(resident) != limited
        assert resident == sorted(resident)  # the newest ones
        cleared.append(window.statistics().run_lookups - window.statistics().exact_hits_runs)
        window.close()
    assert cleared[1] <= 2 * cleared[0] + 50


def test_files_that_fell_out_of_the_window_are_deleted_when_a_later_snapshot_is_final(tmp_path):
    window, history, _ = long_job(tmp_path, 300)
    first = window.snapshot()
    kept = {entry["file"] for entry in first["segments"] + first["runs"]}
    for start in range(0, 3_000, 100):
        numbers = range(10_000 + start, 10_100 + start)
        assert probe(window, numbers) == history.probe(numbers)
    second = window.snapshot()
    assert kept <= {path.name for path in tmp_path.iterdir()}
    window.release(second)
    named = {entry["file"] for entry in second["segments"] + second["runs"]}
    assert {path.name for path in tmp_path.iterdir()} == named
    window.close()


def run_epochs(window, history, epochs, committed):
    """Probe, snapshot and release epoch after epoch; ``committed`` is what a coordinator would know after a kill."""
    for number, batches in epochs:
        for numbers in batches:
            assert probe(window, numbers) == history.probe(numbers)
        state = json.loads(json.dumps(window.snapshot()))
        committed[:] = [(number + 1, state, history.copy())]
        window.release(state)


class Sluggish(Deferred):
    """Takes two steps for every piece of work that comes, and the last ones when it is waited for."""

    def submit(self, steps, *, priority):
        self.take_steps(2)
        return super().submit(steps, priority=priority)


@pytest.mark.parametrize(("within", "background"), [(250, Sluggish), (None, Inline)])
def test_a_kill_between_any_two_file_operations_loses_and_repeats_nothing(tmp_path, within, background):
    chance = random.Random(1)
    epochs = [
        (number, [[chance.randrange(60 * (number + 1)) for _ in range(60)] for _ in range(2)]) for number in range(6)
    ]
    committed, options = [(0, None, History(within))], {"within": within, "memory_bytes": 5_500}
    watched = WatchedStorage(tmp_path / "whole", committed)
    window = small_window(tmp_path / "whole", storage=watched, background=background(), **options)
    run_epochs(window, History(within), epochs, committed)
    for number, (files, (epoch, state, history)) in enumerate(watched.deaths):
        directory = tmp_path / str(number)
        left_by(files, directory)
        committed[:] = [(epoch, state, history)]
        survivor = small_window(directory, storage=MortalStorage(), background=background(), **options)
        if state is not None:
            survivor.restore(state)
        run_epochs(survivor, history.copy(), epochs[epoch:], committed)
        final = committed[0][1]
        named = {entry["file"] for entry in final["segments"] + final["runs"]}
        survivor.close()
        assert {path.name for path in directory.iterdir() if path.suffix != ".tmp"} == named
    print(f"{watched.taken} kills, {len(watched.deaths)} that differ")
    assert watched.taken > 60
    assert len(watched.deaths) > watched.taken / 2


def test_a_kill_while_recovering_changes_nothing(tmp_path):
    window, history, _ = long_job(tmp_path, 1000)
    state = window.snapshot()
    probe(window, range(50_000, 50_400))
    window.close()
    for breaths in range(1, 200):
        mortal = MortalStorage(breaths)
        window = small_window(tmp_path, within=1000, storage=mortal)
        try:
            window.restore(state)
        except Killed:
            window.close()
            continue
        break
    assert breaths > 2
    mortal.breaths = 10**9
    numbers = [*range(4_000, 4_900, 7), *range(50_000, 50_400, 9)]
    assert probe(window, numbers) == history.probe(numbers)
    window.close()


def test_a_window_that_could_not_write_refuses_further_work(tmp_path):
    class Full(Storage):
        def create(self, path, **options):
            raise OSError(28, "No space left on device", path)

    window = small_window(tmp_path, within=10, storage=Full())
    with pytest.raises(OSError, match="No space"):
        probe(window, [1, 2])
    with pytest.raises(StateError, match="restore the last checkpoint"):
        window.snapshot()
    window.close()


def test_files_of_an_earlier_attempt_are_removed_and_others_left_alone(tmp_path):
    stale = [tmp_path / f"ids-{0:020}.log", tmp_path / f"run-{0:020}-{64:020}.ids.tmp"]
    for path in [*stale, tmp_path / "notes.txt"]:
        path.write_text("left behind")
    window = small_window(tmp_path, within=None)
    probe(window, range(10))
    assert (tmp_path / "notes.txt").exists()
    assert not stale[1].exists()
    assert stale[0].read_bytes().startswith(b"engidlog")
    window.close()


def test_another_window_is_refused(tmp_path):
    window = small_window(tmp_path, within=10)
    probe(window, [1])
    state = window.snapshot()
    window.close()
    with pytest.raises(StateError, match="another window"):
        small_window(tmp_path, within=11).restore(state)
    with pytest.raises(StateError, match="format 9"):
        small_window(tmp_path, within=10).restore(state | {"format": 9})
    used = small_window(tmp_path / "other", within=10)
    probe(used, [1])
    with pytest.raises(StateError, match="has seen rows"):
        used.restore(state)
    with pytest.raises(StateError, match="not durable"):
        small_window(tmp_path, within=10, durable=False).snapshot()


def test_positions_beyond_32_bits(tmp_path):
    start = 2**32 - 300
    window = small_window(tmp_path, within=200, start=start)
    history = History(200)
    for first in range(0, 900, 50):
        numbers = [*range(first, first + 40), *range(max(0, first - 150), max(0, first - 150) + 10)]
        assert probe(window, numbers) == history.probe(numbers)
    state = window.snapshot()
    window.close()
    again = small_window(tmp_path, within=200)
    again.restore(state)
    assert probe(again, range(700, 900)) == history.probe(range(700, 900))
    assert again.statistics().evictions == state["evictions"] + again._window.oldest - state["oldest"]
    again.close()


def timed_window(directory, **options):
    return KeyWindow(
        [0],
        by=1,
        within=timedelta(seconds=10),
        memory_bytes=4_000,
        storage=Storage(),
        directory=str(directory),
        seed=SEED,
        durable=True,
        background=Inline(),
        chunk_ids=16,
        **options,
    )


def timed_batch(numbers, seconds, unit="us", zone=None):
    moments = [None if s is None else datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=s) for s in seconds]
    times = pa.array([m and m.replace(tzinfo=None) for m in moments], pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    return pa.record_batch({"id": pa.array([id_of(n) for n in numbers], pa.binary(16)), "at": times})


@pytest.mark.parametrize(("unit", "zone"), [("s", None), ("ms", "UTC"), ("us", None), ("ns", "Europe/Paris")])
def test_a_window_of_time_seals_restores_and_forgets(tmp_path, unit, zone):
    window = timed_window(tmp_path)
    for second in range(40):
        numbers = range(second * 20, second * 20 + 20)
        found = window.probe_batch(timed_batch(numbers, [second] * 20, unit, zone))
        assert found.fresh == 20
    state = json.loads(json.dumps(window.snapshot()))
    window.close()
    window = timed_window(tmp_path)
    window.restore(state)
    found = window.probe_batch(timed_batch([30 * 20, 28 * 20, 29 * 20 + 5], [40, None, 38], unit, zone))
    assert list(found.selection) == [0, 1, 1]
    assert window.statistics().exact_hits_runs + window.statistics().exact_hits_recent == 1
    window.close()


def test_a_clock_that_is_no_timestamp_or_does_not_fit_is_refused(tmp_path):
    window = timed_window(tmp_path)
    ids = pa.array([id_of(1)], pa.binary(16))
    with pytest.raises(InputError, match="must be a timestamp"):
        window.probe_batch(pa.record_batch({"id": ids, "at": pa.array([1])}))
    with pytest.raises(InputError, match="outside the years"):
        window.probe_batch(pa.record_batch({"id": ids, "at": pa.array([2**62], pa.timestamp("s"))}))
    assert window.probe_batch(timed_batch([1], [0])).fresh == 1


def test_null_keys_and_rows_not_wanted_are_not_marked(tmp_path):
    window = small_window(tmp_path, within=None)
    ids = pa.array([id_of(1), None, id_of(2), id_of(1), None], pa.binary(16))
    found = window.probe_batch(pa.record_batch({"id": ids}), bytes([1, 1, 0, 1, 0]))
    assert list(found.selection) == [1, 1, 0, 0, 0]
    assert (found.selected, found.fresh, found.duplicates, found.null_keys) == (2, 1, 1, 1)
    assert window.probe_batch(pa.record_batch({"id": ids.slice(2, 1)})).fresh == 1
    window.close()


def test_a_batch_without_rows_with_a_key_leaves_no_file(tmp_path):
    window = small_window(tmp_path / "new", within=5)
    assert window.probe_ids(b"", 0)[1].selected == 0
    assert not (tmp_path / "new").exists()


def test_tokens_of_probes_that_wait(tmp_path):
    window = small_window(tmp_path, within=None)
    first, _ = window.probe_ids(ids_of([1]), 1)
    second, _ = window.probe_ids(ids_of([2]), 1)
    with pytest.raises(ValueError, match="order"):
        window.commit(second)
    window.abort(second)
    window.commit(first)
    assert probe(window, [1, 2]) == b"\0\1"
    window.close()


def test_a_window_of_rows_that_fits_its_budget_is_never_sealed(tmp_path):
    memory_bytes = 64_000
    for within, fits in ((2_000, True), (2_600, False)):
        window = small_window(tmp_path / str(within), within=within, memory_bytes=memory_bytes)
        history = History(within)
        most_bytes = 0
        for start in range(0, 4 * within, 100):
            numbers = [*range(start, start + 90), *range(max(0, start - within), max(0, start - within) + 10)]
            assert probe(window, numbers) == history.probe(numbers)
            most_bytes = max(most_bytes, window.memory_bytes)
        assert (window.statistics().runs == 0) == fits
        assert most_bytes <= memory_bytes
        window.close()
