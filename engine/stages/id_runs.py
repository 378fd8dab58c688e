"""The sealed runs of one window, oldest first: asking, sealing and merging in the background, and which files may go.

Laws
    - Runs cover disjoint ranges of positions in ascending order; an id's newest run answers first.
    - Runs are written by background jobs (``run_writing``); what a job has made takes its place in ``poll``, on the
      owner's thread, between two batches. Answers do not depend on when: until then memory answers for what is
      being sealed, and the runs for what is being merged.
    - A seal goes before every merge, a narrow merge before a wide one. A seal's failure is an error. So is a
      merge's, but for a full disk: that merge is tried again some seals later, and reported.
    - Runs stay few (``run_tiers``), and so do open files; an owner who seals faster than runs are merged waits.
    - A run wholly below the horizon is dropped.
    - A run becomes durable (synced, renamed, directory synced) before a snapshot names it. A file that a durable
      snapshot may name is deleted only once a later snapshot is final (``release``).
    - Filters are in memory, the newest runs' first, as far as their limit allows; the others' pages are read as a batch
      needs them.
    - One owner at a time.
"""

import errno
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from engine._core.dedup import DedupWindow
from engine._core.id_run import filter_block_count
from engine.background import Background, Job, Steps
from engine.errors import CorruptState
from engine.instrument import SILENT, Instrument
from engine.stages.run_filter import PAGES_AT_ONCE
from engine.stages.run_tiers import MANY, next_merge
from engine.stages.run_writing import MERGES_AT_ONCE, RunPlace, write_merged, write_sealed
from engine.stages.sealed_run import NOWHERE, UNFINISHED, SealedRun
from engine.storage import Storage

__all__ = ["IdRuns", "RunState"]

CROWD = MANY + 24
"""With more runs than this the owner waits for a merge."""

MOST_RUNS = 256
"""With so many runs, a merge that the disk has no room for is an error: files must not become ever more."""

