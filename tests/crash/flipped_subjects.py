"""Durable directories on a simulated disk whose bits are turned over one at a time, and what must come of it.

A subject knows which bytes are guarded: at or below the watermark, so that any change of them must be told. It examines
a damaged copy as its owner and its readers do, and says what they made of it:

    told       an error that names the file, and nothing was changed
    torn       what was never acknowledged is kept aside and reported; what was acknowledged is there
    the same   all that the untouched copy gives
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
from crash import simulated_state
from crash.simulated_state import FINGERPRINT, Promises
from stages.window_model import SEED, Inline, probe, small_window

from engine import Log
from engine.checkpoint import manifest
from engine.checkpoint.store import StateDirectory, find_manifest
from engine.errors import CorruptLog, CorruptState
from engine.log.segment import BadFrame, frames, open_segment
from engine.stages.key_window import KeyWindow
from engine.stages.window_files import check_window_files
from engine.testing.storage import PowerLost, SimulatedStorage
from engine.testing.storage_faults import CutPower

TOLD, TORN, SAME = "told", "torn", "the same"


class Subject(Protocol):
    """``found`` is what is left of the run; it is examined in copies."""

    found: SimulatedStorage
    guarded: dict[str, list[range]]
    """By the path of each file whose bits are turned over."""

    def examine(self, damaged: SimulatedStorage, path: str, *, owner: bool) -> str:
        """As a reader; also as the ``owner``, and always where the reader was told nothing."""
        ...


def kept(before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether every file has the bytes that it had, by their digests."""
    return all(after.get(path) == digest for path, digest in before.items() if not path.endswith(("/durable", "/LOCK")))


def check_named(error: CorruptLog | CorruptState, path: str) -> None:
    """The error names the damaged file."""
    assert error.path == path


# -- the durable log --

LOG = "/srv/log"
BATCHES_LIMIT = 1000
"""More than there are: a reader that believes everything could go round in circles."""


class LogSubject:
    """Two partitions of several segments, of which retention removed some, and a group.

    ``tail`` is what stands behind the last acknowledged row: nothing, an append that was only written, or a half one.
    """

    def __init__(self, compression: str | None, tail: str) -> None:
        self._compression = compression
        self._tail = tail
        storage = SimulatedStorage()
        self._run(storage, 5)
        if tail != "closed":
            storage = self._with_tail(storage)
        self.found = storage
        with Log(LOG, write=False, storage=self.found.copy()) as log:
            self._acknowledged = [log.end(partition=partition) for partition in range(2)]
            self._least = self._everything(log)
        with Log(LOG, storage=self.found.copy()) as log:
            self._most = self._everything(log)
        assert (self._most == self._least) == (tail != "written")
        assert {path.split("/")[-1] for path in storage.contents()} >= {"LOG", "floor", "durable", "readers"}
        self.guarded = dict(self._guarded())

    def _run(self, storage: SimulatedStorage, appends: int) -> None:
        options = {"compression": self._compression, "segment_bytes": 900, "retain_bytes": 1600}
        with Log(LOG, partitions=2, storage=storage, **options) as log:
            for number in range(appends):
                for partition in (0, 1):
                    start = log.end(partition=partition)
                    log.groups["readers"].commit(start, partition=partition)
                    log.append(pa.record_batch({"n": pa.array(range(start, start + 3 + number))}), partition=partition)

    def _with_tail(self, storage: SimulatedStorage) -> SimulatedStorage:
        """The process is killed when the first append of another attempt is written and not synced."""
        dying = storage.kill(faults=[CutPower("sync", path="*.seg.tmp", nth=2)])  # nth=1 gives the segment its name
        with suppress(PowerLost):
            self._run(dying, 1)
        assert dying.fired["power cut"] == 1
        after = dying.kill()
        if self._tail == "cut":
            newest = max(path for path in after.contents() if path.endswith(".seg") and "partition-00000" in path)
            with after.open(newest, write=True) as file:
                file.truncate(file.size - 150)
        return after

    def _guarded(self) -> Iterator[tuple[str, list[range]]]:
        contents = {path: data for path, data in self.found.copy().contents().items() if data}
        segments = [path for path in contents if path.endswith(".seg")]
        for path, data in contents.items():
            if path.endswith("/durable"):
                yield path, []
            elif path not in segments:
                yield path, [range(len(data))]
            else:
                later = [other for other in segments if other.split("/")[-2] == path.split("/")[-2] and other > path]
                limit = (
                    int(min(later).split("/")[-1][:20]) if later else self._acknowledged[int(path.split("/")[-2][-1])]
                )
                yield path, list(_bytes_that_count(self.found.copy(), path, limit))

    def _everything(self, log: Log) -> list[Any]:
        partitions = []
        for partition in range(log.partitions):
            start = log.start(partition=partition)
            batches = islice(log.read(start, partition=partition), BATCHES_LIMIT)
            values = [n for batch in batches for n in batch.column("n").to_pylist()]
            partitions.append((start, values))
        return [log.id, log.schema, log.groups["readers"].offsets(), *partitions]

    def examine(self, damaged: SimulatedStorage, path: str, *, owner: bool) -> str:
        before = damaged.digests()
        verdict = self._verdict(damaged, path, owner)
        assert kept(before, damaged.digests())
        return verdict

    def _verdict(self, damaged: SimulatedStorage, path: str, owner: bool) -> str:
        """A reader beside the writer sees the same as the writer, or less of what was never acknowledged to it."""
        try:
            with Log(LOG, write=False, storage=damaged) as log:
                beside = self._everything(log)
        except CorruptLog as error:
            check_named(error, path)
            if not owner:
                return TOLD
            beside = None
        try:
            with Log(LOG, storage=damaged) as log:
                found, torn = self._everything(log), log.torn
        except CorruptLog as error:
            check_named(error, path)
            return TOLD
        assert beside is not None
        assert found[:3] == beside[:3] == self._most[:3]
        for seen, ours, least, most in zip(beside[3:], found[3:], self._least[3:], self._most[3:], strict=True):
            assert seen == (most[0], most[1][: len(seen[1])])
            assert ours == (most[0], most[1][: len(ours[1])])
            assert len(ours[1]) >= len(least[1])
        if found == self._most and (path.endswith("/durable") or path not in {each.path for each in torn}):
            return SAME
        assert path in {each.path for each in torn}
        return TORN


