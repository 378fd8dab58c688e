"""Recent keys: the exact table of the ids seen last, by position."""

from typing_extensions import Buffer

class RecentKeys:
    """Where each of the ids seen last was seen last. ValueError: a wrong size."""

    def __init__(self, seed: bytes, *, start: int = 0, chunk_bits: int = 16, hint_bits: int = 32) -> None: ...
    def sight(self, ids: Buffer) -> bytes:
        """Gives each id (16 bytes) the next position; its position before as uint64, 2**64 - 1 = none. MemoryError."""

    def unsight(self, previous: int) -> None:
        """Takes the last sighting back; `previous` is what it gave. ValueError: there is none."""

    def forget_below(self, position: int, *, shrink: bool = False) -> None:
        """Forgets the ids last seen below `position`; `shrink` lets the table shrink too. ValueError."""

    @property
    def oldest(self) -> int: ...
    @property
    def tail(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def buckets(self) -> tuple[int, int, int]:
        """Buckets, overflow buckets, splits so far."""
