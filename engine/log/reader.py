"""Reading rows of a partition: from an offset or a time, in the order in which they were appended.

Laws
    - Rows at or above the offset that the caller names as durable are never read, whatever the files hold.
    - Every body is compared with its checksum; damage raises CorruptLog with file and byte, and nothing behind it is
      given out as if it came next.
    - A file is open while its rows are read, and no longer.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from engine.errors import LogError
from engine.log.body import decode_body
from engine.log.format import FRAME_HEADER_BYTES, Kind, Tail, decode_frame_header
from engine.log.recovery import corrupt
from engine.log.segment import BadFrame, Frame, Segment, frames, headers, open_segment, segment_names
from engine.storage import File, Storage

__all__ = ["PartitionReader", "Rows", "first_time_us"]


class Rows(NamedTuple):
    """Rows of one append and the offset of the first; ``time_us`` is when they were appended."""

    rows: pa.RecordBatch
    offset: int
    time_us: int

    @property
    def stop(self) -> int:
        """The offset behind the last row."""
        return self.offset + self.rows.num_rows


@dataclass(slots=True)
class PartitionReader:
    """Reads a partition of ``log`` in ``directory``, alone or beside its writer."""

    storage: Storage
    directory: str
    log: str

    def bounds(self) -> list[tuple[int, str]]:
        """(base, path) of all segments, the oldest first, by their names. Raises OSError."""
        names = segment_names(self.storage.list(self.directory))
        return [(int(name[:20]), os.path.join(self.directory, name)) for _, name in names]

    def read(self, start: int, stop: int) -> Iterator[Rows]:
        """The rows [start, stop), which are durable. Raises LogError where they are gone, CorruptLog."""
        while start < stop:
            path, limit = self._segment_at(start)
            limit = stop if limit is None else min(stop, limit)
            for found in self._read_segment(path, start, limit):
                yield found
                start = found.stop

    def offset_at(self, time_us: int, stop: int) -> int:
        """The offset of the first rows that were appended at this time or later; ``stop`` without any."""
        chosen: str | None = None
        for base, path in self.bounds():
            if base >= stop:
                break
            first = first_time_us(self.storage, path)
            if first is not None and first >= time_us:
                if chosen is None:
                    return base
                break
            chosen = path if first is not None else chosen
        if chosen is None:
            return stop
        start = int(os.path.basename(chosen)[:20])
        for found in self.read(start, stop):
            if found.time_us >= time_us:
                return found.offset
        return stop

    def _segment_at(self, start: int) -> tuple[str, int | None]:
        """The segment that holds the row at ``start``, and the offset that ends it."""
        bounds = self.bounds()
        for index in reversed(range(len(bounds))):
            base, path = bounds[index]
            if base <= start:
                return path, bounds[index + 1][0] if index + 1 < len(bounds) else None
        oldest = f"the oldest is {bounds[0][0]:,}" if bounds else "there are none"
        raise LogError(
            f"{self.directory}: row {start:,} is gone; {oldest}.\n  Begin there, or keep more (retain_bytes=)."
        )

    def _read_segment(self, path: str, start: int, limit: int) -> Iterator[Rows]:
        try:
            file, segment = open_segment(self.storage, path)
        except FileNotFoundError as error:
            raise LogError(f"{path}: retention removed it while row {start:,} was to be read from it") from error
        with file:
            if segment.header.log != self.log:
                raise LogError(
                    f"{path} belongs to another log than the one that was opened, which is gone.\n  Open it again."
                )
            at, offset = _place_of(file, segment, start)
            try:
                for frame in frames(file, at, offset):
                    offset, at = frame.header.stop, frame.behind
                    if frame.header.kind is Kind.ROWS and offset > start:
                        rows = _decoded(frame, path)
                        first = frame.header.offset
                        skipped = max(0, start - first)
                        yield Rows(rows.slice(skipped, limit - first - skipped), first + skipped, frame.header.time_us)
                    if offset >= limit:
                        return
            except BadFrame as bad:
                raise corrupt(path, bad.position, f"{bad}; rows up to {limit:,} were durable") from bad
            raise corrupt(path, at.position, f"it ends at row {offset:,}; rows up to {limit:,} were durable")


def first_time_us(storage: Storage, path: str) -> int | None:
    """When the first rows of a segment were appended; None where it has none yet. Raises CorruptLog, OSError."""
    file, segment = open_segment(storage, path)
    with file:
        if file.size < segment.first.position + FRAME_HEADER_BYTES:
            return None
        decoded = decode_frame_header(file.pread(FRAME_HEADER_BYTES, segment.first.position), segment.first)
        return decoded[0].time_us if decoded is not None else None


def _decoded(frame: Frame, path: str) -> pa.RecordBatch:
    try:
        return decode_body(frame.body)
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LogError(
            f"{path}: the frame at byte {frame.at.position:,} is as it was written, and pyarrow {pa.__version__} "
            f"cannot read it: {error}.\n  Read it with the release that wrote it."
        ) from error


def _place_of(file: File, segment: Segment, start: int) -> tuple[Tail, int]:
    """The last place before the row at ``start`` that the chain of headers leads to: bodies are passed over."""
    at, offset = segment.first, segment.header.base
    for header, _, behind in headers(file, at, offset):
        if header.stop > start:
            break
        at, offset = behind, header.stop
    return at, offset
