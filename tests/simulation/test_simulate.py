"""Whole pipelines on a simulated machine, and whether the simulation would notice if they were wrong.

``--simulated-seeds N`` runs more of them.
"""

import random
from collections import Counter
from collections.abc import Callable

import pyarrow as pa
import pytest

from engine import Pipeline, sinks, sources
from engine._runtime.coordinator import Coordinator
from engine.errors import PipelineError
from engine.log.partition import Partition
from engine.stages.id_log import IdLog
from engine.stages.key_window import KeyWindow
from engine.storage import Storage
from engine.testing import checkers
from engine.testing.simulate import Outcome, simulate
from engine.testing.storage import SimulatedStorage
from engine.testing.storage_faults import LyingSync

ROWS, BATCH_ROWS = 1_600, 40


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


@pytest.mark.parametrize("kind", SINKS)
def test_every_row_once_whatever_happens(kind: str, seeds: range) -> None:
    fired, attempts, calm = Counter[str](), 0, 0
    for outcome in simulate(pipeline(kind), seeds=seeds):
        assert outcome.problem is None, outcome
        fired += outcome.fired
        attempts += outcome.attempts
        calm += not outcome.fired
    print(f"{len(seeds)} seeds, {attempts} starts, {calm} without a fault; {dict(fired)}")
    assert attempts > len(seeds) * 3 // 2
    assert calm <= len(seeds) // 5
    assert fired["power cut"] >= len(seeds) // 4


def test_a_window_for_ever_seals_on_the_simulated_disk(seeds: range) -> None:
    for outcome in simulate(pipeline("log", within=None), seeds=seeds[: len(seeds) // 3]):
        assert outcome.problem is None, outcome


def test_the_same_seed_is_the_same_history(generator: random.Random) -> None:
    seeds = [generator.getrandbits(32) for _ in range(3)]
    first = list(simulate(pipeline("parquet"), seeds=seeds))
    again = list(simulate(pipeline("parquet"), seeds=seeds))
    assert first == again
    assert len({outcome.trace for outcome in first}) == 3


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
    monkeypatch.setattr("engine.sinks.staged_file.StagedFile.finish", lambda self: self._file.close())


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


MUTANTS = {
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
    for outcome in simulate(pipeline(kind), seeds=range(first, first + 150)):
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


def test_the_real_storage_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the real disk was written to")

    for name in ("create", "lock", "rename", "unlink"):
        monkeypatch.setattr(Storage, name, touched)
    [outcome] = simulate(pipeline("log"), seeds=[3])
    assert outcome.problem is None
