"""Split-block Bloom filter over 16-byte ids."""

from typing_extensions import Buffer

class BloomFilter:
    """A filter for about `keys` ids at `bits_per_key` bits each, or one of earlier `blocks`. ValueError: a wrong
    size.
    """

    def __init__(self, seed: bytes, keys: int = 0, bits_per_key: int = 16, *, blocks: Buffer | None = None) -> None: ...
    def add(self, ids: Buffer) -> None:
        """Adds ids, 16 bytes each."""

    def test(self, ids: Buffer, *, scalar: bool = False) -> bytes:
        """One byte an id: 1 = was perhaps added, 0 = surely not. `scalar` forces the portable code."""

    @property
    def blocks(self) -> bytes:
        """The filter's bits: blocks of 32 bytes."""
