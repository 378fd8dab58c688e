"""The exchange: moves rows to their partition.

Laws
    - Stable: rows of one partition keep their order. The wanted rows of a batch are gathered here, once for all
      columns.
    - Batches wait for one another and are split together, so that pieces are large: a hop costs the same for ten rows
      as for 65,536. A barrier, the end, a bound in rows or bytes, or ``LINGER_S`` sends them on.
    - While one group of batches is split and sent, the next one gathers: the stage before need not wait.
    - A barrier goes to every partition, behind all rows that came before it.
"""

import contextlib
import math
from collections.abc import Sequence

import trio

from engine._core.partition import Partitioner, joinable
from engine._runtime.channel import ReceiveChannel, SendChannel
from engine.batch import Batch
from engine.errors import EngineError, StageError
from engine.progress import Barrier
from engine.stage import Offload

__all__ = ["Exchange"]

PIECE_ROWS = 32_768
"""Rows of a piece, on average, that batches wait for."""

HELD_ROWS = 8 * 65_536
"""The most rows that are split together, however many the partitions."""

GROUP_BYTES = 1 << 30
"""The most bytes that are split together, whatever the budget: the offsets of a text column count to twice as many."""

LINGER_S = 0.02
"""How long a batch waits for others."""


class Exchange:
    """Splits batches by the hash of their key columns and sends the pieces to the lanes."""

    def __init__(
        self,
        columns: Sequence[int],
        sends: Sequence[SendChannel[Batch | Barrier]],
        offload: Offload,
        *,
        name: str,
        memory_bytes: int,
    ) -> None:
        self._name = name
        self._partitioner = Partitioner(list(columns), len(sends))
        self._sends = sends
        self._offload = offload
        self._memory_bytes = memory_bytes
        self._enough_rows = min(PIECE_ROWS * len(sends), HELD_ROWS)
        self._held: list[Batch] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._due_s = math.inf

    async def run(self, receive: ReceiveChannel[Batch | Barrier]) -> None:
        """Move rows until the channel ends."""
        groups, gathered = trio.open_memory_channel[list[Batch] | Barrier](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._split_all, gathered)
            async with groups:
                await self._gather_all(receive, groups)

    async def _gather_all(
        self, receive: ReceiveChannel[Batch | Barrier], groups: trio.MemorySendChannel[list[Batch] | Barrier]
    ) -> None:
        with contextlib.suppress(trio.EndOfChannel):
            while True:
                item = None
                with trio.move_on_at(self._due_s):
                    item = await receive.receive()
                if isinstance(item, Batch):
                    if self._held_bytes + item.size_bytes > GROUP_BYTES:
                        await self._pass_on(groups)
                    self._hold(item)
                    if self._held_rows < self._enough_rows and self._held_bytes < self._memory_bytes:
                        continue
                await self._pass_on(groups)
                if isinstance(item, Barrier):
                    await groups.send(item)
        await self._pass_on(groups)

    def _hold(self, batch: Batch) -> None:
        if not self._held:
            self._due_s = trio.current_time() + LINGER_S
        self._held.append(batch)
        self._held_rows += batch.row_count
        self._held_bytes += batch.size_bytes

    async def _pass_on(self, groups: trio.MemorySendChannel[list[Batch] | Barrier]) -> None:
        held, self._held, self._held_rows, self._held_bytes = self._held, [], 0, 0
        self._due_s = math.inf
        if held:
            await groups.send(held)

    async def _split_all(self, gathered: trio.MemoryReceiveChannel[list[Batch] | Barrier]) -> None:
        try:
            async for group in gathered:
                if isinstance(group, Barrier):
                    for send in self._sends:
                        send.send_control(group)
                else:
                    await self._split(group)
        finally:
            for send in self._sends:
                send.close()

    async def _split(self, group: list[Batch]) -> None:
        """Send a group on, at most one piece a partition where its batches join."""
        try:
            pieces = await self._offload(self._cut, group)
        except (EngineError, trio.Cancelled):
            raise
        except Exception as error:
            rows = str(group[0].origin.through(group[-1].origin))
            raise StageError(
                f"{self._name} failed: {type(error).__name__}: {error}\n  {rows}.", stage=self._name, rows=rows
            ) from error
        group.clear()
        for send, batches in zip(self._sends, pieces, strict=True):
            for batch in batches:
                await send.send(batch, rows=batch.row_count, size_bytes=batch.size_bytes)

    def _cut(self, held: Sequence[Batch]) -> list[list[Batch]]:
        """The pieces for each lane: one, but where the batches' columns do not join."""
        if len(held) > 1 and not joinable(held[0].rows.schema):
            apart = zip(*(self._cut([batch]) for batch in held), strict=True)
            return [Batch.joined([piece for pieces in lane for piece in pieces]) for lane in apart]
        rows = [batch.rows for batch in held]
        cut = self._partitioner.partition_all(rows, [batch.selection for batch in held])
        origin = held[0].origin.through(held[-1].origin)
        return [[Batch(piece, origin).measured()] if piece.num_rows else [] for piece in cut]