def _bytes_that_count(storage: SimulatedStorage, path: str, limit: int) -> Iterator[range]:
    """The header, and the frames below the limit without the padding behind them."""
    file, segment = open_segment(storage, path)
    yield range(segment.first.position)
    try:
        for frame in frames(file, segment.first, segment.header.base):
            if frame.header.rows and frame.header.stop <= limit:
                start = frame.at.position
                yield range(start, start + 64 + frame.header.length_bytes)
    except BadFrame:
        pass


# -- the state directory --


class ManifestSubject:
    """A manifest of a few commits, the last of them published; with ``tail`` half a record stands behind it."""

    def __init__(self, tail: bytes) -> None:
        self._tail = tail
        promises, storage = Promises(), SimulatedStorage()
        with StateDirectory.open(storage, simulated_state.PATH, fingerprint=FINGERPRINT) as state:
            for epoch in range(1, 5):
                commit = manifest.Commit(epoch, state.incarnation, state.term, FINGERPRINT, {"a": epoch}, {}, [], {})
                promises.appended[epoch] = commit
                state.append_commit(commit)
                state.append_final(epoch)
            self._expected = (state.last_commit, state.incarnation, state.next_epoch + 2)
        self.found = storage
        found = find_manifest(storage, simulated_state.PATH, storage.list(simulated_state.PATH))
        assert found is not None
        with storage.open(found.file, write=True) as file:
            file.append(tail)
        # The last record is acknowledged, and nothing proves it: it could still be torn.
        self.guarded = {found.file: [range(found.decoded.offsets[-1])]}

    def examine(self, damaged: SimulatedStorage, path: str, *, owner: bool) -> str:
        """There is no reader but the owner."""
        before, data = damaged.digests(), damaged.contents()[path]
        assert data is not None
        try:
            with StateDirectory.open(damaged, simulated_state.PATH, fingerprint=FINGERPRINT) as state:
                torn, found = state.torn, (state.last_commit, state.incarnation)
                publish_again, next_epoch = state.publish_again, state.next_epoch
        except CorruptState as error:
            check_named(error, path)
            assert kept(before, damaged.digests())
            return TOLD
        assert found == self._expected[:2]
        assert next_epoch >= self._expected[2]
        if torn is None:
            assert not self._tail
            assert not publish_again
            return SAME
        assert damaged.contents()[torn.path] == data[torn.offset :]
        assert len(data) - torn.offset == torn.size_bytes >= len(self._tail)
        return TORN


