"""How a run comes to be, step by step: sorted from ids that are in memory, or merged from runs.

Laws
    - A step takes milliseconds; kernels and reads in it run without the GIL. Memory is bounded: about 8 MiB to seal
      beside the ids themselves, 2 MiB to merge, and the new run's filter where it is to stay in memory.
    - The file has an unfinished name. Whatever ends the work early, an error or being dropped, removes it.
    - Runs that are merged are only read: they go on answering meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine._core.id_run import DamagedBlockError, RunMerger, sorted_entries
from engine.background import Steps
from engine.instrument import Instrument
from engine.stages.sealed_run import RunWriter, SealedRun
from engine.storage import Storage

__all__ = ["RunPlace", "write_merged", "write_sealed"]

KEYS_PER_PART = 65_536
"""Keys sorted at once while sealing: about 6 MiB of working memory."""


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where the runs of one window go. ``sync`` makes their bytes durable; their names are others' business."""

    storage: Storage
    directory: str
    seed: bytes
    sync: bool
    instrument: Instrument

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
        parts = -(-count // KEYS_PER_PART)
        for part in range(parts):
            writer.append(writer.encoder.encode(sorted_entries(place.seed, ids, first, part, parts)))
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
        yield from _merge_into(writer, runs, place.seed, horizon)
        run = yield from writer.finish(first, stop, sync=place.sync)
    except BaseException:
        writer.discard()
        raise
    place.instrument("merge.end", first=first, stop=stop, count=run.count)
    return run


def _merge_into(writer: RunWriter, runs: Sequence[SealedRun], seed: bytes, horizon: int) -> Steps[None]:
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
        blocks, starving = merger.merge(writer.encoder)
        writer.append(blocks)
        if starving >= 0:
            feed(starving)
        yield
