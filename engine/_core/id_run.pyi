"""Sealed runs of ids: encoding, searching and merging their blocks; the bytes come from and go to the caller."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

ENTRY_BYTES: Final[int]
BLOCK_SIZE_BYTES: Final[int]
ENTRIES_PER_BLOCK: Final[int]

class DamagedBlockError(ValueError):
    """A block's checksum, number or count is wrong."""

    number: int
    def __init__(self, number: int) -> None: ...

class RunEncoder:
    """Turns sorted entries (24 bytes: id, position) into the blocks, the block index and the filter of a run."""

    def __init__(self, seed: bytes, expected_keys: int, bits_per_key: int = 16) -> None: ...
    def encode(self, entries: Buffer) -> bytes:
        """Adds entries; gives the blocks that are complete by now."""

    def finish(self) -> bytes:
        """Closes the last block and gives what was not given yet."""

    @property
    def first_ids(self) -> bytes:
        """The block index: the first id of each block."""

    @property
    def filter(self) -> bytes:
        """The filter: blocks of 32 bytes."""

    @property
    def count(self) -> int: ...
    @property
    def first_position(self) -> int: ...
    @property
    def last_position(self) -> int: ...

class RunIndex:
    """Says which block of a run may hold an id."""

    def __init__(self, seed: bytes, first_ids: Buffer) -> None: ...
    def locate(self, ids: Buffer) -> bytes:
        """The block number of each id as uint32; 2**32 - 1 = in no block."""

    def search(
        self, block: Buffer, number: int, ids: Buffer, wanted: NDArray[np.int64], positions: NDArray[np.uint64]
    ) -> None:
        """Looks for the ids numbered `wanted` in a block; writes the positions of those found. DamagedBlockError."""

    @property
    def size_bytes(self) -> int: ...

def entries_of(blocks: Buffer, first_number: int) -> bytes:
    """The entries of consecutive blocks. DamagedBlockError."""

class RunMerger:
    """Merges runs, oldest first, into one sorted stream of entries; an id keeps its last position."""

    def __init__(self, seed: bytes, inputs: int, horizon: int = 0) -> None: ...
    def feed(self, number: int, blocks: Buffer) -> None:
        """Gives an input its next blocks; empty = it has ended. DamagedBlockError."""

    def merge(self) -> tuple[bytes, int]:
        """Entries merged by now, and the input to be fed next or -1 at the end. Feed every input once before."""
