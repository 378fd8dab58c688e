"""The intake: where the rows of all sources become one stream of batches, cut into epochs.

Laws
    - All sources send into one channel, so one barrier in it cuts them all at once: nothing needs to be aligned.
    - The offsets of an epoch are taken here, from the batches that passed: a batch and its offset cannot fall apart.
"""

from dataclasses import dataclass

import pyarrow as pa

from engine._runtime.channel import ReceiveChannel, SendChannel
from engine._runtime.coordinator import Coordinator
from engine.batch import Batch
from engine.progress import Barrier, Offset

__all__ = ["Arrival", "Counters", "Intake"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A batch with the source that it came from and the offset behind it."""

    source: str
    batch: Batch
    offset: Offset


@dataclass(slots=True)
class Counters:
    """What the progress view needs to know of a run, since it began."""

    rows_in: int = 0
    rows_out: int = 0


class Intake:
    """Passes batches on in one stream, with the columns in one order, and counts."""

    def __init__(self, schema: pa.Schema, coordinator: Coordinator | None, counters: Counters) -> None:
        self._schema = schema
        self._coordinator = coordinator
        self._counters = counters
        self._offsets: dict[str, Offset] = {}

    async def run(
        self,
        receive: ReceiveChannel[Arrival | Barrier],
        send: SendChannel[Batch | Barrier],
        offsets: dict[str, Offset],
    ) -> None:
        """Pass everything on until the channel ends. ``offsets`` are those of the last commit."""
        self._offsets = dict(offsets)
        rows_since_barrier = 0
        async with send:
            async for item in receive:
                if isinstance(item, Barrier):
                    assert self._coordinator is not None
                    self._coordinator.cut_at(item.epoch, dict(self._offsets), {"rows_in": rows_since_barrier})
                    rows_since_barrier = 0
                    send.send_control(item)
                    continue
                self._offsets[item.source] = item.offset
                rows_since_barrier += item.batch.row_count
                self._counters.rows_in += item.batch.row_count
                if item.batch.row_count:
                    batch = self._arranged(item.batch)
                    await send.send(batch, rows=batch.row_count, size_bytes=batch.size_bytes)

    def _arranged(self, batch: Batch) -> Batch:
        found = batch.rows.schema
        if found is self._schema or found.equals(self._schema):
            return batch
        columns = [batch.rows.column(name) for name in self._schema.names]
        return batch.with_rows(pa.RecordBatch.from_arrays(columns, schema=self._schema))
