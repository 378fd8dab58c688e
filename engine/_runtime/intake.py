"""The intake: where the rows of all sources become one stream of batches, cut into epochs.

Laws
    - All sources send into one channel, so one barrier in it cuts them all at once: nothing needs to be aligned.
    - The offsets of an epoch are taken here, from the batches that passed: a batch and its offset cannot fall apart.
    - A reader has a thread of its own; a barrier passes also while it blocks.
"""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from engine._runtime.channel import ReceiveChannel, SendChannel
from engine._runtime.coordinator import Coordinator
from engine._runtime.worker import Dedicated
from engine.batch import Batch
from engine.errors import EngineError, SourceError
from engine.progress import Barrier, Offset
from engine.source import Read, Reader

__all__ = ["Arrival", "Counters", "Intake", "read_source"]


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


async def read_source(
    name: str, reader: Reader, thread: Dedicated, send: SendChannel[Arrival | Barrier], coordinator: Coordinator | None
) -> None:
    """Read one source to its end and send what it gives. Cancelled while a read blocks, it leaves that read behind."""
    reading = False
    try:
        while True:
            if coordinator is not None:
                await coordinator.admitted()
            reading = True
            read = await thread.run(partial(_read, name, reader), abandon_on_cancel=True)
            reading = False
            if read is None:
                return
            batch = Batch(read.rows, read.origin)
            await send.send(Arrival(name, batch, read.offset), rows=batch.row_count, size_bytes=batch.size_bytes)
            if coordinator is not None:
                coordinator.received(batch.row_count, batch.size_bytes)
    finally:
        # A reader that is still reading belongs to the thread that was left behind with it.
        if not reading:
            reader.close()


def _read(name: str, reader: Reader) -> Read | None:
    try:
        return reader.read()
    except Exception as error:
        reader.close()
        if isinstance(error, EngineError):
            raise
        raise SourceError(f"{name}: reading failed: {type(error).__name__}: {error}", source=name) from error


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
        if found is self._schema or (found.names == self._schema.names and found.types == self._schema.types):
            return batch
        columns = [batch.rows.column(name) for name in self._schema.names]
        return batch.with_rows(pa.RecordBatch.from_arrays(columns, schema=self._schema))
