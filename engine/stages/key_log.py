"""Full keys on disk: every key from a position on, in order, in checksummed blocks found by position.

Laws
    - Append-only segments named by their first position. A frame holds the blocks of consecutive keys behind a header
      and a table of them, which have a checksum of their own; a block's checksum stands in the table. All zeros is
      never a frame.
    - The tables stay in memory, 28 bytes for 4 KiB of keys. A key is read with its block, and the block verified
      each time: a damaged one raises CorruptState, naming file and offset, and nothing is answered.
    - Appending does not sync; ``sync`` makes everything durable and gives the state that a snapshot names: for each
      segment its length and the checksum of all its heads and tables up to there, so of every block.
    - Bytes beyond that length were never committed: restoring cuts them off.
    - Segments stay few: they grow from 64 to 256 MiB with what there is. One below the window goes as a whole, and its
      file only once a snapshot without it is final (``release``).
    - One owner at a time.

Segment: 64 bytes of header (magic, version, zero, identity of the seed, first position, zeros, CRC32C of the
header), then frames: 40 bytes (magic, CRC32C of the rest of the header and of the table, first position, first
position of the segment, bytes of the blocks, blocks, zero), the table (``src/key_block.hpp``), the blocks. All
little-endian.
"""

import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine._core.crc32c import crc32c
from engine._core.key_pages import TABLE_ENTRY_BYTES, DamagedKeysError, KeyPages
from engine.errors import CorruptState, StateError
from engine.stages.run_file import damaged, read, seed_identity
from engine.storage import File, Storage

__all__ = ["KeyLog", "KeySegmentState"]

SEGMENT_BYTES = 64 * 2**20
"""The size of a segment while there are few."""

FRAME_BYTES = 2**20
BLOCKS_AT_ONCE = 128
"""Blocks read at once to find keys in them: 512 KiB."""

_MAGIC = b"engkeys\0"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQ20xI")
_FRAME_MAGIC = b"kyfr"
_FRAME = struct.Struct("<4sIQQQII")
_TABLE = np.dtype([("keys", "<u4"), ("bytes", "<u4"), ("crc", "<u4")])
_BLOCK_INDEX_BYTES = 28


class KeySegmentState(TypedDict):
    """A segment as a snapshot names it: ``size_bytes`` of ``file`` hold the keys of [first, stop)."""

    file: str
    first: int
    stop: int
    size_bytes: int
    crc: int


