"""Reading: the rows of one source into the pipeline, by a thread of its own.

Laws
    - Small reads travel together: they are joined on the reader's thread until they make half a batch, as a hop costs
      the same for ten rows as for 65,536. They make no more bytes than an epoch may have.
    - No row waits longer for others than ``LINGER_S``: where the reader blocks, what it gave before is sent without it.
    - Rows are sent in the order in which they were read, each batch with the offset behind its last row.
    - A barrier passes also while the reader blocks. Rows that wait here are behind it.
"""

import threading
from functools import partial

import trio

from engine._runtime.channel import SendChannel
from engine._runtime.coordinator import Coordinator
from engine._runtime.intake import Arrival
from engine._runtime.worker import Dedicated
from engine.batch import Batch
from engine.errors import EngineError, SourceError
from engine.progress import Barrier, Offset
from engine.source import Read, Reader

__all__ = ["SourceReading"]

TRAVEL_ROWS = 32_768
"""Rows that are worth a hop: half of what a source may give at once."""

TRAVEL_BYTES = 4 << 20
LINGER_S = 0.02


class SourceReading:
    """One source's reader at work."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        thread: Dedicated,
        send: SendChannel[Arrival | Barrier],
        coordinator: Coordinator | None,
        *,
        epoch_bytes: int | None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._thread = thread
        self._send = send
        self._coordinator = coordinator
        self._held = _Held(min(TRAVEL_BYTES, epoch_bytes or TRAVEL_BYTES))
        self._reading = False
        self._ended = False

    async def run(self) -> None:
        """Read to the end and send all rows. Cancelled while a read blocks, it leaves that read behind."""
        try:
            while not self._ended:
                if self._coordinator is not None:
                    await self._coordinator.admitted()
                await self._read_on()
        finally:
            # A reader that is still reading belongs to the thread that was left behind with it.
            if not self._reading:
                self._reader.close()

    async def _read_on(self) -> None:
        """Let the thread read until there is enough to travel; send what it holds whenever it takes too long."""
        returned = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fill, returned)
            while not returned.is_set():
                with trio.move_on_after(LINGER_S):
                    await returned.wait()
                if not returned.is_set():
                    await self._send_all(self._held.take())
        await self._send_all(self._held.take())

    async def _fill(self, returned: trio.Event) -> None:
        self._reading = True
        fill = partial(self._held.fill, self._name, self._reader)
        self._ended = not await self._thread.run(fill, abandon_on_cancel=True)
        self._reading = False
        returned.set()

    async def _send_all(self, arrivals: list[tuple[Batch, Offset]]) -> None:
        for batch, offset in arrivals:
            await self._send.send(Arrival(self._name, batch, offset), rows=batch.row_count, size_bytes=batch.size_bytes)
            if self._coordinator is not None:
                self._coordinator.received(batch.row_count, batch.size_bytes)


class _Held:
    """What was read and not sent yet: the reader's thread fills it, the task takes it."""

    def __init__(self, enough_bytes: int) -> None:
        self._enough_bytes = enough_bytes
        self._lock = threading.Lock()
        self._reads: list[Read] = []
        self._rows = 0
        self._joined: list[tuple[Batch, Offset]] = []
        self._row_bytes = 0

    def fill(self, name: str, reader: Reader) -> bool:
        """Read until there is enough to travel; whether there may be more. Raises SourceError."""
        more = True
        while more and self._rows < self._enough_rows():
            read = _read(name, reader)
            more = read is not None
            if read is not None:
                self._row_bytes = self._row_bytes or _row_bytes(Batch(read.rows, read.origin))
                with self._lock:
                    self._reads.append(read)
                    self._rows += read.rows.num_rows
        with self._lock:
            self._join()
        return more

    def take(self) -> list[tuple[Batch, Offset]]:
        """Everything that was read, in order, in few batches."""
        with self._lock:
            self._join()
            taken, self._joined = self._joined, []
        return taken

    def _enough_rows(self) -> int:
        """Rows that are worth a hop, going by the width of those that were read before."""
        return max(1, min(TRAVEL_ROWS, self._enough_bytes // self._row_bytes)) if self._row_bytes else 1

    def _join(self) -> None:
        if not self._reads:
            return
        reads, self._reads, self._rows = self._reads, [], 0
        joined = Batch.joined([Batch(read.rows, read.origin) for read in reads])
        offsets = [read.offset for read in (reads[-1:] if len(joined) == 1 else reads)]
        self._joined += zip((batch.measured() for batch in joined), offsets, strict=True)
        self._row_bytes = _row_bytes(joined[-1])


def _row_bytes(batch: Batch) -> int:
    return 1 + batch.size_bytes // max(1, batch.row_count)


def _read(name: str, reader: Reader) -> Read | None:
    try:
        return reader.read()
    except Exception as error:
        reader.close()
        if isinstance(error, EngineError):
            raise
        raise SourceError(f"{name}: reading failed: {type(error).__name__}: {error}", source=name) from error
