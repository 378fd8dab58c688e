"""Hashes and identities of rows' keys. Both formats are persisted; HASH_VERSION names them."""

from collections.abc import Sequence
from typing import Final

from engine._core.arrow_c import ArrowArrayExporter
from engine._core.pool import Buffer

HASH_VERSION: Final[int]

class KeyIds:
    """16 bytes a row, one byte a row that is 0 where a key component is null (None: no such row), and their count."""

    def __init__(self, ids: Buffer, keyed: Buffer | None, null_count: int, whole: bool = False) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ids(self) -> Buffer: ...
    @property
    def keyed(self) -> Buffer | None: ...
    @property
    def null_count(self) -> int: ...
    @property
    def whole(self) -> bool:
        """Whether every id is the key itself, by the columns' types alone."""

def hash_rows(batch: ArrowArrayExporter, columns: Sequence[int], level: str | None = None) -> Buffer:
    """One uint64 a row; equal keys hash equally in every Arrow form, at every `level`. ValueError, IndexError."""

def key_ids(batch: ArrowArrayExporter, columns: Sequence[int], seed: bytes) -> KeyIds:
    """The dedup identity of each row's key under a secret 16-byte seed. ValueError, IndexError."""
