"""What a partition's files say: which rows are durable, what was only written, and what is damage. Reads only.

Laws
    - Let W be the highest offset that anything proves to be durable: the base of a named segment, ``durable_through``
      of any valid frame, the offsets that were published for other readers or committed by a group. A bad frame below
      W is corruption: an error that names file and byte. Above W it is a torn tail: it stays where it is, is
      reported, and the next segment, whose base is W, takes its place.
    - The base of a segment ends the one before it: frames at or above it are ignored.
    - Segments that are missing in the middle, or behind what was durable, are corruption, never an end.
    - Recovery writes nothing: killing it anywhere and running it again gives the same answer.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from engine.errors import CorruptLog
from engine.log.format import Tail
from engine.log.segment import BadFrame, Frame, Segment, frames, headers, open_segment, proven_behind, segment_names
from engine.storage import File, Storage

__all__ = ["Recovered", "Torn", "corrupt", "durable_offset", "recover"]


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes behind the last durable row that were never acknowledged; they stay in the file and are ignored."""

    path: str
    position: int
    size_bytes: int


@dataclass(slots=True)
class Recovered:
    """A partition as it was found."""

    segments: list[Segment]
    durable: int
    written: list[Frame]
    """Whole frames behind ``durable``: written, perhaps not acknowledged; they go into the next segment."""

    torn: Torn | None
    time_us: int
    """The time of the last append."""


def recover(
    storage: Storage, directory: str, *, log: str, partition: int, floor: int, published: int, committed: int
) -> Recovered:
    """Read the newest segment and the headers of all others.

    ``floor`` is the number of the oldest segment that retention left, ``published`` and ``committed`` are offsets that
    others were told. Raises CorruptLog, LogError for a later format, OSError.
    """
    proven = max(published, committed)
    segments = _segments(storage, directory, log, partition, floor, proven)
    return _read_newest(storage, segments, proven) if segments else Recovered([], 0, [], None, 0)


def durable_offset(
    storage: Storage, directory: str, *, log: str, partition: int, floor: int, published: int, committed: int
) -> int:
    """What ``recover`` gives as ``durable``, for those who read: they compare the bodies when they come to them, and
    here headers are read alone, where these go on to the end of the file. Raises as ``recover``.
    """
    proven = max(published, committed)
    segments = _segments(storage, directory, log, partition, floor, proven)
    if not segments:
        return 0
    newest = segments[-1]
    if newest.header.published_whole:
        return _read_newest(storage, segments, proven).durable
    proven = max(proven, newest.header.base)
    stop, end = newest.header.base, newest.first.position
    with storage.open(newest.path) as file:
        for header, _, behind in headers(file, newest.first, newest.header.base):
            proven = max(proven, header.durable_through)
            end = behind.position
            if end <= file.size:
                stop = header.stop
        if end < file.size or stop < proven:  # something else is there: a torn tail, or damage
            return _read_newest(storage, segments, max(published, committed)).durable
    return proven


def _segments(storage: Storage, directory: str, log: str, partition: int, floor: int, proven: int) -> list[Segment]:
    """All that retention left, the oldest first, with their headers. Raises CorruptLog where one is missing."""
    names = segment_names(storage.list(directory))
    segments = [
        _read_segment(storage, os.path.join(directory, name), log, partition)
        for number, name in names
        if number >= floor
    ]
    for number, segment in enumerate(segments, start=floor):
        if segment.header.number != number:
            raise corrupt(segment.path, 0, f"segment {number} before it is missing")
    for before, segment in pairwise(segments):
        if segment.header.base < before.header.base:
            raise corrupt(segment.path, 0, f"it begins before {before.path}, which is older")
    if not segments and (proven or floor):
        raise corrupt(directory, None, f"no segment is left; rows up to {proven:,} were durable")
    return segments


def _read_segment(storage: Storage, path: str, log: str, partition: int) -> Segment:
    file, segment = open_segment(storage, path)
    file.close()
    if (segment.header.log, segment.header.partition) != (log, partition):
        raise corrupt(path, 0, f"it belongs to partition {segment.header.partition} of log {segment.header.log}")
    return segment


def _read_newest(storage: Storage, segments: list[Segment], proven: int) -> Recovered:
    newest = segments[-1]
    with storage.open(newest.path) as file:
        found, bad = _collect(file, newest)
        proven = max([proven, newest.header.base, *(frame.header.durable_through for frame in found.recent)])
        torn = None
        if bad is not None:
            proven = max(proven, proven_behind(file, found.end))
            if bad.offset < proven or newest.header.published_whole:
                raise corrupt(newest.path, bad.position, f"{bad}; rows up to {proven:,} were durable")
            torn = Torn(newest.path, bad.position, file.size - bad.position)
    if found.stop < proven or (newest.header.published_whole and not found.marked):
        raise corrupt(newest.path, found.end.position, f"it ends at row {found.stop:,}; {proven:,} were durable")
    written = [frame for frame in found.recent if frame.header.rows and frame.header.stop > proven]
    return Recovered(segments, proven, written, torn, found.time_us)


@dataclass(slots=True)
class _Found:
    """What reading the newest segment gave."""

    recent: list[Frame]
    """The last frame, and before it those that it does not prove durable."""

    stop: int
    end: Tail
    time_us: int = 0
    marked: bool = False


def _collect(file: File, segment: Segment) -> tuple[_Found, BadFrame | None]:
    found = _Found([], segment.header.base, segment.first)
    try:
        for frame in _noting(frames(file, segment.first, segment.header.base), found):
            # A frame proves those before it: bodies that nobody will need are let go.
            found.recent = [old for old in found.recent if old.header.stop > frame.header.durable_through]
            found.recent.append(frame)
    except BadFrame as bad:
        return found, bad
    return found, None


def _noting(read: Iterator[Frame], found: _Found) -> Iterator[Frame]:
    for frame in read:
        yield frame
        found.stop, found.end = frame.header.stop, frame.behind
        found.time_us = max(found.time_us, frame.header.time_us)
        found.marked = frame.header.rows == 0


def corrupt(path: str, position: int | None, reason: str) -> CorruptLog:
    """The error for damage below what was durable."""
    where = "" if position is None else f" at byte {position:,}"
    return CorruptLog(
        f"{path} is damaged{where}: {reason}.\n  Nothing was changed or deleted. Bring back a whole copy of the file.",
        path=path,
        offset=position,
    )
