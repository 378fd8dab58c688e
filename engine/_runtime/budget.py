"""The byte budget of a run, and its shares.

    one half     the keys that dedup keeps in memory, and the Bloom filters of its sealed runs
    one quarter  rows that sinks buffer until a row group is full
    one eighth   idle buffers: room for all that an exchange frees at once, or the next one pays for fresh pages
    a sixteenth  rows that wait in channels
    a sixteenth  rows that the exchange gathers, and as many that it splits meanwhile

A share is split evenly among those who take part in it, so that no sum of them passes the budget.
"""

from dataclasses import dataclass

__all__ = ["MINIMUM_BYTES", "Budget"]

MINIMUM_BYTES = 2**20
"""The least that can be shared out. A batch that is larger than its share still passes, alone."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``total_bytes`` for ``dedups`` windows, one sink, and ``channels`` channels."""

    total_bytes: int
    dedups: int
    channels: int

    @property
    def dedup_bytes(self) -> int:
        """What one window of keys may take."""
        return self.total_bytes // 2 // max(1, self.dedups)

    @property
    def sink_bytes(self) -> int:
        """What all writers of the sink may buffer together."""
        return self.total_bytes // 4

    @property
    def channel_bytes(self) -> int:
        """What may wait in one channel; a larger batch passes alone."""
        return self.total_bytes // 16 // max(1, self.channels)

    @property
    def exchange_bytes(self) -> int:
        """What batches may take that wait for others, and again what is being split meanwhile."""
        return self.total_bytes // 32

    @property
    def idle_bytes(self) -> int:
        """What the pool of buffers may keep for reuse."""
        return self.total_bytes // 8
