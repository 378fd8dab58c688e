"""Reading: the rows of one source into the pipeline, by a thread of its own.

Laws
    - Small reads travel together: they are joined on the reader's thread until they make a batch, as a hop costs
      the same for ten rows as for 65,536. They make no more bytes than an epoch may have.
    - No row waits longer for others than ``LINGER_S``: where the reader blocks, what it gave before is sent without it.
    - Rows are sent in the order in which they were read, each batch with the offset behind its last row.
    - A barrier passes also while the reader blocks. Rows that wait here are behind it.
"""

import threading
from functools import partial

import pyarrow as pa
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

TRAVEL_ROWS = 65_536
"""Rows that are worth a hop: as many as a source may give at once."""

TRAVEL_BYTES = 8 << 20
TRAVEL_READS = 4_096
"""However few rows they have: a source of empty batches must come back too."""

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
            if self._reading:
                self._held.abandon()
            else:
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
        self._bytes = 0
        self._row_bytes = 0
        self._measured_bytes = -1
        self._joined: list[tuple[Batch, Offset]] = []
        self._abandoned = False

    def fill(self, name: str, reader: Reader) -> bool:
        """Read until there is enough to travel; whether there may be more. Raises SourceError."""
        more = True
        while more and not self._enough():
            read = _read(name, reader)
            if self._abandoned:
                reader.close()
                return False
            more = read is not None
            if read is not None:
                size_bytes = self._size_bytes(read.rows)
                with self._lock:
                    self._reads.append(read)
                    self._rows += read.rows.num_rows
                    self._bytes += size_bytes
        with self._lock:
            self._join()
        return more

    def take(self) -> list[tuple[Batch, Offset]]:
        """Everything that was read, in order, in few batches."""
        with self._lock:
            self._join()
            taken, self._joined = self._joined, []
        return taken

    def abandon(self) -> None:
        """Let the thread close the reader when the read under way returns, and read no more."""
        self._abandoned = True

    def _enough(self) -> bool:
        return self._rows >= TRAVEL_ROWS or self._bytes >= self._enough_bytes or len(self._reads) >= TRAVEL_READS

    def _size_bytes(self, rows: pa.RecordBatch) -> int:
        """About the bytes of the rows. To add them up takes longer than to read a hundred rows: so slices of the same
        buffers count by their rows, and buffers that are about as large as the rows should be count whole."""
        buffers_bytes = int(rows.get_total_buffer_size())
        expected_bytes = rows.num_rows * self._row_bytes
        if buffers_bytes == self._measured_bytes:
            return expected_bytes
        if buffers_bytes <= 2 * expected_bytes:
            return buffers_bytes
        size_bytes = int(rows.nbytes)
        if rows.num_rows:
            self._row_bytes = 1 + size_bytes // rows.num_rows
            self._measured_bytes = buffers_bytes
        return size_bytes

    def _join(self) -> None:
        reads, self._reads, self._rows, self._bytes = self._reads, [], 0, 0
        if not reads:
            return
        joined = Batch.joined([Batch(read.rows, read.origin) for read in reads])
        offsets = [read.offset for read in (reads[-1:] if len(joined) == 1 else reads)]
        self._joined += zip((batch.measured() for batch in joined), offsets, strict=True)


def _read(name: str, reader: Reader) -> Read | None:
    try:
        return reader.read()
    except Exception as error:
        reader.close()
        if isinstance(error, EngineError):
            raise
        raise SourceError(f"{name}: reading failed: {type(error).__name__}: {error}", source=name) from error
