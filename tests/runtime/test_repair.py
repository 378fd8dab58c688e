"""Repair: whatever befell the files of a stage, the run goes on as if nothing had, and nothing is emitted twice.

The model is a run to which nothing happened. Verified: each kind of file, flipped, cut and gone; a commit that is not
FINAL; what is refused, and that it changes nothing; power cuts at every change of the disk.
"""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from runtime.damaged_states import (
    INPUT,
    KINDS,
    OPTIONS,
    Foreign,
    batches,
    damaged_disk,
    everything,
    harm,
    options,
    output_of,
    pipeline,
    rows_of,
    simulated,
    stopped,
    victims,
)

from engine import Pipeline, run, sinks, sources
from engine._runtime.repair import repair
from engine._runtime.run import Options
from engine.checkpoint.inspection import inspect, verify
from engine.errors import CorruptState, EngineError, InputError, StageError, StateError
from engine.storage import Storage
from engine.testing.crash_states import crash_states
from engine.testing.storage import SimulatedStorage


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that stopped after several commits, and what it would have written."""
    path = tmp_path_factory.mktemp("made")
    run(pipeline(path / "undisturbed"), state=path / "undisturbed-state", **OPTIONS)
    stopped(path / "work")
    shutil.copytree(path / "work", path / "saved")
    return path


@pytest.fixture
def copy(made):
    """As the run left it, in the place that it knows."""
    shutil.rmtree(made / "work")
    return shutil.copytree(made / "saved", made / "work")


HARMS = [(kind, how) for kind in KINDS for how in ("flipped", "short", "missing")] + [("run", "filter")]


@pytest.mark.parametrize(("kind", "how"), HARMS)
def test_whatever_is_damaged_the_run_goes_on_as_if_nothing_had_happened(made, copy, kind, how):
    state = str(copy / "state" / "repaired")
    before = inspect(Storage(), state).last_commit
    victim = victims(copy, kind)[0]
    harm(victim, how)
    damaged = verify(Storage(), state).damaged
    assert [file.path for file in damaged] == [str(victim)]
    kept = everything(copy / "state" / "repaired" / "stages")
    published = everything(copy / "out")
    repaired = repair(pipeline(copy / "out"), options(copy))
    assert repaired.damaged == damaged
    assert repaired.rows == before.counters["rows_in"] > 10_000
    assert verify(Storage(), state).damaged == ()
    after = everything(copy / "state" / "repaired" / "stages")
    assert {name: after.get(name) for name in kept} == kept
    assert everything(copy / "out") == published
    commit = inspect(Storage(), state).last_commit
    assert (commit.epoch, commit.offsets, commit.counters) == (before.epoch, before.offsets, before.counters)
    assert not (copy / "state" / "repaired" / "repair").exists()
    assert repair(pipeline(copy / "out"), options(copy)).damaged == ()
    run(pipeline(copy / "out"), state=copy / "state", **OPTIONS)
    assert rows_of(copy / "out") == rows_of(made / "undisturbed")
    assert verify(Storage(), state).damaged == ()
    assert [*victim.parent.glob("*")] == ([victim] if how != "missing" else [])


def test_all_files_at_once_and_a_second_time(made, copy):
    """A rebuilt state is damaged and rebuilt as well."""
    state = str(copy / "state" / "repaired")
    for _ in range(2):
        files = verify(Storage(), state).files
        for file in files:
            harm(Path(file.path), "flipped")
        repaired = repair(pipeline(copy / "out"), options(copy))
        assert len(repaired.damaged) == len(files) >= 4
        assert len(repaired.rebuilt) == 2
    run(pipeline(copy / "out"), state=copy / "state", **OPTIONS)
    assert rows_of(copy / "out") == rows_of(made / "undisturbed")


def test_what_is_sound_is_left_alone(copy):
    before = everything(copy)
    assert repair(pipeline(copy / "out"), options(copy)).damaged == ()
    assert everything(copy) == before


def test_the_error_of_a_run_names_the_command(copy):
    harm(victims(copy, "ids")[0], "short")
    with pytest.raises(CorruptState) as caught:
        run(pipeline(copy / "out"), state=copy / "state", **OPTIONS)
    assert "engine checkpoint repair" in "".join(caught.value.__notes__)


class Unpublished:
    """A sink whose last commit fails: its COMMIT is not FINAL."""

    def __init__(self, sink, most):
        self._sink = sink
        self._left = most

    def __getattr__(self, name):
        return getattr(self._sink, name)

    def open(self, schema, *, token, partitions, memory_bytes):
        self._sink.open(schema, token=token, partitions=partitions, memory_bytes=memory_bytes)

    def commit(self, handles):
        self._left -= 1
        if self._left < 0:
            raise ValueError("not now")
        self._sink.commit(handles)


def test_a_commit_that_is_not_final_is_published_by_the_next_run(made, tmp_path):
    halting = pipeline(tmp_path / "out")
    object.__setattr__(halting.graph, "sink", Unpublished(halting.graph.sink, 5))
    with pytest.raises((EngineError, ValueError)):
        run(halting, state=tmp_path / "state", **OPTIONS)
    state = str(tmp_path / "state" / "repaired")
    assert not inspect(Storage(), state).final
    harm(victims(tmp_path, "ids")[0], "flipped")
    handles = inspect(Storage(), state).last_commit.handles
    assert repair(pipeline(tmp_path / "out"), options(tmp_path)).damaged
    assert not inspect(Storage(), state).final
    assert inspect(Storage(), state).last_commit.handles == handles != []
    run(pipeline(tmp_path / "out"), state=tmp_path / "state", **OPTIONS)
    assert rows_of(tmp_path / "out") == rows_of(made / "undisturbed")


@pytest.mark.parametrize("kind", [Foreign, lambda source: source], ids=["foreign", "own"])
def test_the_offset_within_a_batch_of_the_replay(made, copy, kind):
    """The rows come in other batches than at first."""
    harm(victims(copy, "ids")[0], "flipped")
    table = pa.Table.from_batches(INPUT).combine_chunks()
    committed = inspect(Storage(), str(copy / "state" / "repaired")).last_commit.counters["rows_in"]
    assert committed % 700
    again = kind(sources.memory(table.to_batches(max_chunksize=700), id="rows"))
    assert repair(pipeline(copy / "out", read=again), options(copy)).rows == committed
    run(pipeline(copy / "out"), state=copy / "state", **OPTIONS)
    assert rows_of(copy / "out") == rows_of(made / "undisturbed")


def fewer():
    return sources.memory(INPUT[:5], id="rows")


def others():
    return sources.memory(batches(salt="another "), id="rows")


def once():
    return sources.memory(iter(INPUT), id="rows", schema=INPUT[0].schema)


REFUSED = {
    "the source has lost rows": (lambda out: pipeline(out, read=fewer()), InputError, "{} were committed, it has"),
    "the source has other rows": (lambda out: pipeline(out, read=others()), InputError, "the first {} differ"),
    "a foreign one has lost rows": (lambda out: pipeline(out, read=Foreign(fewer())), StateError, "not found again"),
    "a foreign one has others": (lambda out: pipeline(out, read=Foreign(others())), InputError, "holds other rows"),
    "the source reads once": (lambda out: pipeline(out, read=once()), StateError, "cannot be read again"),
    "another graph": (lambda out: pipeline(out, within=9), StateError, "another pipeline"),
    "a stage fails": (lambda out: pipeline(out, stop=3_000), StageError, "stop here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rebuilt_is_refused_and_nothing_changes(copy, case):
    make, error, message = REFUSED[case]
    harm(victims(copy, "ids")[0], "flipped")
    before = everything(copy)
    committed = inspect(Storage(), str(copy / "state" / "repaired")).last_commit.counters["rows_in"]
    with pytest.raises(error, match=message.format(f"{committed:,}")):
        repair(make(copy / "out"), options(copy))
    assert everything(copy) == before


def test_stages_that_count_otherwise_are_refused(copy):
    harm(victims(copy, "ids")[0], "flipped")
    changed = Pipeline("repaired").read(sources.memory(INPUT, id="rows")).map(lambda rows: rows.slice(1))
    changed = changed.key_by("id", partitions=2).dedup("id", exact="bytes").write(sinks.parquet(copy / "out"))
    with pytest.raises(StateError, match=r"duplicates: [\d,]+ were committed, [\d,]+ came again"):
        repair(changed, options(copy))


def test_power_cuts_while_repairing(crash_state_count, generator):
    """At every change of the disk: the damage is still told, or it is repaired; then it is repaired, and goes on."""
    storage, victim, expected = damaged_disk()
    assert [file.path for file in simulated(storage, mend=True).damaged] == [victim]
    seen = Counter()
    for number, state in enumerate(crash_states(storage, most=crash_state_count, seed=generator.getrandbits(32))):
        after = state.storage()
        found = [file.path for file in verify(after, "/state/repaired").damaged]
        assert found in ([], [victim]), state
        seen["repaired" if not found else "as before"] += 1
        if number % 25:
            continue
        seen["gone on"] += 1
        assert [file.path for file in simulated(after, mend=True).damaged] == found
        assert verify(after, "/state/repaired").damaged == ()
        simulated(after)
        assert output_of(after.crash()) == expected, state
    print(dict(seen))
    assert seen["as before"] > 10
    assert seen["repaired"] > 0
    assert seen["gone on"] > 10


class AdoptFirst(SimulatedStorage):
    """The mutant: what the new manifest names is not synced before it."""

    def sync_directory(self, path):
        if not path.endswith("/repaired/stages"):
            super().sync_directory(path)


def test_rebuilt_files_without_a_durable_name_are_found(crash_state_count, generator):
    """The check of the power cuts can fail."""
    storage, victim, _ = damaged_disk(AdoptFirst)
    simulated(storage, mend=True)
    states = crash_states(storage, most=crash_state_count, seed=generator.getrandbits(32))
    found = ([file.path for file in verify(state.storage(), "/state/repaired").damaged] for state in states)
    assert any(paths not in ([], [victim]) for paths in found)


def test_a_damaged_manifest_stays_damaged_and_says_why(copy):
    (manifest,) = (copy / "state" / "repaired").glob("manifest-*")
    content = manifest.read_bytes()
    manifest.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    before = everything(copy)
    with pytest.raises(CorruptState) as caught:
        repair(pipeline(copy / "out"), options(copy))
    assert "cannot be repaired: only the manifest tells" in "".join(caught.value.__notes__)
    assert everything(copy) == before


def test_a_state_in_use_or_missing_is_refused(copy, tmp_path):
    storage = Storage()
    lock = storage.lock(str(copy / "state" / "repaired" / "LOCK"))
    with pytest.raises(StateError, match="is in use"):
        repair(pipeline(copy / "out"), options(copy))
    lock.release()
    with pytest.raises(StateError, match="cannot be read"):
        repair(pipeline(copy / "out"), Options(state=tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
