"""The log of ids: every id that a window was given, in order of position, so that what was seen survives a restart.

Laws
    - Append-only segments named by their first position. A frame holds the ids of one probe: a header with its own
      checksum, then the ids with theirs; all zeros is never a frame.
    - Appending does not sync; ``sync`` makes everything durable and gives the state that a snapshot names: for each
      segment its length and the checksum of all its bytes up to there.
    - Bytes beyond that length were never committed: reading cuts them off. A segment that is shorter, or whose
      checksums fail below it, raises CorruptState, naming file and offset; nothing is changed then.
    - A segment below the window is deleted only once a snapshot without it is final (``release``).
    - One owner at a time.

Segment: 64 bytes of header (magic, version, zero, identity of the seed, first position, zeros, CRC32C of the
header), then frames: 32 bytes (magic, CRC32C of the rest of the header, first position, ids, CRC32C of the ids,
first position of the segment), then 16 bytes an id. All little-endian.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from engine._core.crc32c import crc32c
from engine.errors import CorruptState, StateError
from engine.stages.run_file import seed_identity
from engine.storage import File, Storage

__all__ = ["IdLog", "SegmentState"]

SEGMENT_BYTES = 64 * 2**20

_MAGIC = b"engidlog"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQ20xI")
_FRAME_MAGIC = b"idfr"
_FRAME = struct.Struct("<4sIQIIQ")


class SegmentState(TypedDict):
    """A segment as a snapshot names it: ``size_bytes`` of ``file``, with checksum ``crc``, hold positions [first,
    stop).
    """

    file: str
    first: int
    stop: int
    size_bytes: int
    crc: int


@dataclass
class _Segment:
    name: str
    first: int
    stop: int
    size_bytes: int
    crc: int
    file: File | None = None
    synced: bool = False


class IdLog:
    """The segments of one window, in a directory that exists by the time of the first ``append``."""

    def __init__(self, storage: Storage, directory: str, seed: bytes, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._storage = storage
        self._directory = directory
        self._identity = seed_identity(seed)
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._garbage: set[str] = set()
        self._names_synced = True

    @property
    def size_bytes(self) -> int:
        """Bytes of the segments that are still needed."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, first: int, ids: bytes) -> None:
        """Append the ids (16 bytes each) of the positions from ``first`` on. Durable only after ``sync``."""
        if not ids:
            return
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.file is None or segment.size_bytes >= self._segment_bytes:
            segment = self._begin(first)
        count = len(ids) // 16
        tail = _FRAME.pack(_FRAME_MAGIC, 0, first, count, crc32c(ids), segment.first)[8:]
        header = _FRAME_MAGIC + struct.pack("<I", crc32c(tail)) + tail
        self._write(segment, header, ids)
        segment.stop = first + count

    def _begin(self, first: int) -> _Segment:
        name = f"ids-{first:020}.log"
        file = self._storage.create(os.path.join(self._directory, name))
        segment = _Segment(name, first, first, 0, 0, file)
        self._segments.append(segment)
        self._names_synced = False
        header = _HEADER.pack(_MAGIC, _VERSION, 0, self._identity, first, 0)[:-4]
        self._write(segment, header, struct.pack("<I", crc32c(header)))
        return segment

    def _write(self, segment: _Segment, header: bytes, body: bytes) -> None:
        assert segment.file is not None
        segment.file.append(header, body)
        segment.crc = crc32c(body, crc32c(header, segment.crc))
        segment.size_bytes += len(header) + len(body)
        segment.synced = False

    def sync(self) -> list[SegmentState]:
        """Make all that was appended durable and describe it for a snapshot."""
        for segment in self._segments:
            if segment.file is not None and not segment.synced:
                segment.file.sync()
                segment.synced = True
        for segment in self._segments[:-1]:
            self._close(segment)
        if not self._names_synced:
            self._storage.sync_directory(self._directory)
            self._names_synced = True
        return [_state_of(segment) for segment in self._segments]

    def drop_below(self, position: int) -> None:
        """The window needs no position below this one from the log: segments wholly below are garbage."""
        while self._segments and self._segments[0].stop <= position:
            segment = self._segments.pop(0)
            self._close(segment)
            self._garbage.add(segment.name)

    def release(self, states: Iterable[SegmentState]) -> None:
        """A snapshot with these segments is final: delete garbage that it does not name."""
        named = {state["file"] for state in states}
        for name in sorted(self._garbage - named):
            self._storage.unlink(os.path.join(self._directory, name))
            self._garbage.discard(name)

    def restore(self, states: Iterable[SegmentState], start: int) -> Iterator[tuple[int, bytes]]:
        """Read back what ``sync`` described: (first position, ids) frame by frame, from position ``start`` on.

        Segments are verified as they are read, and what is beyond their committed length is cut off. Raises
        CorruptState.
        """
        for state in states:
            segment = _Segment(state["file"], state["first"], state["stop"], state["size_bytes"], state["crc"])
            segment.file = self._open(segment, write=True)
            segment.synced = True
            self._segments.append(segment)
            for first, ids in self._frames(segment, segment.file):
                skipped = max(0, start - first)
                if skipped * 16 < len(ids):
                    yield first + skipped, ids[skipped * 16 :]
            if segment.file.size > segment.size_bytes:
                segment.file.truncate(segment.size_bytes)
                segment.file.sync()
        for segment in self._segments[:-1]:
            self._close(segment)

    def verify(self, state: SegmentState) -> None:
        """Read a segment that a snapshot names, whole, and change nothing. Raises as ``restore``."""
        segment = _Segment(state["file"], state["first"], state["stop"], state["size_bytes"], state["crc"])
        with self._open(segment, write=False) as file:
            for _ in self._frames(segment, file):
                pass

    def _open(self, segment: _Segment, *, write: bool) -> File:
        path = os.path.join(self._directory, segment.name)
        try:
            file = self._storage.open(path, write=write)
        except FileNotFoundError as error:
            raise CorruptState(f"{path}: the id log segment is missing; restore the file.", path=path) from error
        if file.size < segment.size_bytes:
            file.close()
            raise _damaged(path, file.size, f"{segment.size_bytes:,} bytes were committed, the file has {file.size:,}")
        return file

    def _frames(self, segment: _Segment, file: File) -> Iterator[tuple[int, bytes]]:
        header = file.pread(_HEADER.size, 0)
        self._check_header(file.path, header, segment.first)
        crc = crc32c(header)
        offset, position = _HEADER.size, segment.first
        while offset < segment.size_bytes:
            if segment.size_bytes - offset < _FRAME.size:
                raise _damaged(file.path, offset, "the committed length ends inside a frame")
            head = file.pread(_FRAME.size, offset)
            magic, head_crc, first, count, ids_crc, segment_first = _FRAME.unpack(head)
            if (
                magic != _FRAME_MAGIC
                or head_crc != crc32c(head[8:])
                or (first, segment_first) != (position, segment.first)
            ):
                raise _damaged(file.path, offset, "the header of a frame is damaged")
            if offset + _FRAME.size + count * 16 > segment.size_bytes:
                raise _damaged(file.path, offset, "the committed length ends inside a frame")
            ids = file.pread(count * 16, offset + _FRAME.size)
            if crc32c(ids) != ids_crc:
                raise _damaged(file.path, offset + _FRAME.size, "the ids of a frame are damaged")
            crc = crc32c(ids, crc32c(head, crc))
            offset += len(head) + len(ids)
            position += count
            yield first, ids
        if crc != segment.crc or position != segment.stop:
            raise _damaged(file.path, 0, "the segment is not the one that the checkpoint names")

    def _check_header(self, path: str, header: bytes, first: int) -> None:
        magic, version, _, identity, named_first, crc = _HEADER.unpack(header)
        if magic != _MAGIC or crc != crc32c(header[:-4]) or named_first != first:
            raise _damaged(path, 0, "the header of the segment is damaged")
        if version != _VERSION:
            raise StateError(f"{path}: id log of format {version}; this version reads format {_VERSION}.")
        if identity != self._identity:
            raise StateError(f"{path}: the id log belongs to another state.")

    def _close(self, segment: _Segment) -> None:
        if segment.file is not None:
            segment.file.close()
            segment.file = None

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        for segment in self._segments:
            self._close(segment)


def _state_of(segment: _Segment) -> SegmentState:
    return SegmentState(
        file=segment.name,
        first=segment.first,
        stop=segment.stop,
        size_bytes=segment.size_bytes,
        crc=segment.crc,
    )


def _damaged(path: str, offset: int, what: str) -> CorruptState:
    return CorruptState(
        f"{path}: {what} (byte {offset:,}). Nothing was changed; restore the file.", path=path, offset=offset
    )
