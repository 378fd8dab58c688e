"""Reading all of a log to say what is sound. Changes nothing, and takes no lock.

Law: a segment is sound if every frame is, and its rows reach the base of the one behind it; the newest may end in bytes
that were never acknowledged.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import CorruptLog
from engine.log.log import Log
from engine.log.segment import BadFrame, frames, open_segment
from engine.storage import Storage

__all__ = ["Finding", "verify"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one segment: rows [start, stop) are sound; ``damage`` says what is behind them, if anything."""

    partition: int
    path: str
    size_bytes: int
    start: int
    stop: int
    durable: int
    damage: str | None
    torn_bytes: int = 0


def verify(log: Log, storage: Storage) -> Iterator[Finding]:
    """A finding for every segment, partition by partition, the oldest first. Raises LogError where there is no log."""
    for partition in range(log.partitions):
        durable = log.end(partition=partition)
        bounds = log.bounds(partition=partition)
        limits = [*(base for base, _ in bounds[1:]), durable]
        for number, ((base, path), limit) in enumerate(zip(bounds, limits[: len(bounds)], strict=True), start=1):
            if storage.exists(path):  # else retention has just removed it
                yield _verify_segment(storage, partition, path, base, limit, newest=number == len(bounds))


def _verify_segment(storage: Storage, partition: int, path: str, base: int, limit: int, *, newest: bool) -> Finding:
    size, stop, damage, torn_bytes = storage.size(path), base, None, 0
    try:
        file, segment = open_segment(storage, path)
        with file:
            position = segment.first.position
            try:
                for frame in frames(file, segment.first, base):
                    stop, position = frame.header.stop, frame.behind.position
                    if stop >= limit and not newest:
                        break
            except BadFrame as bad:
                if stop < limit:
                    damage = f"byte {bad.position:,}: {bad}"
                torn_bytes = size - bad.position
            if stop < limit and damage is None:
                damage = f"byte {position:,}: it ends at row {stop:,}; rows up to {limit:,} were durable"
    except CorruptLog as error:
        damage = str(error).split("\n")[0].removeprefix(f"{path} is damaged at ")
    return Finding(partition, os.path.basename(path), size, base, stop, limit, damage, 0 if damage else torn_bytes)
