"""The exchange: moves rows to their partition.

Laws
    - Stable: rows of one partition keep their order. The wanted rows of a batch are gathered here, once for all
      columns.
    - Small pieces are held back and travel together; a barrier, the end, or a moment without input sends them on.
    - A piece keeps the whole batch alive that it was cut from. So all pieces leave together when the batches they came
      from reach a bound: a partition that gets few rows cannot hold on to more.
    - A barrier goes to every partition, behind all rows that came before it.
"""

import math
from collections.abc import Sequence

import pyarrow as pa
import trio

from engine._core.partition import Partitioner
from engine._runtime.channel import ReceiveChannel, SendChannel
from engine.batch import Batch
from engine.progress import Barrier
from engine.stage import Offload

__all__ = ["Exchange"]

TRAVEL_ROWS = 4_096
"""Pieces of fewer rows wait for others of their partition: below this a hop costs more than the copy."""

HELD_ROWS = 4 * 65_536
"""Rows that are split before all pieces leave, however small."""

LINGER_S = 0.02
"""How long a piece waits when no input comes."""


class Exchange:
    """Splits each batch by the hash of its key columns and sends the pieces to the lanes."""

    def __init__(
        self,
        columns: Sequence[int],
        sends: Sequence[SendChannel[Batch | Barrier]],
        offload: Offload,
        *,
        memory_bytes: int,
    ) -> None:
        self._partitioner = Partitioner(list(columns), len(sends))
        self._sends = sends
        self._offload = offload
        self._memory_bytes = memory_bytes
        self._waiting: list[list[Batch]] = [[] for _ in sends]
        self._held_rows = 0
        self._held_bytes = 0

    async def run(self, receive: ReceiveChannel[Batch | Barrier]) -> None:
        """Move rows until the channel ends."""
        try:
            while True:
                linger_s = LINGER_S if any(self._waiting) else math.inf
                with trio.move_on_after(linger_s) as lingering:
                    item = await receive.receive()
                if lingering.cancelled_caught:
                    await self._send_waiting()
                elif isinstance(item, Barrier):
                    await self._send_waiting()
                    for send in self._sends:
                        send.send_control(item)
                else:
                    await self._split(item)
        except trio.EndOfChannel:
            await self._send_waiting()
        finally:
            for send in self._sends:
                send.close()

    async def _split(self, batch: Batch) -> None:
        pieces = await self._offload(self._partitioner.partition, batch.rows, batch.selection)
        for partition, piece in enumerate(pieces):
            if piece.num_rows:
                waiting = self._waiting[partition]
                waiting.append(batch.with_rows(piece))
                if sum(held.rows.num_rows for held in waiting) >= TRAVEL_ROWS:
                    await self._send(partition)
        self._held_rows += batch.row_count
        self._held_bytes += batch.size_bytes
        if self._held_rows >= HELD_ROWS or self._held_bytes >= self._memory_bytes:
            await self._send_waiting()

    async def _send_waiting(self) -> None:
        for partition, waiting in enumerate(self._waiting):
            if waiting:
                await self._send(partition)
        self._held_rows = self._held_bytes = 0

    async def _send(self, partition: int) -> None:
        pieces, self._waiting[partition] = self._waiting[partition], []
        batch = pieces[0] if len(pieces) == 1 else await self._offload(_joined, pieces)
        await self._sends[partition].send(batch, rows=batch.row_count, size_bytes=batch.size_bytes)


def _joined(pieces: Sequence[Batch]) -> Batch:
    rows = pa.concat_batches([piece.rows for piece in pieces])  # type: ignore[attr-defined]
    return Batch(rows, pieces[0].origin.through(pieces[-1].origin))
