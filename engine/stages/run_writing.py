"""How a run comes to be, step by step: sorted from ids that are in memory, or merged from runs.

Laws
    - A step takes milliseconds; kernels and reads in it run without the GIL. Memory is bounded: about 8 MiB to seal
      beside the ids themselves and four bytes for each, 2 MiB to merge, and the new run's filter where it is to stay
      in memory.
    - The file has an unfinished name. Whatever ends the work early, an error or being dropped, removes it.
    - Runs that are merged are only read: they go on answering meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine._core.id_run import DamagedBlockError, RunMerger, RunSorter
from engine.background import Steps
from engine.instrument import Instrument
from engine.stages.sealed_run import RunWriter, SealedRun
from engine.storage import Storage

__all__ = ["MERGES_AT_ONCE", "RunPlace", "write_merged", "write_sealed"]

MERGES_AT_ONCE = 4
"""Merges under way; a narrow one overtakes the wide ones."""

_MOST_KEYS_PER_PART = 65_536
_BYTES_PER_KEY = 100
"""What sorting a key takes: two items of its hash, an entry, its place in a block, twice."""

_MOST_PIECE_BLOCKS = 32
_BYTES_PER_PIECE_BLOCK = 12_288
"""What a block of a merge's input takes: as read, as entries with their hashes, merged."""


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where the runs of one window go. ``sync`` makes their bytes durable; their names are others' business."""

    storage: Storage
    directory: str
    seed: bytes
    sync: bool
    buffer_bytes: int
    instrument: Instrument

    @property
    def keys_per_part(self) -> int:
        """Keys sorted at once while sealing."""
        return min(max(self.buffer_bytes // _BYTES_PER_KEY, 64), _MOST_KEYS_PER_PART)

    def piece_blocks(self, inputs: int) -> int:
        """Blocks read at once of each input of a merge."""
        fitting = self.buffer_bytes // (MERGES_AT_ONCE * inputs * _BYTES_PER_PIECE_BLOCK)
        return min(max(fitting, 1), _MOST_PIECE_BLOCKS)

    def writer(self, first: int, stop: int, *, keys: int, filter_in_memory: bool) -> RunWriter:
        """Begin the run of the positions ``[first, stop)``."""
        name = f"run-{first:020}-{stop:020}.ids"
        return RunWriter(self.storage, self.directory, name, self.seed, keys=keys, filter_in_memory=filter_in_memory)


def write_sealed(place: RunPlace, ids: bytes, first: int, *, filter_in_memory: bool) -> Steps[SealedRun]:
    """The run of ids (16 bytes each) that were seen at the positions from ``first`` on."""
    count = len(ids) // 16
    stop = first + count
    place.instrument("seal.begin", first=first, stop=stop)
    writer = place.writer(first, stop, keys=count, filter_in_memory=filter_in_memory)
    try:
        parts = -(-count // place.keys_per_part)
        sorter = RunSorter(place.seed, ids, first, parts)
        for part in range(parts):
            writer.append(writer.encoder.encode(sorter.entries(part)))
            yield
        run = yield from writer.finish(first, stop, sync=place.sync)
    except BaseException:
        writer.discard()
        raise
    place.instrument("seal.end", first=first, stop=stop, count=run.count)
    return run


def write_merged(
    place: RunPlace, runs: Sequence[SealedRun], horizon: int, *, filter_in_memory: bool
) -> Steps[SealedRun]:
    """One run in place of adjacent ones, without what lies below the horizon."""
    first, stop = runs[0].first, runs[-1].stop
    place.instrument("merge.begin", first=first, stop=stop, runs=len(runs))
    keys = sum(run.count for run in runs)
    writer = place.writer(first, stop, keys=keys, filter_in_memory=filter_in_memory)
    try:
        yield from _merge_into(writer, runs, place, horizon)
        run = yield from writer.finish(first, stop, sync=place.sync)
    except BaseException:
        writer.discard()
        raise
    place.instrument("merge.end", first=first, stop=stop, count=run.count)
    return run


def _merge_into(writer: RunWriter, runs: Sequence[SealedRun], place: RunPlace, horizon: int) -> Steps[None]:
    merger = RunMerger(place.seed, len(runs), horizon)
    pieces = [run.pieces(place.piece_blocks(len(runs))) for run in runs]

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
        blocks, starving = merger.merge(writer.encoder)
        writer.append(blocks)
        if starving >= 0:
            feed(starving)
        yield
