"""Sealed runs of ids: encoding, searching and merging their blocks; the bytes come from and go to the caller."""

import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

if sys.version_info >= (3, 12):
    from collections.abc import Buffer as _BufferProtocol
else:
    from typing_extensions import Buffer as _BufferProtocol

FILTER_BITS_PER_KEY: Final[int]
FILTER_PAGE_BYTES: Final[int]
ENTRY_BYTES: Final[int]
BLOCK_SIZE_BYTES: Final[int]
ENTRIES_PER_BLOCK: Final[int]

class DamagedBlockError(ValueError):
    """A block's checksum, number or count is wrong."""

    number: int
    def __init__(self, number: int) -> None: ...

def filter_block_count(keys: int) -> int:
    """Blocks (32 bytes) of a run's filter for so many keys."""

def page_checksums(pages: Buffer) -> bytes:
    """CRC32C of each page (4 KiB, the last one may be shorter), as uint32."""

class RunSorter:
    """Sorts ids (16 bytes each) seen at the positions from `first` on, part by part of their hashes. ValueError."""

    def __init__(self, seed: bytes, ids: Buffer, first: int, parts: int) -> None: ...
    def entries(self, part: int) -> bytes:
        """Sorted 24-byte entries (id, position) of one part, each id once with its last position. IndexError."""

class FilterMemory(_BufferProtocol):
    """Zeros for the blocks of one filter, given back to the system at once. ValueError, MemoryError."""

    def __init__(self, size: int) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class RunEncoder:
    """Turns sorted entries (24 bytes: id, position) into the blocks, the block index and the filter of a run."""

    def __init__(self, seed: bytes, filter_keys: int = 0) -> None: ...
    def encode(self, entries: Buffer) -> bytes:
        """Adds entries; gives the blocks that are complete by now."""

    def finish(self) -> bytes:
        """Closes the last block and gives what was not given yet."""

    @property
    def first_ids(self) -> bytes:
        """The block index: the first id of each block."""

    @property
    def filter(self) -> FilterMemory | None:
        """The filter: blocks of 32 bytes; None without `filter_keys`. Ask only when all entries are there."""

    @property
    def count(self) -> int: ...
    @property
    def first_position(self) -> int: ...
    @property
    def last_position(self) -> int: ...

class RunIndex:
    """Says which blocks of a run may hold an id, and finds it in them."""

    def __init__(self, seed: bytes, first_ids: Buffer, *, prefix_bits: int = 32) -> None: ...
    def plan(self, ids: Buffer) -> bytes:
        """What `search` has to read: ascending pairs of uint32, block number and which id."""

    def search(self, blocks: Buffer, plan: NDArray[np.uint32], ids: Buffer, positions: NDArray[np.uint64]) -> None:
        """Looks for ids in the blocks of (part of) a plan; writes positions. DamagedBlockError, IndexError."""

    def blocks_behind(self, first: int, stop: int, filter_blocks: int) -> tuple[int, int]:
        """The blocks [first, stop) whose entries fill the blocks [first, stop) of a filter of so many blocks."""

    @property
    def size_bytes(self) -> int: ...

def first_ids_of(blocks: Buffer, first_number: int) -> tuple[bytes, int]:
    """The first id of each of consecutive blocks, and their entries in all. DamagedBlockError."""

def add_to_filter(
    seed: bytes, blocks: Buffer, first_number: int, filter_blocks: int, first_filter_block: int, part: bytearray
) -> None:
    """Adds the entries of consecutive blocks to a part of a filter, as far as they belong to it. DamagedBlockError."""

class RunMerger:
    """Merges runs into an encoder; an id keeps its last position."""

    def __init__(self, seed: bytes, inputs: int, horizon: int = 0) -> None: ...
    def feed(self, number: int, blocks: Buffer) -> None:
        """Gives an input its next blocks; empty = it has ended. DamagedBlockError."""

    def merge(self, encoder: RunEncoder) -> tuple[bytes, int]:
        """Blocks complete by now, and the input to be fed next or -1 at the end. Feed every input once before."""
