"""What lies where in the file of a sealed run: blocks, the first id of each block, the filter, the footer.

Laws
    - Nothing read is believed before its checksum held; what does not hold raises CorruptState, naming file and offset.
      Nothing is changed or deleted then.
    - The filter begins behind the index, at no particular alignment; its pages are counted from there.

The blocks' format: ``src/run_block.hpp``. Footer (little-endian, 128 bytes): magic, format version, zero, identity
of the seed, entries, covered positions [first, stop), last position of an entry, blocks, bytes of index and filter,
CRC32C of blocks, index and filter, zeros, CRC32C of the footer.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine._core.crc32c import crc32c
from engine._core.id_run import BLOCK_SIZE_BYTES
from engine.errors import CorruptState, StateError
from engine.storage import File

__all__ = ["PIECE_BLOCKS", "Footer", "damaged", "pieces_of", "read", "read_footer", "read_pages", "seed_identity"]

PIECE_BLOCKS = 32
"""Blocks read at once where a run is read from end to end and nobody says how many: 128 KiB."""

_MAGIC = b"engidrun"
_VERSION = 1
_FOOTER = struct.Struct("<8sII16sQQQQQQQIII24xI")
_FOOTER_BYTES = 128
assert _FOOTER.size == _FOOTER_BYTES


def seed_identity(seed: bytes) -> bytes:
    """16 bytes that tell seeds apart and do not give them away."""
    return hashlib.blake2b(seed, digest_size=16, person=b"engine ids").digest()


class Footer(NamedTuple):
    """The footer of a run that covers the positions ``[first, stop)``."""

    entries: int
    first: int
    stop: int
    last_position: int
    block_count: int
    index_bytes: int
    filter_bytes: int
    blocks_crc: int
    index_crc: int
    filter_crc: int

    @property
    def index_offset(self) -> int:
        """Where the index begins: behind the blocks."""
        return self.block_count * BLOCK_SIZE_BYTES

    @property
    def filter_offset(self) -> int:
        """Where the filter begins: behind the index."""
        return self.index_offset + self.index_bytes

    def packed(self, seed: bytes) -> bytes:
        """Its bytes."""
        body = _FOOTER.pack(_MAGIC, _VERSION, 0, seed_identity(seed), *self, 0)[:-4]
        return body + struct.pack("<I", crc32c(body))


def read_footer(file: File, seed: bytes) -> tuple[Footer, int]:
    """The footer and its checksum, which tells files apart. Raises CorruptState, StateError for a run of another."""
    offset = file.size - _FOOTER_BYTES
    if offset < 0:
        raise damaged(file, 0, "the file is too short for an id run")
    packed = read(file, _FOOTER_BYTES, offset)
    magic, version, _, identity, *numbers, crc = _FOOTER.unpack(packed)
    if magic != _MAGIC or crc != crc32c(packed[:-4]):
        raise damaged(file, offset, "the footer of the id run is damaged")
    if version != _VERSION:
        raise StateError(f"{file.path}: id run of format {version}; this version reads format {_VERSION}.")
    if identity != seed_identity(seed):
        raise StateError(f"{file.path}: the id run belongs to another state.")
    footer = Footer(*numbers)
    if offset != footer.filter_offset + footer.filter_bytes:
        raise damaged(file, offset, "the file has another length than its footer says")
    return footer, crc


def read(file: File, size: int, offset: int) -> bytes:
    """Exactly so many bytes. Raises CorruptState where the file ends before."""
    try:
        return file.pread(size, offset)
    except EOFError as error:
        raise damaged(file, offset, "the file is too short") from error


def read_pages(file: File, numbers: NDArray[np.uint32], page_bytes: int, start: int = 0) -> bytes:
    """Pages of the part of a file that begins at ``start``, by ascending numbers; neighbours are read together."""
    numbers = numbers.astype(np.int64)
    begins = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    sizes = np.diff(begins, append=len(numbers)) * page_bytes
    offsets = numbers[begins] * page_bytes + start
    try:
        return file.pread_many(offsets.data, sizes.data)
    except EOFError as error:
        raise damaged(file, int(offsets[-1]), "the file is too short") from error


def pieces_of(
    file: File, first_block: int, stop_block: int, piece_blocks: int = PIECE_BLOCKS
) -> Iterator[tuple[int, bytes]]:
    """Blocks from first to last, some at a time, each piece with the number of its first block; not verified."""
    for number in range(first_block, stop_block, piece_blocks):
        blocks = min(piece_blocks, stop_block - number)
        yield number, read(file, blocks * BLOCK_SIZE_BYTES, number * BLOCK_SIZE_BYTES)


def damaged(file: File, offset: int, what: str) -> CorruptState:
    """The error that says so."""
    return CorruptState(
        f"{file.path}: {what} (byte {offset:,}). Nothing was changed; restore the file.", path=file.path, offset=offset
    )
