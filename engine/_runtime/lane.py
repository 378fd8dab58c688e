"""The tasks of a lane: a stage, or the sink, between the channel before it and the one behind it.

Laws
    - Items leave in the order in which they entered, also where several are worked on at once.
    - A barrier is passed on when everything before it has left. Then the stage's state as of the barrier is made
      durable, while the stages behind and the sink do the same with theirs; only this stage's next rows wait.
    - A sink prepares the epoch that a barrier ended in the background, while rows of the next one are being written.
"""

from collections.abc import Awaitable, Callable, Mapping

import trio

from engine._runtime.channel import ReceiveChannel, SendChannel
from engine._runtime.coordinator import Coordinator
from engine._runtime.intake import Counters
from engine.batch import Batch
from engine.errors import EngineError, SinkError, StageError
from engine.progress import Barrier, Epoch, Token
from engine.sink import Sink, Writer
from engine.stage import Offload, Transform

__all__ = ["SinkLane", "StageLane"]

Item = Batch | Barrier


class StageLane:
    """One stage in one lane."""

    def __init__(
        self, name: str, partition: int, transform: Transform, coordinator: Coordinator | None, *, has_state: bool
    ) -> None:
        self._name = name
        self._partition = partition
        self._transform = transform
        self._coordinator = coordinator if has_state else None
        self._counted: Mapping[str, int] = {}

    async def run(self, receive: ReceiveChannel[Item], send: SendChannel[Item]) -> None:
        """Work until the channel ends."""
        async with send:
            if self._transform.concurrency > 1:
                await self._run_overlapping(receive, send)
                return
            async for item in receive:
                if isinstance(item, Barrier):
                    await self._pass(item, send)
                else:
                    await self._send(await self._process(item), send)

    async def _run_overlapping(self, receive: ReceiveChannel[Item], send: SendChannel[Item]) -> None:
        """``concurrency`` batches at once; each result waits for its turn."""
        free = trio.Semaphore(self._transform.concurrency)
        turns_in, turns_out = trio.open_memory_channel[_Turn](self._transform.concurrency + 1)

        async def emit() -> None:
            async for turn in turns_out:
                await turn.done.wait()
                if isinstance(turn.item, Barrier):
                    await self._pass(turn.item, send)
                else:
                    await self._send(turn.batches, send)
                    free.release()

        async with trio.open_nursery() as nursery, turns_in:
            nursery.start_soon(emit)
            async for item in receive:
                turn = _Turn(item)
                if isinstance(item, Barrier):
                    turn.done.set()
                else:
                    await free.acquire()
                    nursery.start_soon(self._take_turn, turn)
                await turns_in.send(turn)
            await turns_in.aclose()

    async def _take_turn(self, turn: "_Turn") -> None:
        assert isinstance(turn.item, Batch)
        turn.batches = await self._process(turn.item)
        turn.done.set()

    async def _process(self, batch: Batch) -> list[Batch]:
        try:
            return await self._transform.process(batch)
        except (EngineError, trio.Cancelled):
            raise
        except Exception as error:
            raise StageError(
                f"{self._name} failed: {type(error).__name__}: {error}\n  {batch.origin}, partition {self._partition}.",
                stage=self._name,
                partition=self._partition,
                rows=str(batch.origin),
            ) from error

    async def _send(self, batches: list[Batch], send: SendChannel[Item]) -> None:
        for batch in batches:
            if batch.row_count:
                await send.send(batch, rows=batch.row_count, size_bytes=batch.size_bytes)

    async def _pass(self, barrier: Barrier, send: SendChannel[Item]) -> None:
        send.send_control(barrier)
        if self._coordinator is not None:
            state = await self._transform.snapshot()
            counted, self._counted = self._counted, dict(self._transform.statistics())
            gained = {name: count - counted.get(name, 0) for name, count in self._counted.items()}
            gained = {name: gained.get(name, 0) for name in ("duplicates", "null_keys")}
            self._coordinator.snapshotted(barrier.epoch, self._name, self._partition, state, gained)


class _Turn:
    """A batch or a barrier that waits for its turn to leave."""

    __slots__ = ("batches", "done", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.batches: list[Batch] = []
        self.done = trio.Event()


class SinkLane:
    """The sink in one lane: a writer for each epoch that brings rows, and in the first lane for every one that is
    committed: so a sink has a handle of each, if it gives one for no rows.
    """

    def __init__(
        self,
        sink: Sink,
        partition: int,
        token: Callable[[Epoch], Token],
        coordinator: Coordinator | None,
        counters: Counters,
        *,
        write: Offload,
        prepare: Offload,
    ) -> None:
        self._sink = sink
        self._partition = partition
        self._token = token
        self._coordinator = coordinator
        self._counters = counters
        self._write_on = write
        self._prepare_on = prepare
        self._writer: Writer | None = None

    async def run(
        self, receive: ReceiveChannel[Item], epoch: Epoch, start_soon: Callable[[Callable[[], Awaitable[None]]], None]
    ) -> None:
        """Write until the channel ends. ``epoch`` is the one that begins; ``start_soon`` starts background tasks."""
        rows = 0
        try:
            async for item in receive:
                if isinstance(item, Batch):
                    await self._write(item, epoch)
                    rows += item.row_count
                    self._counters.rows_out += item.row_count
                    continue
                writer = self._opened(epoch) if self._partition == 0 else self._writer
                ended = _Ended(self, writer, item.epoch, rows)
                self._writer, rows, epoch = None, 0, item.epoch + 1
                start_soon(ended.prepare)
            if self._coordinator is None:
                await _Ended(self, self._writer, epoch, rows).prepare()
                self._writer = None
        finally:
            if self._writer is not None:
                self._writer.abort()

    def _opened(self, epoch: Epoch) -> Writer:
        if self._writer is None:
            self._writer = self._sink.writer(self._partition, self._token(epoch))
        return self._writer

    async def _write(self, batch: Batch, epoch: Epoch) -> None:
        await self._guarded(self._write_on, self._write_rows, self._opened(epoch), batch)

    @staticmethod
    def _write_rows(writer: Writer, batch: Batch) -> None:
        writer.write(batch.gathered().rows, origin=batch.origin)

    async def prepare(self, writer: Writer | None, epoch: Epoch, rows: int) -> None:
        """Make an epoch's rows durable and tell the coordinator."""
        handle = None
        if writer is not None:
            try:
                handle = await self._guarded(self._prepare_on, writer.prepare)
            finally:
                writer.abort()
        if self._coordinator is not None:
            counted = {"rows_out": rows, f"rows_out.{self._partition}": rows}
            self._coordinator.prepared(epoch, handle, counted)

    async def _guarded(self, offload: Offload, fn: Callable[..., object], *args: object) -> object:
        try:
            return await offload(fn, *args)
        except (EngineError, trio.Cancelled):
            raise
        except Exception as error:
            raise SinkError(
                f"{self._sink.name}, partition {self._partition}: writing failed: {type(error).__name__}: {error}",
                sink=self._sink.name,
                partition=self._partition,
            ) from error


class _Ended:
    """An epoch that a barrier ended, to be prepared in the background."""

    __slots__ = ("_epoch", "_lane", "_rows", "_writer")

    def __init__(self, lane: SinkLane, writer: Writer | None, epoch: Epoch, rows: int) -> None:
        self._lane = lane
        self._writer = writer
        self._epoch = epoch
        self._rows = rows

    async def prepare(self) -> None:
        await self._lane.prepare(self._writer, self._epoch, self._rows)
