"""Whole pipelines on a simulated machine, and whether the simulation would notice if they were wrong.

``--simulated-seeds N`` runs more of them; from ``COMPLETE`` on, every kind of fault must have fired.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from errno import errorcode
from pathlib import Path

import pyarrow as pa
import pytest
from simulation.shapes import Shape, draw

from engine import Pipeline, sinks, sources
from engine._runtime.coordinator import Coordinator
from engine.errors import CorruptState, PipelineError
from engine.log.partition import Partition
from engine.stages.dedup import DedupTransform
from engine.stages.id_log import IdLog
from engine.stages.key_window import KeyWindow
from engine.storage import Storage
from engine.testing import checkers
from engine.testing.fault_draw import ERRORS, FAILING_CALLS
from engine.testing.inline_threads import Delay
from engine.testing.simulate import Outcome, simulate
from engine.testing.simulated_world import World
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import LyingSync, SlowCall

ROWS, BATCH_ROWS = 640, 40
SEEDS_A_SHAPE = 10
COMPLETE = 400
"""After so many seeds a fault that has not fired is one that cannot."""


def batches() -> list[pa.RecordBatch]:
    """A tenth of the rows come again, some of them in another batch."""
    chance = random.Random(5)
    ids = [n if n < 20 or chance.random() > 0.1 else n - chance.randrange(1, min(n, 300)) for n in range(ROWS)]
    return [
        pa.record_batch(
            {
                "id": ids[start : start + BATCH_ROWS],
                "key": [f"k{n % 11}" for n in range(start, start + BATCH_ROWS)],
                "value": range(start, start + BATCH_ROWS),
            }
        )
        for start in range(0, ROWS, BATCH_ROWS)
    ]


INPUT = batches()
SINKS = {
    "log": lambda: sinks.log("/out/log"),
    "parquet": lambda: sinks.parquet("/out/parquet"),
    "arrow_ipc": lambda: sinks.arrow_ipc("/out/ipc"),
}


def pipeline(kind: str, within: int | None = 600) -> Callable[[], Pipeline]:
    def make() -> Pipeline:
        read = Pipeline("simulated").read(sources.memory(INPUT, id="rows"))
        return read.dedup("id", within=within).key_by("key", partitions=3).map(lambda rows: rows).write(SINKS[kind]())

    return make


@pytest.fixture
def seeds(request: pytest.FixtureRequest, generator: random.Random) -> range:
    first = generator.getrandbits(32)
    return range(first, first + request.config.getoption("--simulated-seeds"))


def simulated(shape: Shape, seeds: range) -> list[Outcome]:
    """The outcomes, all of them good."""
    size_bytes = sum(batch.nbytes for batch in shape.batches())
    outcomes = []
    for outcome in simulate(shape.make(), seeds=seeds, check=shape.checker(), commit_every_bytes=size_bytes // 4):
        assert outcome.problem is None, f"{outcome}\n{shape}"
        outcomes.append(outcome)
    return outcomes


@pytest.mark.parametrize("sink", SINKS)
def test_every_row_once_whatever_the_pipeline_and_whatever_happens(
    sink: str, seeds: range, generator: random.Random, tmp_path: Path
) -> None:
    outcomes: list[Outcome] = []
    shapes = []
    for number, start in enumerate(range(0, len(seeds), SEEDS_A_SHAPE)):
        shapes.append(draw(generator, tmp_path / str(number), sink=sink, sealing=number % 8 == 7))
        outcomes += simulated(shapes[-1], seeds[start : start + SEEDS_A_SHAPE])
    fired = sum((outcome.fired for outcome in outcomes), Counter())
    starts, calm = sum(outcome.attempts for outcome in outcomes), sum(not outcome.fired for outcome in outcomes)
    stopped = sum(outcome.stopped is not None for outcome in outcomes)
    print(f"{len(seeds)} seeds, {starts} starts, {stopped} refused for good, {calm} without a fault")
    print(", ".join(f"{name} {count}" for name, count in sorted(fired.items())))
    assert starts > len(seeds)
    assert fired["power cut"]
    if len(seeds) >= COMPLETE:  # shares of a few are the seed's choice
        assert starts > len(seeds) * 3 // 2
        assert calm <= len(seeds) // 5
        assert fired["power cut"] >= len(seeds) // 4
        assert len(seeds) // 50 <= stopped <= len(seeds) // 4
        assert not [part for part in EVERY_FAULT if not any(part in name for name in fired)]
        assert {shape.source for shape in shapes} == {"memory", "log"}


EVERY_FAULT = (
    *("power cut", "crash", "kill", "short write", "disk full", "lying sync", "bit flip", "slow sync", "slow append"),
    *(errorcode[number] for number in ERRORS),
    *(f"{call} E" for call in FAILING_CALLS if call != "truncate"),
)
"""Parts of the names under which they are counted. A pipeline truncates only what another fault left, which is rare."""


def test_a_window_for_ever_outgrows_its_memory(seeds: range, generator: random.Random, tmp_path: Path) -> None:
    shape = draw(generator, tmp_path, sealing=True)
    made = []

    def storage(*arguments, **options) -> SimulatedStorage:
        made.append(SimulatedStorage(*arguments, **options))
        return made[-1]

    outcomes = list(simulate(shape.make(), seeds=seeds[:4], check=shape.checker(), storage=storage))
    for outcome in outcomes:
        assert outcome.problem is None, outcome
    assert max(outcome.epoch for outcome in outcomes) >= 3 or all(outcome.stopped for outcome in outcomes)
    assert any("/run-" in call.path for each in made for call in each.trace)


def test_the_streams_own_account_is_an_oracle(generator: random.Random, tmp_path: Path) -> None:
    shape = draw(generator, tmp_path)
    right = [Outcome(0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyWindow, "probe_batch", keeping_all(KeyWindow.probe_batch))
        right = list(simulate(shape.make(), seeds=[1], check=shape.checker()))
    # The run without faults is as wrong: the rows are equal, and only the stream knows better.
    assert "own account" in str(right[0].problem) or right[0].stopped or "model" in str(right[0].problem)


def keeping_all(probe_batch):
    """A window that calls nothing a duplicate."""

    def probe(self, rows, selection=None):
        found = probe_batch(self, rows, selection)
        kept = bytearray(b"\1") * rows.num_rows if selection is None else bytearray(selection)
        return type(found)(kept, sum(kept), sum(kept), 0, 0)

    return probe


def test_the_same_seed_is_the_same_history(generator: random.Random) -> None:
    seeds = [generator.getrandbits(32) for _ in range(3)]
    first = list(simulate(pipeline("parquet"), seeds=seeds))
    again = list(simulate(pipeline("parquet"), seeds=seeds))
    assert first == again
    assert len({outcome.trace for outcome in first}) == 3


PROGRAM = """
import sys
from pathlib import Path
from random import Random
from shapes import draw
from engine.testing.simulate import simulate
shape = draw(Random(int(sys.argv[1])), Path(sys.argv[2]))
for outcome in simulate(shape.make(), seeds=range(3)):
    print(outcome.seed, outcome.trace, sorted(outcome.fired.items()), outcome.epoch)