# -- the files of a stage --

WINDOW = "/srv/window"


class WindowSubject:
    """The files that the last snapshot of a window names: a log of ids, sealed runs, and with ``exact="bytes"`` a log
    of keys. Bytes behind what is committed are of no account, and cut off.
    """

    def __init__(self, exact: str) -> None:
        self._exact = exact
        storage = SimulatedStorage()
        window = self._window(storage)
        chance = random.Random(3)
        for _ in range(12 if exact == "bytes" else 6):
            self._probe(window, [chance.randrange(600) for _ in range(50)])
        self._state = window.snapshot()
        window.release(self._state)
        window.close()
        named = [*self._state["segments"], *self._state["runs"], *(self._keys() if exact == "bytes" else ())]
        assert len(self._state["runs"]) > 0
        self.guarded = {f"{WINDOW}/{each['file']}": [range(each["size_bytes"])] for each in named}
        for path in self.guarded:
            if path.endswith(".log"):
                with storage.open(path, write=True) as file:
                    file.append(b"never committed" * 3)
        self.found = storage
        self._answers = self._restored(storage.copy())

    def _keys(self) -> list[Any]:
        return list(self._state["exact"]["keys"]["segments"])

    def _window(self, storage: SimulatedStorage) -> KeyWindow:
        if self._exact != "bytes":
            return small_window(WINDOW, storage=storage, background=Inline(), within=None, memory_bytes=4000)
        return KeyWindow(
            [0], memory_bytes=24_000, storage=storage, directory=WINDOW, seed=SEED, durable=True, background=Inline(),
            exact="bytes", chunk_ids=16,
        )  # fmt: skip

    def _probe(self, window: KeyWindow, numbers: list[int]) -> list[bool]:
        if self._exact != "bytes":
            return list(probe(window, numbers))
        keys = pa.array([f"a key of more than sixteen bytes: {number}" for number in numbers])
        found = window.probe_batch(pa.record_batch({"key": keys}))
        return list(found.selection)

    def _restored(self, storage: SimulatedStorage) -> list[bool]:
        window = self._window(storage)
        try:
            window.restore(self._state)
            return self._probe(window, list(range(0, 1200, 7)))
        finally:
            window.close()

    def examine(self, damaged: SimulatedStorage, path: str, *, owner: bool) -> str:
        before = damaged.digests()
        checks = list(check_window_files(damaged, WINDOW, self._state))
        told = [check.path for check in checks if check.problem is not None]
        assert told in ([], [path])
        assert damaged.digests() == before
        if not owner and told:
            return TOLD
        committed = self._committed(damaged)
        try:
            assert self._restored(damaged) == self._answers
        except CorruptState as error:
            check_named(error, path)
            assert told == [path]
        assert self._committed(damaged) == committed
        return TOLD if told else SAME

    def _committed(self, storage: SimulatedStorage) -> dict[str, bytes]:
        """The bytes of every file that the snapshot names; what a restored window appends comes behind them."""
        contents = storage.contents()
        return {path: (contents[path] or b"")[: committed.stop] for path, [committed] in self.guarded.items()}


@dataclass(frozen=True)
class Made:
    """How a subject is made, and how many of all flips it is given."""

    make: Callable[[], Subject]
    weight: int
    told: float
    """The least part of its flips that must be told."""


SUBJECTS: dict[str, Made] = {
    "log": Made(lambda: LogSubject(None, "closed"), 2, 0.7),
    "log of lz4": Made(lambda: LogSubject("lz4", "closed"), 2, 0.7),
    "log of zstd": Made(lambda: LogSubject("zstd", "closed"), 2, 0.7),
    "log with an append that was only written": Made(lambda: LogSubject(None, "written"), 2, 0.6),
    "log with half an append": Made(lambda: LogSubject(None, "cut"), 2, 0.6),
    "manifest": Made(lambda: ManifestSubject(b""), 4, 0.8),
    "manifest with half a record": Made(lambda: ManifestSubject(b"\xabREC\x02\0\0\0half a record"), 4, 0.8),
    "window": Made(lambda: WindowSubject("fingerprint"), 2, 0.9),
    "window of full keys": Made(lambda: WindowSubject("bytes"), 2, 0.9),
}
