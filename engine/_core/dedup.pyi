"""The dedup window: exact, bounded, undoable; recent keys in memory, older ones in sealed runs that the caller
reads.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from typing_extensions import Buffer

class Counts(NamedTuple):
    rows: int
    duplicates: int
    null_keys: int
    recent_hits: int
    run_hits: int
    run_lookups: int

class DedupWindow:
    """Which rows were seen among the last `within` keyed rows, or clock units if `timed`; None is for ever.
    ValueError. The hint table stops growing at `table_bytes`, but for overflow buckets, and fills up instead.
    """

    def __init__(
        self,
        *,
        seed: bytes,
        within: int | None = None,
        timed: bool = False,
        start: int = 0,
        chunk_ids: int = 65536,
        hint_bits: int = 32,
        table_bytes: int | None = None,
    ) -> None: ...
    def probe(
        self,
        ids: Buffer,
        rows: int,
        *,
        keyed: Buffer | None = None,
        selection: Buffer | None = None,
        clock: Buffer | None = None,
    ) -> tuple[int, bytearray]:
        """Marks rows as seen; gives the token, and a byte a row: 1 = wanted as far as memory knows. ValueError,
        MemoryError.
        """

    def suspects(self, run: int) -> bytes:
        """Ids of the last probe, sorted as runs are, that a run (0 = oldest) must be asked for; ask the newest run
        first. IndexError.
        """

    def wanted_pages(self, run: int, block_count: int) -> bytes:
        """Begins `suspects` for a run whose filter is not in memory: the pages of it to `sift`, ascending uint32."""

    def sift(self, run: int, block_count: int, numbers: Buffer, pages: Buffer) -> None:
        """Goes on with some of the wanted pages, in their order. ValueError."""

    def sifted(self) -> bytes:
        """The suspects, once all wanted pages were sifted."""

    def resolve(self, positions: Buffer) -> None:
        """Answers the last `suspects`: uint64 a suspect, where the run saw it last, 2**64 - 1 = nowhere. ValueError."""

    def last_counts(self) -> Counts:
        """Counts of the last probe, while its token is open. ValueError."""

    def duplicates(self) -> bytes:
        """Pairs (position, previous) of uint64: where the duplicates of the last probe are, in no order, and where
        their ids were sighted before. ValueError unless its token is open.
        """

    def commit(self, token: int) -> None:
        """Makes the marks of the oldest open token final. ValueError for another token."""

    def abort(self, token: int) -> None:
        """Takes back the marks of `token` and of every later one. ValueError unless it is open."""

    def set_runs(self, runs: Iterable[tuple[int, int, Buffer | None]]) -> None:
        """Names the sealed runs, oldest first: first position, stop position, filter blocks or None."""

    def seal_below(self, position: int) -> None:
        """Forgets recent keys last seen below `position`: a run answers for them. ValueError."""

    def ids(self, start: int, stop: int) -> bytes:
        """The ids of the positions [start, stop), 16 bytes each. ValueError: they are not in memory."""

    def replay(self, ids: Buffer) -> None:
        """Marks ids as seen and committed at the next positions, for a window that is being restored. ValueError."""

    def horizon_state(self) -> dict[str, Any]:
        """The committed horizon, clock, marks and counts, JSON-able."""

    def restore_horizon(self, state: dict[str, Any]) -> None:
        """Takes over what `horizon_state` gave."""

    @property
    def oldest(self) -> int:
        """Positions from here on are answered by the recent keys."""

    @property
    def committed(self) -> int:
        """The position after the last committed row."""

    @property
    def oldest_token(self) -> tuple[int, int] | None:
        """The token that is committed next and the position after its last row, or None."""

    @property
    def tail(self) -> int:
        """The position of the next keyed row."""

    @property
    def horizon(self) -> int:
        """Committed sightings below this position no longer count."""

    @property
    def counts(self) -> Counts:
        """Counts of all committed probes."""

    @property
    def recent_bytes(self) -> int:
        """Memory of the ring and the hint table."""

    @property
    def buckets(self) -> tuple[int, int, int]:
        """Buckets, overflow buckets and splits so far of the hint table."""