@dataclass
class _Segment:
    """An open segment and the index of its blocks."""

    name: str
    first: int
    stop: int
    size_bytes: int
    crc: int
    file: File
    synced: bool = False
    positions: "array[int]" = field(default_factory=lambda: array("Q"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    table: bytearray = field(default_factory=bytearray)

    def index(self, table: bytes, offset: int) -> None:
        """Take in the blocks that begin at ``offset`` and at ``stop``, which moves."""
        entries: NDArray[Any] = np.frombuffer(table, _TABLE)
        keys, sizes = entries["keys"].cumsum(dtype=np.uint64), entries["bytes"].cumsum(dtype=np.uint64)
        self.positions.frombytes((keys - entries["keys"] + np.uint64(self.stop)).tobytes())
        self.offsets.frombytes((sizes - entries["bytes"] + np.uint64(offset)).tobytes())
        self.table += table
        self.stop += int(keys[-1])


class KeyLog:
    """The segments of one window, in a directory that exists by the time of the first ``append``.

    ``stop``: keys below this position are here, or will not be asked for.
    """

    def __init__(
        self, storage: Storage, directory: str, seed: bytes, start: int, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._identity = seed_identity(seed)
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._names_synced = True
        self.stop = start

    @property
    def size_bytes(self) -> int:
        """Bytes of the segments that are still needed."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def index_bytes(self) -> int:
        """Memory of the tables."""
        return sum(len(segment.positions) for segment in self._segments) * _BLOCK_INDEX_BYTES

    def append(self, pages: KeyPages, stop: int) -> None:
        """Append the keys from the last one's to position ``stop``. Durable only after ``sync``."""
        while self.stop < stop:
            behind, table, blocks = pages.encode(self.stop, stop, FRAME_BYTES)
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.stop != self.stop or segment.size_bytes >= self._full_bytes():
                segment = self._begin(self.stop)
            head = self._frame_head(segment, table, len(blocks))
            offset = segment.size_bytes + len(head) + len(table)
            segment.file.append(head, table, blocks)
            segment.crc = crc32c(table, crc32c(head, segment.crc))
            segment.size_bytes = offset + len(blocks)
            segment.synced = False
            segment.index(table, offset)
            self.stop = behind

    def skip_to(self, position: int) -> None:
        """Keys below this position need not be appended: nobody will ask for them."""
        self.stop = max(self.stop, position)

    def _full_bytes(self) -> int:
        return max(self._segment_bytes, min(self.size_bytes // 8, 4 * self._segment_bytes))

    def _begin(self, first: int) -> _Segment:
        name = f"keys-{first:020}.log"
        file = self._storage.create(os.path.join(self._directory, name))
        header = _HEADER.pack(_MAGIC, _VERSION, 0, self._identity, first, 0)[:-4]
        header += struct.pack("<I", crc32c(header))
        segment = _Segment(name, first, first, len(header), crc32c(header), file)
        self._segments.append(segment)
        self._names_synced = False
        file.append(header)
        return segment

    @staticmethod
    def _frame_head(segment: _Segment, table: bytes, blocks_bytes: int) -> bytes:
        count = len(table) // TABLE_ENTRY_BYTES
        tail = _FRAME.pack(_FRAME_MAGIC, 0, segment.stop, segment.first, blocks_bytes, count, 0)[8:]
        return _FRAME_MAGIC + struct.pack("<I", crc32c(table, crc32c(tail))) + tail

    def compare(self, pages: KeyPages, sightings: NDArray[np.uint64]) -> int | None:
        """As ``KeyPages.compare``, for rows (position, previous) whose previous keys are below ``stop``."""
        sightings = sightings[np.argsort(sightings[:, 1])]
        lowest: int | None = None
        bounds = np.searchsorted(sightings[:, 1], [segment.stop for segment in self._segments])
        for segment, begin, end in zip(self._segments, [0, *bounds[:-1]], bounds, strict=True):
            if begin < end:
                found = self._compare_in(segment, pages, sightings[begin:end])
                lowest = found if lowest is None else lowest if found is None else min(lowest, found)
        return lowest

    def _compare_in(self, segment: _Segment, pages: KeyPages, sightings: NDArray[np.uint64]) -> int | None:
        """In one segment, sorted by previous position: each block is read once, neighbours together."""
        lowest: int | None = None
        positions = np.frombuffer(segment.positions, np.uint64)
        offsets = np.frombuffer(segment.offsets, np.uint64).astype(np.int64)
        table: NDArray[Any] = np.frombuffer(segment.table, _TABLE)
        found_in = np.searchsorted(positions, sightings[:, 1], side="right") - 1
        begins = np.diff(found_in, prepend=-1) != 0
        numbers, block_of = found_in[begins], np.cumsum(begins) - 1
        for at in range(0, len(numbers), BLOCKS_AT_ONCE):
            some = numbers[at : at + BLOCKS_AT_ONCE]
            begin, end = np.searchsorted(block_of, [at, at + BLOCKS_AT_ONCE])
            sizes, places = table["bytes"][some].astype(np.int64), offsets[some]
            apart = np.flatnonzero(np.append(True, places[1:] != places[:-1] + sizes[:-1]))
            try:
                blocks = segment.file.pread_many(places[apart].data, np.add.reduceat(sizes, apart).data)
                found = pages.compare_in_blocks(
                    np.ascontiguousarray(sightings[begin:end]).reshape(-1).data,
                    (block_of[begin:end] - at).astype(np.uint32).data,
                    positions[some].data,
                    table[some].tobytes(),
                    blocks,
                )
            except EOFError as error:
                raise damaged(segment.file, int(places[-1]), "the file is too short") from error
            except DamagedKeysError as error:
                raise damaged(segment.file, int(places[error.number]), "a block of keys is damaged") from error
            lowest = found if lowest is None else lowest if found is None else min(lowest, found)
        return lowest

    def sync(self) -> list[KeySegmentState]:
        """Make all that was appended durable and describe it for a snapshot."""
        for segment in self._segments:
            if not segment.synced:
                segment.file.sync()
                segment.synced = True
        if not self._names_synced:
            self._storage.sync_directory(self._directory)
            self._names_synced = True
        return self.describe()

    def describe(self) -> list[KeySegmentState]:
        """The segments as they are now."""
        return [
            KeySegmentState(
                file=segment.name,
                first=segment.first,
                stop=segment.stop,
                size_bytes=segment.size_bytes,
                crc=segment.crc,
            )
            for segment in self._segments
        ]

    def drop_below(self, position: int) -> list[str]:
        """No key below this position will be asked for: segments wholly below are garbage. Gives their names."""
        dropped = []
        while self._segments and self._segments[0].stop <= position:
            segment = self._segments.pop(0)
            segment.file.close()
            dropped.append(segment.name)
        return dropped

    def restore(self, states: Iterable[KeySegmentState]) -> None:
        """Open the segments that ``sync`` described; what is beyond their length is cut off. Raises CorruptState."""
        for state in states:
            segment = self._open(state, write=True)
            self._segments.append(segment)
            self._read_frames(segment, state)
            if segment.file.size > segment.size_bytes:
                segment.file.truncate(segment.size_bytes)
                segment.file.sync()
            self.stop = segment.stop

    def verify(self, state: KeySegmentState) -> None:
        """Read a segment that a snapshot names, every block of it, and change nothing. Raises as ``restore``."""
        segment = self._open(state, write=False)
        with segment.file:
            self._read_frames(segment, state)
            table: NDArray[Any] = np.frombuffer(segment.table, _TABLE)
            for offset, size, crc in zip(segment.offsets, table["bytes"].tolist(), table["crc"].tolist(), strict=True):
                if crc32c(read(segment.file, size, offset)) != crc:
                    raise damaged(segment.file, offset, "a block of keys is damaged")

    def _open(self, state: KeySegmentState, *, write: bool) -> _Segment:
        path = os.path.join(self._directory, state["file"])
        try:
            file = self._storage.open(path, write=write)
        except FileNotFoundError as error:
            raise CorruptState(f"{path}: the log of keys is missing; restore the file.", path=path) from error
        segment = _Segment(state["file"], state["first"], state["first"], state["size_bytes"], 0, file, synced=True)
        if file.size < segment.size_bytes:
            committed = f"{segment.size_bytes:,} bytes were committed, the file has {file.size:,}"
            file.close()
            raise damaged(file, file.size, committed)
        return segment

    def _read_frames(self, segment: _Segment, state: KeySegmentState) -> None:
        file = segment.file
        header = read(file, _HEADER.size, 0)
        magic, version, _, identity, first, crc = _HEADER.unpack(header)
        if magic != _MAGIC or crc != crc32c(header[:-4]) or first != segment.first:
            raise damaged(file, 0, "the header of the log of keys is damaged")
        if version != _VERSION:
            raise StateError(f"{file.path}: log of keys of format {version}; this version reads format {_VERSION}.")
        if identity != self._identity:
            raise StateError(f"{file.path}: the log of keys belongs to another state.")
        segment.crc = crc32c(header)
        offset = _HEADER.size
        while offset < segment.size_bytes:
            offset = self._read_frame(segment, offset)
        if (segment.stop, segment.crc) != (state["stop"], state["crc"]):
            raise damaged(file, 0, "the log of keys is not the one that the checkpoint names")

    @staticmethod
    def _read_frame(segment: _Segment, offset: int) -> int:
        """Take in the frame at an offset; give the offset behind it."""
        file, left = segment.file, segment.size_bytes - offset
        if left < _FRAME.size:
            raise damaged(file, offset, "the committed length ends inside a frame")
        head = read(file, _FRAME.size, offset)
        magic, crc, first, segment_first, blocks_bytes, count, _ = _FRAME.unpack(head)
        table_bytes = count * TABLE_ENTRY_BYTES
        fits = _FRAME.size + table_bytes + blocks_bytes <= left
        table = read(file, table_bytes, offset + _FRAME.size) if fits and count else b""
        sound = magic == _FRAME_MAGIC and table and crc == crc32c(table, crc32c(head[8:]))
        if not sound or (first, segment_first) != (segment.stop, segment.first):
            raise damaged(file, offset, "the head of a frame of keys is damaged")
        begin = offset + _FRAME.size + table_bytes
        segment.index(table, begin)
        segment.crc = crc32c(table, crc32c(head, segment.crc))
        behind: int = begin + blocks_bytes
        return behind

    def contents(self) -> list[bytes]:
        """Every segment's bytes, for a snapshot that stands alone; not verified."""
        return [read(segment.file, segment.size_bytes, 0) for segment in self._segments]

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        for segment in self._segments:
            segment.file.close()
