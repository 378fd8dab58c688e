"""Repair: whatever befell the files of a stage, the run goes on as if nothing had, and nothing is emitted twice.

The model is a run to which nothing happened. Verified: each kind of file, flipped, cut and gone; a commit that is not
FINAL; what is refused, and that it changes nothing; power cuts at every change of the disk.
"""

import itertools
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import Log, Pipeline, run, sinks, sources
from engine._runtime.repair import repair, repair_async
from engine._runtime.run import Options, execute
from engine.checkpoint.inspection import inspect, verify
from engine.cli.main import main
from engine.errors import CorruptState, EngineError, InputError, StageError, StateError
from engine.storage import Storage
from engine.testing.crash_states import crash_states
from engine.testing.determinism import run_deterministically
from engine.testing.inline_threads import Delay, InlineBackground, InlineWorkers
from engine.testing.storage import SimulatedStorage

ROWS, BATCH_ROWS, STOP = 48_000, 1_000, 36_000
KINDS = ("ids", "run", "keys")


def batches(rows=ROWS, salt=""):
    """A quarter of the rows come again, from anywhere before."""
    chance = random.Random(7)
    ids = [n if chance.random() < 0.75 else chance.randrange(n + 1) for n in range(rows)]
    return [
        pa.record_batch(
            {
                "id": [f"{salt}an identity of more than sixteen bytes: {n}" for n in ids[start : start + BATCH_ROWS]],
                "value": range(start, start + BATCH_ROWS),
            }
        )
        for start in range(0, rows, BATCH_ROWS)
    ]


INPUT = batches()


def pipeline(out, *, stop=None, within=None, read=None, storage=None):
    """Stops with an error where a value is ``stop``."""

    def check(rows):
        if stop is not None and rows.num_rows and rows["value"][-1].as_py() >= stop:
            raise ValueError("stop here")
        return rows

    sink = sinks.parquet(out)
    if storage is not None:
        sink.storage = storage
    source = read if read is not None else sources.memory(INPUT, id="rows")
    started = Pipeline("repaired").read(*(source if isinstance(source, list) else [source]))
    return started.map(check).key_by("id", partitions=2).dedup("id", within=within, exact="bytes").write(sink)


OPTIONS = {"memory": "2MiB", "commit_every_bytes": 300_000}


def stopped(path, **choices):
    with pytest.raises(StageError, match="stop here"):
        run(pipeline(path / "out", stop=STOP, **choices), state=path / "state", **OPTIONS)
    return path


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


def rows_of(directory):
    return sorted((row["value"], row["id"]) for row in pq.read_table(directory).to_pylist())