RETRY_SEALS = 4
"""A merge that the disk had no room for is tried again after so many seals."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FILTER_BLOCK_BYTES = 32


class RunState(TypedDict):
    """A run as a snapshot names it."""

    file: str
    size_bytes: int
    crc: int
    count: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class _Making:
    """A run that is being written: from these runs, or, without any, from memory."""

    job: Job[SealedRun]
    stop: int
    filter_bytes: int
    runs: tuple[SealedRun, ...] = ()


class IdRuns:
    """The runs beside a window; their files lie in ``directory``, which exists by the time of the first ``seal``.

    ``filter_limit_bytes`` bounds the filters in memory, None lets all of them stay; ``buffer_bytes`` is for
    sealing, and as much for merging.
    """

    def __init__(
        self,
        storage: Storage,
        directory: str,
        seed: bytes,
        *,
        durable: bool,
        background: Background,
        filter_limit_bytes: int | None,
        buffer_bytes: int,
        instrument: Instrument = SILENT,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._seed = seed
        self._background = background
        self._filter_limit_bytes = sys.maxsize if filter_limit_bytes is None else filter_limit_bytes
        self._instrument = instrument
        self._place = RunPlace(storage, directory, seed, durable, buffer_bytes, instrument)
        self._runs: list[SealedRun] = []
        self._sealing: _Making | None = None
        self._merging: list[_Making] = []
        self._removing: list[Job[None]] = []
        self._garbage: set[str] = set()
        self._merge_from_seal = 0
        self.suspects_cleared = 0
        self.seals = 0
        self.merges = 0
        self.merges_postponed = 0

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def filter_bytes(self) -> int:
        """Memory of the filters, those of runs that are being written included."""
        making = [*self._merging, *([] if self._sealing is None else [self._sealing])]
        return sum(run.filter.memory_bytes for run in self._runs) + sum(made.filter_bytes for made in making)

    @property
    def index_bytes(self) -> int:
        """Memory of the block indices."""
        return sum(run.index_bytes for run in self._runs)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the runs' files."""
        return sum(run.size_bytes for run in self._runs)

    @property
    def sealing(self) -> bool:
        """Whether a seal is under way."""
        return self._sealing is not None

    def ask(self, window: DedupWindow) -> None:
        """Settle the rows of the last probe that only runs can judge, newest run first. Raises CorruptState."""
        for number in range(len(self._runs) - 1, -1, -1):
            run = self._runs[number]
            ids = window.suspects(number) if run.filter.blocks is not None else self._sift(number, window)
            if ids:
                positions = run.find(ids)
                self.suspects_cleared += int(np.count_nonzero(positions == np.uint64(NOWHERE)))
                window.resolve(positions.data)

    def _sift(self, number: int, window: DedupWindow) -> bytes:
        """The suspects of a run whose filter is not in memory."""
        bloom = self._runs[number].filter
        wanted = np.frombuffer(window.wanted_pages(number, bloom.block_count), np.uint32)
        for at in range(0, len(wanted), PAGES_AT_ONCE):
            numbers = wanted[at : at + PAGES_AT_ONCE]
            window.sift(number, bloom.block_count, numbers.data, bloom.pages(numbers))
        return window.sifted()

    # Sealing and merging.

    def seal(self, window: DedupWindow, stop: int) -> None:
        """Begin to write the committed ids below position ``stop`` as a run. REQUIRES: no seal is under way."""
        first = window.oldest
        filter_bytes = self._room_for_filter(stop - first)
        steps = write_sealed(self._place, window.ids(first, stop), first, filter_in_memory=filter_bytes > 0)
        self._sealing = _Making(self._background.submit(steps, priority=0), stop, filter_bytes)
        self.poll(window)

    def finish_seal(self, window: DedupWindow) -> None:
        """Wait for the seal that is under way."""
        if self._sealing is not None:
            self._background.wait(self._sealing.job)
            self.poll(window)

    def poll(self, window: DedupWindow) -> None:
        """Let what background jobs have made take its place; raise what failed in them."""
        changed = False
        if self._sealing is not None and self._sealing.job.done:
            making, self._sealing = self._sealing, None
            self._replace(slice(len(self._runs), None), [making.job.result()], window)
            window.seal_below(making.stop)
            self.seals += 1
            changed = True
        for making in [making for making in self._merging if making.job.done]:
            self._merging.remove(making)
            changed |= self._install(making, window)
        if changed:
            self.drop_expired(window)
            self._merge_more(window)

    def _install(self, making: _Making, window: DedupWindow) -> bool:
        try:
            merged = making.job.result()
        except OSError as error:
            if error.errno not in _NO_ROOM or len(self._runs) >= MOST_RUNS:
                raise
            self.merges_postponed += 1
            self._merge_from_seal = self.seals + RETRY_SEALS
            self._instrument("merge.postponed", first=making.runs[0].first, stop=making.stop, error=str(error))
            return False
        start = self._runs.index(making.runs[0])
        self._replace(slice(start, start + len(making.runs)), [merged], window)
        self.merges += 1
        return True

    def _merge_more(self, window: DedupWindow) -> None:
        """Begin the merges that are due. With too many runs, wait for the narrowest one."""
        while len(self._merging) < MERGES_AT_ONCE and self.seals >= self._merge_from_seal:
            busy = {run for making in self._merging for run in making.runs}
            group = next_merge([run.stop - run.first for run in self._runs], [run in busy for run in self._runs])
            if group is None:
                break
            runs = tuple(self._runs[group])
            filter_bytes = self._room_for_filter(sum(run.count for run in runs))
            steps = write_merged(self._place, runs, window.horizon, filter_in_memory=filter_bytes > 0)
            job = self._background.submit(steps, priority=runs[-1].stop - runs[0].first)
            self._merging.append(_Making(job, runs[-1].stop, filter_bytes, runs))
            self.poll(window)
        if len(self._runs) > CROWD and self._merging:
            self._background.wait(min(self._merging, key=lambda making: making.job.priority).job)
            self.poll(window)

    def drop_expired(self, window: DedupWindow) -> None:
        """Drop the runs in which nothing is left above the horizon, but for those that are being merged."""
        busy = {run for making in self._merging for run in making.runs}
        keep = 0
        while keep < len(self._runs) and self._runs[keep].last_position < window.horizon:
            if self._runs[keep] in busy:
                break
            keep += 1
        if keep:
            self._replace(slice(0, keep), [], window)

    def _replace(self, group: slice, runs: list[SealedRun], window: DedupWindow) -> None:
        gone = self._runs[group]
        self._runs[group] = runs
        self._arrange_filters(window)
        self._garbage.update(run.name for run in gone if run.durable)
        if gone:
            self._removing = [job for job in self._removing if not job.done]
            self._removing.append(self._background.submit(_remove(self._storage, gone), priority=1))

    def _room_for_filter(self, keys: int) -> int:
        """Bytes of the filter of a run of so many keys; 0 where it may not be in memory beside those that are."""
        size_bytes = filter_block_count(keys) * _FILTER_BLOCK_BYTES
        return size_bytes if self.filter_bytes + size_bytes <= self._filter_limit_bytes else 0

    def _arrange_filters(self, window: DedupWindow) -> None:
        """Bring the newest runs' filters into memory as far as they fit, leave the others to their files."""
        left = self._filter_limit_bytes
        fitting = []
        for run in reversed(self._runs):
            left -= run.filter.size_bytes
            if left >= 0:
                fitting.append(run)
            else:
                run.filter.unload()
        self._describe_to(window)
        if any(run.filter.blocks is None for run in fitting):
            for run in fitting:
                run.filter.load()
            self._describe_to(window)

    def _describe_to(self, window: DedupWindow) -> None:
        window.set_runs([(run.first, run.last_position + 1, run.filter.blocks) for run in self._runs])

    # Durability.

    def make_durable(self) -> list[RunState]:
        """Make every run durable and describe them for a snapshot."""
        fresh = [run for run in self._runs if not run.durable]
        for run in fresh:
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
        self._arrange_filters(window)

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
        """End the background's work and close the files; finished ones stay. Harmless when repeated."""
        making = [*self._merging, *([] if self._sealing is None else [self._sealing])]
        self._merging, self._sealing = [], None
        for made in making:
            self._background.cancel(made.job)
            if made.job.value is not None:
                made.job.value.close()
        for job in self._removing:
            self._background.wait(job)
        for run in self._runs:
            run.close()


def _remove(storage: Storage, runs: list[SealedRun]) -> Steps[None]:
    """Give back what runs hold that were replaced or dropped. Files that a snapshot may name stay."""
    for run in runs:
        run.filter.unload()
        if not run.durable:
            yield from run.shrink()
            storage.unlink(run.path)
        run.close()
        yield


def _state_of(run: SealedRun) -> RunState:
    return RunState(
        file=run.name,
        size_bytes=run.size_bytes,
        crc=run.footer_crc,
        count=run.count,
        first=run.first,
        stop=run.stop,
    )
