"""How a lane passes barriers on, and what waits for them."""

from typing import Any, cast

import pyarrow as pa
import trio
import trio.testing

from engine._runtime.channel import open_channel
from engine._runtime.coordinator import Coordinator
from engine._runtime.lane import StageLane
from engine.batch import Batch, Origin
from engine.progress import Barrier


class SlowToSync:
    """A transform whose state becomes durable only when it is told to."""

    concurrency = 1

    def __init__(self) -> None:
        self.may_end = trio.Event()
        self.calls: list[str] = []

    async def process(self, batch: Batch) -> list[Batch]:
        self.calls.append("process")
        return [batch]

    async def snapshot(self) -> dict[str, Any]:
        self.calls.append("snapshot")
        await self.may_end.wait()
        self.calls.append("durable")
        return {}

    def statistics(self) -> dict[str, int]:
        return {}


class Reports:
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def snapshotted(self, epoch: int, *_: object) -> None:
        self.epochs.append(epoch)


def test_a_barrier_overtakes_the_sync_of_the_state_but_no_row_does() -> None:
    async def main() -> None:
        transform, reports = SlowToSync(), Reports()
        lane = StageLane("slow", 0, cast(Any, transform), cast(Coordinator, reports), has_state=True)
        send, received = open_channel(max_rows=100, max_bytes=1 << 20)
        forward, arrived = open_channel(max_rows=100, max_bytes=1 << 20)
        batch = Batch(pa.record_batch({"n": [1]}), Origin("test", "test", 0, 1)).measured()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run, received, forward)
            await send.send(batch, rows=1, size_bytes=8)
            send.send_control(Barrier(1))
            await send.send(batch, rows=1, size_bytes=8)
            assert isinstance(await arrived.receive(), Batch)
            assert await arrived.receive() == Barrier(1)
            await trio.testing.wait_all_tasks_blocked()
            assert (transform.calls, reports.epochs) == (["process", "snapshot"], [])
            transform.may_end.set()
            assert isinstance(await arrived.receive(), Batch)
            assert (transform.calls, reports.epochs) == (["process", "snapshot", "durable", "process"], [1])
            send.close()

    trio.run(main)