def everything(path):
    """All that is there, but for the text in LOCK."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}


def options(path, **more):
    return Options(state=path / "state", memory="2MiB", **more)


def harm(file, kind):
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "short":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = {"flipped": len(content) // 3, "filter": len(content) - 200}[kind]
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])


def victims(path, kind):
    state = str(path / "state" / "repaired")
    return [Path(file.path) for file in verify(Storage(), state).files if os.path.basename(file.path).startswith(kind)]


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
    assert victim.exists() == (how != "missing")


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


def test_the_offset_within_a_batch_of_the_replay(made, copy):
    """The rows come in other batches than at first."""
    harm(victims(copy, "ids")[0], "flipped")
    table = pa.Table.from_batches(INPUT)
    committed = inspect(Storage(), str(copy / "state" / "repaired")).last_commit.counters["rows_in"]
    assert committed % 700
    again = sources.memory(table.to_batches(max_chunksize=700), id="rows")
    assert repair(pipeline(copy / "out", read=again), options(copy)).rows == committed
    run(pipeline(copy / "out"), state=copy / "state", **OPTIONS)
    assert rows_of(copy / "out") == rows_of(made / "undisturbed")


@pytest.mark.parametrize("kind", ["parquet", "log"])
def test_sources_on_disk_read_in_two_runs(tmp_path, kind):
    """A window of rows, so that the order counts; the second run began in the middle."""
    if kind == "parquet":
        table = pa.Table.from_batches(INPUT)
        for first in range(0, ROWS, 6_500):
            pq.write_table(table.slice(first, 6_500), tmp_path / f"in-{first:05}.parquet")
        read = sources.parquet(str(tmp_path / "in-*.parquet"))
    else:
        with Log(tmp_path / "log", partitions=2) as log:
            for number, rows in enumerate(INPUT):
                log.append(rows, partition=number % 2)
        read = sources.log(tmp_path / "log")
    choices = {"read": read, "within": 5_000}
    run(pipeline(tmp_path / "undisturbed", **choices), state=tmp_path / "other", **OPTIONS)
    for stop in (STOP // 2, STOP):
        with pytest.raises(StageError, match="stop here"):
            run(pipeline(tmp_path / "out", stop=stop, **choices), state=tmp_path / "state", **OPTIONS)
    harm(victims(tmp_path, "ids")[0], "flipped")
    assert repair(pipeline(tmp_path / "out", **choices), options(tmp_path)).damaged
    run(pipeline(tmp_path / "out", **choices), state=tmp_path / "state", **OPTIONS)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "undisturbed")


def fewer():
    return sources.memory(INPUT[:5], id="rows")


def others():
    return sources.memory(batches(salt="another "), id="rows")


def once():
    return sources.memory(iter(INPUT), id="rows", schema=INPUT[0].schema)


REFUSED = {
    "the source has lost rows": (lambda out: pipeline(out, read=fewer()), StateError, "is not found again"),
    "the source has other rows": (lambda out: pipeline(out, read=others()), InputError, "holds other rows"),
    "the source reads once": (lambda out: pipeline(out, read=once()), StateError, "cannot be read again"),
    "another graph": (lambda out: pipeline(out, within=9), StateError, "another pipeline"),
    "a stage fails": (lambda out: pipeline(out, stop=3_000), StageError, "stop here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rebuilt_is_refused_and_nothing_changes(copy, case):
    make, error, message = REFUSED[case]
    harm(victims(copy, "ids")[0], "flipped")
    before = everything(copy)
    with pytest.raises(error, match=message):
        repair(make(copy / "out"), options(copy))
    shutil.rmtree(copy / "state" / "repaired" / "repair", ignore_errors=True)
    assert everything(copy) == before


def test_stages_that_count_otherwise_are_refused(copy):
    harm(victims(copy, "ids")[0], "flipped")
    changed = Pipeline("repaired").read(sources.memory(INPUT, id="rows")).map(lambda rows: rows.slice(1))
    changed = changed.key_by("id", partitions=2).dedup("id", exact="bytes").write(sinks.parquet(copy / "out"))
    with pytest.raises(StateError, match=r"duplicates: [\d,]+ were committed, [\d,]+ came again"):
        repair(changed, options(copy))


def test_a_merge_of_sources_is_known_only_where_it_does_not_count(tmp_path):
    """A window of rows over two sources depends on their merge; keys for ever do not."""
    read = [sources.memory(INPUT, id="rows"), sources.memory(batches(24_000, "b "), id="more")]
    for within, name in ((9_000, "windowed"), (None, "for-ever")):
        path = tmp_path / name
        stopped(path, read=read, within=within)
        harm(victims(path, "ids")[0], "flipped")
        if within is not None:
            with pytest.raises(StateError, match="2 sources were merged"):
                repair(pipeline(path / "out", read=read, within=within), options(path))
            continue
        assert repair(pipeline(path / "out", read=read), options(path)).damaged
        run(pipeline(path / "out", read=read), state=path / "state", **OPTIONS)
        found = [row["id"] for row in pq.read_table(path / "out").to_pylist()]
        known = {key for source in (INPUT, batches(24_000, "b ")) for rows in source for key in rows["id"].to_pylist()}
        assert sorted(found) == sorted(known)


def test_the_command(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    (copy / "mendable.py").write_text(
        f"from runtime.test_repair import pipeline\n\ndef job():\n    return pipeline({str(copy / 'out')!r})\n"
    )
    command = ["checkpoint", "repair", "mendable:job", "--state", str(copy / "state")]
    assert main(command) == 0
    assert capsys.readouterr().out == "repaired: no file is damaged; nothing was changed\n"
    victim = victims(copy, "ids")[0]
    harm(victim, "flipped")
    assert main(["checkpoint", "verify", str(copy / "state")]) == 1
    assert "engine checkpoint repair MODULE:PIPELINE" in capsys.readouterr().err
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("repaired: rebuilt through epoch ")
    assert lines[1] == f"  damaged, kept  {victim}"
    assert lines[2].startswith(f"  rebuilt        {victim.parent}.rebuilt-")
    assert main(["checkpoint", "verify", str(copy / "state")]) == 0
    assert main(["checkpoint", "repair", "mendable:job", "--state", str(copy / "nowhere")]) == 1
    assert "StateError" in capsys.readouterr().err


def simulated(storage, *, stop=None, mend=False):
    """Run, or repair, on a simulated disk."""
    background = InlineBackground()
    chosen = Options(
        state="/state",
        memory="2MiB",
        commit_every_s=1e9,
        commit_every_bytes=100_000,
        storage=storage,
        workers=lambda: InlineWorkers(random.Random(1), background, Delay()),
        background=lambda name: background,
    )
    made = pipeline("/out", stop=stop, read=sources.memory(SMALL, id="rows"), storage=storage)
    if mend:
        return run_deterministically(next(STARTS), repair_async, made, chosen)
    return run_deterministically(next(STARTS), execute, made, made.graph.sink, chosen)


SMALL = batches(12_000)
STARTS = itertools.count()
"""A seed for each start: no two draw the same ids."""


def output_of(storage):
    """Rows of the published files."""
    files = sorted(name for name, data in storage.contents().items() if data and name.startswith("/out/"))
    tables = [pq.read_table(pa.BufferReader(storage.contents()[name])) for name in files if name.endswith(".parquet")]
    return sorted((row["value"], row["id"]) for table in tables for row in table.to_pylist())


def damaged_disk(kind=SimulatedStorage):
    """A stopped run on a simulated disk, one of its files cut short; and what it would have written."""
    undisturbed, storage = SimulatedStorage(), SimulatedStorage(record=True)
    simulated(undisturbed)
    with pytest.raises(StageError):
        simulated(storage, stop=10_000)
    victim = verify(storage, "/state/repaired").files[0]
    with storage.open(victim.path, write=True) as file:
        file.truncate(victim.size_bytes // 2)
        file.sync()
    reached = storage.crash()
    reached.__class__ = kind
    return reached, victim.path, output_of(undisturbed)


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
