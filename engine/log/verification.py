"""Reading all of a log to say what is sound. Changes nothing, and takes no lock.

Laws
    - A segment is sound if every frame is, and its rows reach the base of the one behind it; the newest may end in
      bytes that were never acknowledged: that no frame in it, no group and no reader's offset proves durable.
    - Damage ends nothing, nor does a file that the disk does not give: every segment of every partition is told of, and
      last what else keeps a partition from being read, such as the document of a group.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.errors import CorruptLog, LogError
from engine.log.durable import durable_identity, read_durable
from engine.log.format import Kind
from engine.log.log import Log
from engine.log.recovery import corrupt
from engine.log.segment import BadFrame, frames, open_segment, proven_behind
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
    """A finding for every segment, partition by partition, the oldest first. Raises LogError where there is no log, or
    it cannot be read for another reason than one of its segments.
    """
    told: set[str] = set()
    for partition in range(log.partitions):
        durable, error = _durable(log, storage, partition)
        bounds = log.bounds(partition=partition)
        limits = [*(base for base, _ in bounds[1:]), durable]
        for number, ((base, path), limit) in enumerate(zip(bounds, limits[: len(bounds)], strict=True), start=1):
            found = _verify_segment(storage, log.id, partition, path, base, limit, newest=number == len(bounds))
            if storage.exists(path):  # else retention has just removed it
                if isinstance(error, CorruptLog) and error.path == path and found.damage is None:
                    found = replace(found, damage=_told(error), torn_bytes=0)
                if found.damage is not None:
                    told.add(path)
                yield found
        if isinstance(error, CorruptLog):
            if error.path not in told:
                told.add(error.path)
                yield Finding(partition, os.path.basename(error.path), 0, 0, 0, durable, _told(error))
        elif error is not None and told.isdisjoint(path for _, path in bounds):
            raise error


def _durable(log: Log, storage: Storage, partition: int) -> tuple[int, LogError | None]:
    """The offset behind the last durable row, or what else is known of it, and what is damaged or cannot be read."""
    try:
        return log.end(partition=partition), None
    except LogError as error:
        if not isinstance(error, CorruptLog) and not isinstance(error.__cause__, OSError):
            raise  # of a later release
        directory = os.path.join(log.path, f"partition-{partition:05}")
        known = read_durable(storage, directory, durable_identity(log.id, partition))
        with suppress(CorruptLog):
            known = max(known, log.groups.highest(partition))
        return known, error


def _told(error: CorruptLog) -> str:
    return str(error).split("\n")[0].removeprefix(f"{error.path} is damaged").removeprefix(" at ").removeprefix(": ")


def _verify_segment(
    storage: Storage, log: str, partition: int, path: str, base: int, limit: int, *, newest: bool
) -> Finding:
    size, stop, damage, torn_bytes = 0, base, None, 0
    try:
        size = storage.size(path)
        file, segment = open_segment(storage, path)
        with file:
            end, marked = segment.first, False
            if (segment.header.log, segment.header.partition) != (log, partition):
                raise corrupt(path, 0, f"it belongs to partition {segment.header.partition} of {segment.header.log}")
            try:
                for frame in frames(file, segment.first, base):
                    stop, end, marked = frame.header.stop, frame.behind, frame.header.kind is Kind.MARK
                    if newest:
                        limit = max(limit, frame.header.durable_through)
                    elif stop >= limit:
                        break
            except BadFrame as bad:
                limit = max(limit, proven_behind(file, end)) if newest else limit
                if stop < limit or (newest and segment.header.published_whole):
                    damage = f"byte {bad.position:,}: {bad}"
                torn_bytes = size - bad.position
            if damage is None and stop < limit:
                damage = f"byte {end.position:,}: it ends at row {stop:,}; rows up to {limit:,} were durable"
            if damage is None and newest and segment.header.published_whole and not marked:
                damage = f"byte {end.position:,}: it was finished with a mark, which is not there"
    except CorruptLog as error:
        damage = _told(error)
    except OSError as error:
        damage = f"it cannot be read: {error.strerror or error}"
    return Finding(partition, os.path.basename(path), size, base, stop, limit, damage, 0 if damage else torn_bytes)
