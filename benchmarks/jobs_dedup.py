"""Dedup for ever within little memory, in a child process: most ids are in sealed runs on disk."""

import hashlib

import numpy as np
from contest import Contender
from id_stream import IdStream

from engine import Deduplicator
from engine.stages.key_window import WindowStatistics

__all__ = ["expected", "sealed_runs"]

BATCH_ROWS = 65_536
DUPLICATES_PERCENT = 1


def _spans(ids: int) -> list[tuple[int, int]]:
    return [(start, min(start + BATCH_ROWS, ids)) for start in range(0, ids, BATCH_ROWS)]


def sealed_runs(ids: int, memory: str, spill: str) -> Contender:
    """All ids of the stream, repeats from anywhere before. Making the ids is timed too: some 4 % of it."""
    stream = IdStream(ids, DUPLICATES_PERCENT)

    def run() -> tuple[str, WindowStatistics]:
        digest = hashlib.blake2b(digest_size=8)
        with Deduplicator("event_id", memory=memory, spill=spill) as seen:
            for start, stop in _spans(ids):
                probe = seen.probe(stream.batch(start, stop)[0])
                seen.commit(probe.token)
                digest.update(np.packbits(probe.mask.to_numpy(zero_copy_only=False)).tobytes())
            told = seen.statistics()
        return digest.hexdigest(), told

    def note(result: tuple[str, WindowStatistics]) -> str:
        told = result[1]
        recent, filters, disk = (size / 1e6 for size in (told.recent_bytes, told.filter_bytes, told.disk_bytes))
        return (
            f"{told.runs} runs, {told.run_lookups:,} look-ups; recent {recent:.0f} MB, filters {filters:.0f} MB, "
            f"disk {disk:,.0f} MB"
        )

    return Contender("", run, lambda result: result[0], note=note)


def expected(ids: int) -> str:
    """What must be kept."""
    stream = IdStream(ids, DUPLICATES_PERCENT)
    digest = hashlib.blake2b(digest_size=8)
    for start, stop in _spans(ids):
        digest.update(np.packbits(stream.batch(start, stop)[1]).tobytes())
    return digest.hexdigest()
