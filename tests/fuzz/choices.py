"""What a fuzzer decides: choices read off a string of bytes, the smallest ones when it is used up."""

from collections.abc import Sequence
from typing import TypeVar

Choice = TypeVar("Choice")


class Choices:
    """Near strings give near choices, so that a fuzzer that changes a byte changes a decision."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def raw(self, size: int) -> bytes:
        """`size` bytes; zeros beyond the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1, of at most 65,536."""
        return int.from_bytes(self.raw(1 if limit <= 256 else 2), "little") % limit

    def one_of(self, options: Sequence[Choice]) -> Choice:
        return options[self.below(len(options))]

    def often(self) -> bool:
        """True for three in four, and when the bytes are used up."""
        return self.below(4) != 3
