"""The sealed runs of one window, oldest first: sealing, asking, merging, dropping, and which files may be deleted when.

Laws
    - Runs cover disjoint ranges of positions in ascending order; an id's newest run answers first.
    - Five adjacent runs of similar size become one, so that a window of n keys has O(log n) runs; a run wholly
      below the horizon is dropped. Merging streams: a few hundred KiB a run in memory.
    - A run becomes durable (synced, renamed, directory synced) before a snapshot names it.
    - A file that a durable snapshot may name is deleted only once a later snapshot is final (``release``).
    - One owner at a time.
"""

import os
from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from engine._core.dedup import DedupWindow
from engine._core.id_run import DamagedBlockError, RunMerger
from engine.errors import CorruptState
from engine.instrument import SILENT, Instrument
from engine.stages.sealed_run import UNFINISHED, RunWriter, SealedRun
from engine.storage import Storage

__all__ = ["IdRuns", "RunState"]

MERGE_RUNS = 5
SIMILAR_FACTOR = 4
MAX_RUNS = 24
"""With more runs than this, the cheapest neighbours are merged although their sizes differ."""

KEYS_PER_PART = 131_072
"""Keys sorted at once while sealing: about 10 MiB of working memory."""


class RunState(TypedDict):
    """A run as a snapshot names it."""

    file: str
    size_bytes: int
    crc: int
    count: int
    first: int
    stop: int


