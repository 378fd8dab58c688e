"""A sealed run: ids that left memory, in one immutable, checksummed file that is asked only when its filter says so.

Laws
    - The file is written once and never changed: blocks of sorted entries, the first id of each block, the filter,
      the footer.
    - Nothing read is believed before its checksum held: footer, index and filter when the run is opened, a block
      each time.
    - A damaged filter or index is built again from the blocks: a lost filter must not drop a fresh row, nor pass a
      duplicate. A damaged block or footer raises CorruptState, naming file and offset; nothing is changed or
      deleted.
    - One owner at a time.

The blocks' format: ``src/run_block.hpp``. Footer (little-endian, 128 bytes): magic, format version, zero, identity
of the seed, entries, covered positions [first, stop), last position of an entry, blocks, bytes of index and filter,
CRC32C of blocks, index and filter, zeros, CRC32C of the footer.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine._core.crc32c import crc32c
from engine._core.id_run import BLOCK_SIZE_BYTES, DamagedBlockError, RunEncoder, RunIndex, entries_of
from engine.errors import CorruptState, StateError
from engine.storage import File, Storage

__all__ = ["PIECE_BLOCKS", "UNFINISHED", "RunWriter", "SealedRun", "seed_identity"]

PIECE_BLOCKS = 64
"""Blocks read at once when a run is read from end to end: 256 KiB."""

UNFINISHED = ".tmp"
NOWHERE = 2**64 - 1
NO_BLOCK = 2**32 - 1

_MAGIC = b"engidrun"
_VERSION = 1
_FOOTER = struct.Struct("<8sII16sQQQQQQQIII24xI")
_FOOTER_BYTES = 128
assert _FOOTER.size == _FOOTER_BYTES


def seed_identity(seed: bytes) -> bytes:
    """16 bytes that tell seeds apart and do not give them away."""
    return hashlib.blake2b(seed, digest_size=16, person=b"engine ids").digest()


class SealedRun:
    """An open run that covers the positions ``[first, stop)``."""

    def __init__(
        self, file: File, *, name: str, footer: bytes, index: RunIndex, filter_blocks: bytes, durable: bool
    ) -> None:
        fields = _FOOTER.unpack(footer)
        self.name = name
        self.durable = durable
        self.index = index
        self.filter_blocks: bytes | None = filter_blocks
        self.footer_crc: int = fields[-1]
        self.count, self.first, self.stop, self.last_position, self.block_count = fields[4:9]
        self._file = file

    @classmethod
    def open(cls, storage: Storage, directory: str, name: str, seed: bytes) -> Self:
        """Open and verify a finished run. Raises CorruptState, or StateError where another seed wrote it."""
        path = os.path.join(directory, name)
        try:
            file = storage.open(path)
        except FileNotFoundError as error:
            raise CorruptState(f"{path}: the id run is missing; restore the file.", path=path) from error
        try:
            footer = _read_footer(file, seed)
            index, filter_blocks = _read_index_and_filter(file, footer, seed)
        except BaseException:
            file.close()
            raise
        return cls(file, name=name, footer=footer, index=index, filter_blocks=filter_blocks, durable=True)

    @property
    def path(self) -> str:
        """Where the file lies, or lay before it was made durable."""
        return self._file.path

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def memory_bytes(self) -> int:
        """Bytes of the filter and the index in memory."""
        return len(self.filter_blocks or b"") + self.index.size_bytes

    def find(self, ids: bytes) -> NDArray[np.uint64]:
        """The last position of each id (16 bytes) in this run, 2**64 - 1 where it holds none. Raises CorruptState."""
        positions = np.full(len(ids) // 16, NOWHERE, dtype=np.uint64)
        numbers = np.frombuffer(self.index.locate(ids), dtype=np.uint32)
        order = np.argsort(numbers, kind="stable")
        blocks, starts = np.unique(numbers[order], return_index=True)
        stops = np.append(starts[1:], len(order))
        for block, start, stop in zip(blocks.tolist(), starts.tolist(), stops.tolist(), strict=True):
            if block != NO_BLOCK:
                self._search(block, ids, order[start:stop], positions)
        return positions

    def _search(self, block: int, ids: bytes, wanted: NDArray[np.int64], positions: NDArray[np.uint64]) -> None:
        data = _read(self._file, BLOCK_SIZE_BYTES, block * BLOCK_SIZE_BYTES)
        try:
            self.index.search(data, block, ids, wanted, positions)
        except DamagedBlockError as error:
            raise _damaged(self._file, block * BLOCK_SIZE_BYTES, str(error)) from error

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """The blocks from first to last, some at a time, each piece with the number of its first block; not
        verified.
        """
        return _pieces(self._file, self.block_count)

    def damaged(self, block: int) -> CorruptState:
        """The error that says that a block is damaged."""
        return _damaged(self._file, block * BLOCK_SIZE_BYTES, f"block {block} is damaged")

    def content(self) -> bytes:
        """The whole file, not verified."""
        return _read(self._file, self._file.size, 0)

    def sync(self) -> None:
        """Make the bytes durable; the name is the caller's."""
        self._file.sync()

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        self._file.close()


