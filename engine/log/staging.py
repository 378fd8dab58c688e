"""Whole segments that are written aside and become part of a log by one rename.

Laws
    - A staged segment is durable before it is published, and ends with a mark: so all of it is durable once it has its
      name.
    - Publishing again what has its name already changes nothing; what is staged for another place than it gets is
      written anew, and replaced by one rename.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa

from engine.log.body import Body, BodyEncoder
from engine.log.format import Codec, FrameHeader, Kind, SegmentHeader, Tail, encode_header
from engine.log.segment import append_frames, mark, open_segment, whole_frames
from engine.storage import File, Storage

__all__ = ["StagedSegment", "rebase"]


class StagedSegment:
    """A segment in ``path`` while it is written. Used by one thread at a time."""

    def __init__(self, storage: Storage, path: str, header: SegmentHeader, *, codec: Codec, time_us: int) -> None:
        self._storage = storage
        self._path = path
        self._header = header
        self._codec = codec
        self._encoder = BodyEncoder(codec)
        self._time_us = time_us
        self._end = header.base
        with suppress(FileNotFoundError):
            storage.unlink(path)  # of an attempt of this epoch that ended before its commit
        self._file, self._tail = _begin(storage, path, header)

    def append(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write the rows as one frame, or a few. Raises OSError, Arrow's errors, ValueError for a row too long."""
        for rows in pa.Table.from_batches(batches).combine_chunks().to_batches():
            for body in self._encoder.encode(rows):
                frame = FrameHeader(
                    Kind.ROWS,
                    self._codec,
                    self._end,
                    body.rows,
                    body.size_bytes,
                    self._header.base,
                    self._time_us,
                    0,
                    body.checksum(),
                )
                self._tail = append_frames(self._file, [(frame, body)], self._tail)
                self._end = frame.stop

    def finish(self) -> None:
        """End it with a mark and make it durable. Raises OSError."""
        append_frames(self._file, [(mark(self._end, self._time_us), Body(0, ()))], self._tail)
        self._file.sync()
        self._file.close()
        self._storage.sync_directory(os.path.dirname(self._path))

    def discard(self) -> None:
        """Remove it, or leave it to whoever cleans up after a crash. Harmless when repeated."""
        self._file.close()
        with suppress(OSError):
            self._storage.unlink(self._path)


def rebase(storage: Storage, path: str, base: int, number: int) -> None:
    """Let the staged segment ``path`` begin at ``base`` and bear ``number``: written anew where it does not.

    Raises CorruptLog, OSError.
    """
    file, segment = open_segment(storage, path, named=False)
    with file:
        header = replace(segment.header, base=base, number=number)
        if header == segment.header:
            return
        shift = base - segment.header.base
        with suppress(FileNotFoundError):
            storage.unlink(f"{path}.tmp")
        copy, tail = _begin(storage, f"{path}.tmp", header)
        with copy:
            for frame in whole_frames(file, segment):
                through = base if frame.header.rows else frame.header.durable_through + shift
                moved = replace(frame.header, offset=frame.header.offset + shift, durable_through=through)
                tail = append_frames(copy, [(moved, Body(moved.rows, (frame.body,)))], tail)
            copy.sync()
    storage.rename(f"{path}.tmp", path)
    storage.sync_directory(os.path.dirname(path))


def _begin(storage: Storage, path: str, header: SegmentHeader) -> tuple[File, Tail]:
    file = storage.create(path)
    data, tail = encode_header(header)
    file.append(data)
    return file, tail