"""


def test_a_seed_is_the_same_history_in_every_process(generator: random.Random, tmp_path: Path) -> None:
    shape = generator.getrandbits(32)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    histories = []
    for hashes in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": hashes}
        command = [sys.executable, "-c", PROGRAM, str(shape), str(tmp_path)]
        histories.append(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    assert histories[0].count("\n") == 3
    assert histories[0] == histories[1]


def test_a_stuck_disk_takes_virtual_time() -> None:
    world = World(pipeline("log"), "1MiB", None, None, SimulatedStorage)
    delay = Delay()
    storage = world.storage(1, faults=[SlowCall("sync", nth=3, delay_s=120.0, times=2)], sleep=delay.add)
    report = world.start(1, storage, delay)
    assert storage.fired["slow sync"] == 2
    assert 120.0 <= report.elapsed_s <= 300.0


def test_what_dedup_remembers_is_compared_with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(pipeline("parquet"), "1MiB", None, None, SimulatedStorage)
    storage = world.storage(1)
    world.start(1, storage)
    last = world.last_commit(storage)
    assert last is not None
    assert world.wrong_state(storage.kill(), last) == []
    monkeypatch.setattr(KeyWindow, "restore", lambda self, state: None)
    [complaint] = world.wrong_state(storage.kill(), last)
    assert "answers otherwise than the model" in complaint


def test_a_sink_that_cannot_be_simulated_is_refused() -> None:
    def make() -> Pipeline:
        return Pipeline("called").read(sources.memory(INPUT, id="rows")).write(sinks.call(print))

    with pytest.raises(PipelineError, match=r"call\(print\) cannot be simulated"):
        next(simulate(make, seeds=[1]))


# Mutants: each is a fault of engine's own, and must be found.


def _lying(path: str) -> Callable[..., SimulatedStorage]:
    def storage(seed: int, faults=(), **options) -> SimulatedStorage:
        return SimulatedStorage(seed, faults=[LyingSync(path=path, times=None), *faults], **options)

    return storage


def _no_sync_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedStorage, "sync_directory", lambda self, path: None)


def _ids_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdLog, "append", lambda self, first, ids: None)


def _window_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyWindow, "restore", lambda self, state: None)


def _published_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Coordinator._commit

    async def early(self, cut) -> None:
        await cut.complete.wait()
        await self._publish(cut.epoch, cut.handles)
        await commit(self, cut)

    monkeypatch.setattr(Coordinator, "_commit", early)


def _publication_skipped_in_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self) -> None:
        return

    monkeypatch.setattr(Coordinator, "recover", nothing)


def _barrier_without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsynced(self) -> None:
        self.flush()
        self._file.close()

    monkeypatch.setattr("engine.sinks.staged_file.StagedFile.finish", unsynced)


def _acknowledged_early(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Partition.publish

    def unsynced(self, staged: str) -> None:
        sync = SimulatedStorage.sync_directory
        SimulatedStorage.sync_directory = lambda self, path: None
        try:
            publish(self, staged)
        finally:
            SimulatedStorage.sync_directory = sync

    monkeypatch.setattr(Partition, "publish", unsynced)


def _damage_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = KeyWindow.restore

    def lenient(self, state) -> None:
        try:
            restore(self, state)
        except CorruptState:
            self._failed = False

    monkeypatch.setattr(KeyWindow, "restore", lenient)


def _damage_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = DedupTransform.restore

    async def deleting(self, state) -> None:
        try:
            await restore(self, state)
        except CorruptState as error:
            if self._surroundings.storage.exists(error.path):
                self._surroundings.storage.unlink(error.path)
            raise

    monkeypatch.setattr(DedupTransform, "restore", deleting)


MUTANTS = {
    "damage is passed over": ("parquet", _damage_is_passed_over),
    "damage is deleted": ("arrow_ipc", _damage_is_deleted),
    "no sync of names": ("parquet", _no_sync_of_names),
    "ids are not logged": ("parquet", _ids_not_logged),
    "the window is not restored": ("log", _window_not_restored),
    "published before the commit": ("parquet", _published_before_the_commit),
    "recovery does not publish": ("log", _publication_skipped_in_recovery),
    "files are not synced": ("arrow_ipc", _barrier_without_sync),
    "the log's names are not synced": ("log", _acknowledged_early),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(mutant: str, generator: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, plant = MUTANTS[mutant]
    first = generator.getrandbits(32)
    plant(monkeypatch)
    outcomes: list[Outcome] = []
    for outcome in simulate(pipeline(kind), seeds=range(first, first + 200)):
        outcomes.append(outcome)
        if outcome.problem is not None:
            return
    pytest.fail(f"{len(outcomes)} seeds from {first} on did not find it")


def test_each_checker_can_complain() -> None:
    expected = {0: [("a", 1), ("b", 1), ("a", 2)], 1: [("c", 1)]}

    def key_of(row: tuple) -> str:
        return row[0]

    wrong = {
        checkers.no_loss: {0: [("a", 1), ("a", 2)], 1: [("c", 1)]},
        checkers.no_duplicate: {0: [("a", 1), ("b", 1), ("a", 2)], 1: [("c", 1), ("c", 1)]},
        checkers.order_per_key: {0: [("a", 2), ("b", 1), ("a", 1)], 1: [("c", 1)]},
    }
    assert set(wrong) == set(checkers.CHECKERS)
    for checker, found in wrong.items():
        assert [other for other in checkers.CHECKERS if other(found, expected, key_of)] == [checker]
        assert not checker(expected, expected, key_of)


def test_the_checker_of_states_can_complain() -> None:
    assert checkers.state_equals_model([True, False, True], [True, False, None]) == []
    assert "first: it keeps row 1" in checkers.state_equals_model([True, False], [True, True])[0]
    assert "first: it drops row 0" in checkers.state_equals_model([True, False], [False, False])[0]
    assert checkers.state_equals_model([True], [True, True])


def test_the_real_storage_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the real disk was written to")

    for name in ("create", "lock", "rename", "unlink"):
        monkeypatch.setattr(Storage, name, touched)
    [outcome] = simulate(pipeline("log"), seeds=[3])
    assert outcome.problem is None
