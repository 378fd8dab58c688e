"""The full keys of a window's rows: recent ones in pages, older ones in blocks that the caller writes and reads."""

from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

from engine._core.arrow_c import ArrowArrayExporter

TABLE_ENTRY_BYTES: Final[int]

class DamagedKeysError(ValueError):
    """A block of keys is not what its table says. `number` is its place among those that were given."""

    number: int

class KeyPages:
    """The keys of consecutive positions from `start` on, of which the last ones are here. ValueError."""

    def __init__(self, start: int = 0, page_bytes: int = 262144) -> None: ...
    def append(
        self,
        batch: ArrowArrayExporter,
        columns: Sequence[int],
        *,
        keyed: Buffer | None = None,
        selection: Buffer | None = None,
    ) -> None:
        """Gives the next positions to the keys of the rows that are keyed and selected; keyed rows have no null
        component. ValueError, IndexError, MemoryError; then nothing was appended.
        """

    def append_ids(self, ids: Buffer, *, keyed: Buffer | None = None, selection: Buffer | None = None) -> None:
        """As `append`, for keys that are their own ids: 16 bytes a row."""

    def truncate(self, position: int) -> None:
        """Takes back the keys from `position` on."""

    def release_below(self, position: int) -> None:
        """Forgets the keys below `position` and gives their pages back."""

    def first_within(self, limit_bytes: int) -> int:
        """The position below which keys must go for the pages to take at most so many bytes."""

    def key(self, position: int) -> bytes:
        """The key at a position. IndexError."""

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the keys of [start, stop). IndexError."""

    def compare(self, sightings: Buffer) -> tuple[int | None, bytes]:
        """Pairs (position, previous) of uint64: the lowest position whose key is not that of its previous sighting, and
        the numbers (uint32) of pairs whose previous keys are not here any more. IndexError.
        """

    def compare_in_blocks(
        self, sightings: Buffer, block_of: Buffer, firsts: Buffer, table: Buffer, blocks: Buffer
    ) -> int | None:
        """As `compare`, where the previous key of pair i lies in block `block_of[i]` (uint32), whose first position is
        `firsts[block]` (uint64). DamagedKeysError, IndexError, ValueError.
        """

    def encode(self, start: int, stop: int, limit_bytes: int) -> tuple[int, bytes, bytes]:
        """Blocks of [start, stop), about so many bytes at most: where they end, the table, the blocks. IndexError."""

    def load(self, table: Buffer, blocks: Buffer) -> None:
        """Appends the keys of blocks that `encode` gave. DamagedKeysError."""

    @property
    def first(self) -> int:
        """Keys from this position on are here."""

    @property
    def tail(self) -> int:
        """The position of the next key."""

    @property
    def size_bytes(self) -> int:
        """Memory of the pages."""