class IdRuns:
    """The runs beside a window; their files lie in ``directory``, which exists by the time of the first ``seal``."""

    def __init__(self, storage: Storage, directory: str, seed: bytes, *, instrument: Instrument = SILENT) -> None:
        self._storage = storage
        self._directory = directory
        self._seed = seed
        self._instrument = instrument
        self._runs: list[SealedRun] = []
        self._garbage: set[str] = set()
        self.suspects_cleared = 0
        self.seals = 0
        self.merges = 0

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def memory_bytes(self) -> int:
        """Memory of filters and indices."""
        return sum(run.memory_bytes for run in self._runs)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the runs' files."""
        return sum(run.size_bytes for run in self._runs)

    def ask(self, window: DedupWindow) -> None:
        """Settle the rows of the last probe that only runs can judge, newest run first. Raises CorruptState."""
        for number in range(len(self._runs) - 1, -1, -1):
            ids = window.suspects(number)
            if ids:
                positions = self._runs[number].find(ids)
                self.suspects_cleared += int(np.count_nonzero(positions == np.uint64(2**64 - 1)))
                window.resolve(positions.data)

    def seal(self, window: DedupWindow, stop: int) -> None:
        """Write the committed ids below position ``stop`` as a run and let the window forget them; merge if that
        is due.
        """
        first = window.oldest
        self._instrument("seal.begin", first=first, stop=stop)
        writer = RunWriter(self._storage, self._directory, _name(first, stop), self._seed, stop - first)
        try:
            parts = -(-(stop - first) // KEYS_PER_PART)
            for part in range(parts):
                writer.append(window.sorted_entries(first, stop, part, parts))
            run = writer.finish(first, stop)
        except BaseException:
            writer.discard()
            raise
        self._replace(slice(len(self._runs), None), [run], window)
        window.seal_below(stop)
        self.seals += 1
        self._instrument("seal.end", first=first, stop=stop, count=run.count)
        self.drop_expired(window)
        while group := self._merge_group():
            self._merge(group, window)

    def drop_expired(self, window: DedupWindow) -> None:
        """Drop the runs in which nothing is left above the horizon."""
        keep = 0
        while keep < len(self._runs) and self._runs[keep].last_position < window.horizon:
            keep += 1
        if keep:
            self._replace(slice(0, keep), [], window)

    def shed_filters(self, limit_bytes: int, window: DedupWindow) -> None:
        """Let go the filters of the oldest runs until the rest fits: those runs are asked for every row in their
        range.
        """
        excess = self.memory_bytes - limit_bytes
        for run in self._runs:
            if excess <= 0:
                break
            excess -= len(run.filter_blocks or b"")
            run.filter_blocks = None
        self._describe_to(window)

    def _merge_group(self) -> slice | None:
        """The newest runs, at least five adjacent ones of similar size, that should become one."""
        for stop in range(len(self._runs), MERGE_RUNS - 1, -1):
            start = stop
            least = most = self._runs[stop - 1].count
            while start > 0:
                least = min(least, self._runs[start - 1].count)
                most = max(most, self._runs[start - 1].count)
                if most > least * SIMILAR_FACTOR:
                    break
                start -= 1
            if stop - start >= MERGE_RUNS:
                return slice(start, stop)
        if len(self._runs) > MAX_RUNS:
            starts = range(len(self._runs) - MERGE_RUNS + 1)
            sizes = [sum(run.count for run in self._runs[i : i + MERGE_RUNS]) for i in starts]
            start = sizes.index(min(sizes))
            return slice(start, start + MERGE_RUNS)
        return None

    def _merge(self, group: slice, window: DedupWindow) -> None:
        runs = self._runs[group]
        first, stop = runs[0].first, runs[-1].stop
        self._instrument("merge.begin", first=first, stop=stop, runs=len(runs))
        writer = RunWriter(
            self._storage, self._directory, _name(first, stop), self._seed, sum(run.count for run in runs)
        )
        try:
            _merge_into(writer, runs, self._seed, window.horizon)
            merged = writer.finish(first, stop)
        except BaseException:
            writer.discard()
            raise
        self._replace(group, [merged], window)
        self.merges += 1
        self._instrument("merge.end", first=first, stop=stop, count=merged.count)

    def _replace(self, group: slice, runs: list[SealedRun], window: DedupWindow) -> None:
        gone = self._runs[group]
        self._runs[group] = runs
        self._describe_to(window)
        for run in gone:
            run.close()
            if run.durable:
                self._garbage.add(run.name)
            else:
                self._storage.unlink(run.path)

    def _describe_to(self, window: DedupWindow) -> None:
        window.set_runs([(run.first, run.last_position + 1, run.filter_blocks) for run in self._runs])

    def make_durable(self) -> list[RunState]:
        """Make every run durable and describe them for a snapshot."""
        fresh = [run for run in self._runs if not run.durable]
        for run in fresh:
            run.sync()
            path = os.path.join(self._directory, run.name)
            self._storage.rename(path + UNFINISHED, path)
        if fresh:
            self._storage.sync_directory(self._directory)
        for run in fresh:
            run.durable = True
        return [_state_of(run) for run in self._runs]

    def restore(self, states: Iterable[RunState], window: DedupWindow, *, durable: bool = True) -> None:
        """Open the runs that a snapshot names; ``durable`` if files of their names must outlive them. Raises
        CorruptState.
        """
        for state in states:
            run = SealedRun.open(self._storage, self._directory, state["file"], self._seed)
            run.durable = durable
            self._runs.append(run)
            if _state_of(run) != state:
                path = os.path.join(self._directory, run.name)
                raise CorruptState(f"{path}: is not the id run that the checkpoint names; restore the file.", path=path)
        self._describe_to(window)

    def release(self, states: Iterable[RunState]) -> None:
        """A snapshot with these runs is final: delete dropped files that it does not name."""
        named = {state["file"] for state in states}
        for name in sorted(self._garbage - named):
            self._storage.unlink(os.path.join(self._directory, name))
            self._garbage.discard(name)

    def contents(self) -> list[tuple[RunState, bytes]]:
        """Every run with its whole file, for a snapshot that stands alone."""
        return [(_state_of(run), run.content()) for run in self._runs]

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        for run in self._runs:
            run.close()


def _name(first: int, stop: int) -> str:
    return f"run-{first:020}-{stop:020}.ids"


def _state_of(run: SealedRun) -> RunState:
    return RunState(
        file=run.name,
        size_bytes=run.size_bytes,
        crc=run.footer_crc,
        count=run.count,
        first=run.first,
        stop=run.stop,
    )


def _merge_into(writer: RunWriter, runs: list[SealedRun], seed: bytes, horizon: int) -> None:
    merger = RunMerger(seed, len(runs), horizon)
    pieces = [run.pieces() for run in runs]

    def feed(number: int) -> None:
        _, blocks = next(pieces[number], (0, b""))
        try:
            merger.feed(number, blocks)
        except DamagedBlockError as error:
            raise runs[number].damaged(error.number) from error

    for number in range(len(runs)):
        feed(number)
    starving = 0
    while starving >= 0:
        entries, starving = merger.merge()
        writer.append(entries)
        if starving >= 0:
            feed(starving)