class RunWriter:
    """Writes one run under an unfinished name; ``finish`` gives it, readable. Leaving without that removes the file."""

    def __init__(self, storage: Storage, directory: str, name: str, seed: bytes, expected_keys: int) -> None:
        self._storage = storage
        self._name = name
        self._seed = seed
        self._expected_keys = expected_keys
        self._encoder = RunEncoder(seed, expected_keys)
        self._blocks_crc = 0
        self._file = storage.create(os.path.join(directory, name + UNFINISHED))

    def append(self, entries: bytes) -> None:
        """Add sorted entries, 24 bytes each."""
        self._write_blocks(self._encoder.encode(entries))

    def _write_blocks(self, blocks: bytes) -> None:
        if blocks:
            self._file.append(blocks)
            self._blocks_crc = crc32c(blocks, self._blocks_crc)

    def finish(self, first: int, stop: int) -> SealedRun:
        """Complete the file for the positions ``[first, stop)``. It is durable only after ``SealedRun.sync``."""
        self._write_blocks(self._encoder.finish())
        block_count = self._file.size // BLOCK_SIZE_BYTES
        first_ids = self._encoder.first_ids
        filter_blocks = self._encoder.filter
        footer = _FOOTER.pack(
            *(_MAGIC, _VERSION, 0, seed_identity(self._seed), self._encoder.count, first, stop),
            *(self._encoder.last_position, block_count, len(first_ids), len(filter_blocks)),
            *(self._blocks_crc, crc32c(first_ids), crc32c(filter_blocks), 0),
        )
        footer = footer[:-4] + struct.pack("<I", crc32c(footer[:-4]))
        self._file.append(first_ids, filter_blocks, footer)
        index = RunIndex(self._seed, first_ids)
        return SealedRun(
            self._file, name=self._name, footer=footer, index=index, filter_blocks=filter_blocks, durable=False
        )

    def discard(self) -> None:
        """Close and remove the unfinished file."""
        self._file.close()
        self._storage.unlink(self._file.path)


def _read(file: File, size: int, offset: int) -> bytes:
    try:
        return file.pread(size, offset)
    except EOFError as error:
        raise _damaged(file, offset, "the file is too short") from error


def _damaged(file: File, offset: int, what: str) -> CorruptState:
    return CorruptState(
        f"{file.path}: {what} (byte {offset:,}). Nothing was changed; restore the file.", path=file.path, offset=offset
    )


def _read_footer(file: File, seed: bytes) -> bytes:
    offset = file.size - _FOOTER_BYTES
    if offset < 0:
        raise _damaged(file, 0, "the file is too short for an id run")
    footer = _read(file, _FOOTER_BYTES, offset)
    magic, version, _, identity, *numbers = _FOOTER.unpack(footer)
    if magic != _MAGIC or numbers[-1] != crc32c(footer[:-4]):
        raise _damaged(file, offset, "the footer of the id run is damaged")
    if version != _VERSION:
        raise StateError(f"{file.path}: id run of format {version}; this version reads format {_VERSION}.")
    if identity != seed_identity(seed):
        raise StateError(f"{file.path}: the id run belongs to another state.")
    blocks, index_bytes, filter_bytes = numbers[4:7]
    if offset != blocks * BLOCK_SIZE_BYTES + index_bytes + filter_bytes:
        raise _damaged(file, offset, "the file has another length than its footer says")
    return footer


def _read_index_and_filter(file: File, footer: bytes, seed: bytes) -> tuple[RunIndex, bytes]:
    fields = _FOOTER.unpack(footer)
    block_count, index_bytes, filter_bytes, _, index_crc, filter_crc, _ = fields[8:]
    offset = block_count * BLOCK_SIZE_BYTES
    first_ids = _read(file, index_bytes, offset)
    filter_blocks = _read(file, filter_bytes, offset + index_bytes)
    if crc32c(first_ids) != index_crc or crc32c(filter_blocks) != filter_crc:
        first_ids, filter_blocks = _rebuild(file, block_count, fields[4], seed)
    return RunIndex(seed, first_ids), filter_blocks


def _rebuild(file: File, block_count: int, count: int, seed: bytes) -> tuple[bytes, bytes]:
    """Index and filter again, from the blocks."""
    encoder = RunEncoder(seed, count)
    for number, blocks in _pieces(file, block_count):
        try:
            encoder.encode(entries_of(blocks, number))
        except DamagedBlockError as error:
            raise _damaged(file, error.number * BLOCK_SIZE_BYTES, str(error)) from error
    encoder.finish()
    if encoder.count != count:
        raise _damaged(file, 0, f"the blocks hold {encoder.count:,} entries, the footer says {count:,}")
    return encoder.first_ids, encoder.filter


def _pieces(file: File, block_count: int) -> Iterator[tuple[int, bytes]]:
    for number in range(0, block_count, PIECE_BLOCKS):
        blocks = min(PIECE_BLOCKS, block_count - number)
        yield number, _read(file, blocks * BLOCK_SIZE_BYTES, number * BLOCK_SIZE_BYTES)
