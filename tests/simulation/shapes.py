"""Pipelines as varied as the faults: a stream of events, what is done to it, and the rows that must come out.

What must come out is told by the stream's own ``Truth`` and a dictionary, not by engine.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine import Log, Pipeline, sinks, sources
from engine.testing import Bursts, Drift, EventStream

COLUMNS = ["offset", "event", "key", "ts", "quantity"]
SINKS = {
    "log": lambda: sinks.log("/out/log"),
    "parquet": lambda: sinks.parquet("/out/parquet"),
    "arrow_ipc": lambda: sinks.arrow_ipc("/out/ipc"),
}
KEYS = {
    "an id": (["event_id"], "fingerprint"),
    "text": (["payload"], "fingerprint"),
    "text, its bytes": (["payload"], "bytes"),
    "two columns, their bytes": (["event", "key"], "bytes"),
}


def doubled(rows: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Two rows for each, in two batches; also where there are none."""
    places = pa.array([n // 2 for n in range(2 * rows.num_rows)], pa.int64())
    copies = rows.take(places).append_column("copy", pa.array([n % 2 for n in range(len(places))], pa.int8()))
    return [copies.slice(0, rows.num_rows), copies.slice(rows.num_rows)]


@dataclass(frozen=True)
class Shape:
    """A pipeline to be simulated. ``window`` is a number of rows, a time, or None for ever."""

    stream: EventStream
    source: str
    sink: str
    keys: str
    """One of ``KEYS``."""

    window: int | timedelta | None
    partitions: int | None
    behind_key_by: bool
    work: frozenset[str]
    directory: Path

    @property
    def columns(self) -> list[str]:
        """Those that it needs: fewer are quicker."""
        region = ["region"] if "region" in self.work else []
        return list(dict.fromkeys([*COLUMNS, *KEYS[self.keys][0], *region]))

    def batches(self) -> list[pa.RecordBatch]:
        """The rows that enter; columns in the order that drift gave them."""
        columns = set(self.columns)
        return [batch.select([n for n in batch.schema.names if n in columns]) for batch in self.stream.batches()]

    def make(self) -> Callable[[], Pipeline]:
        if self.source == "log":
            path = self.directory / "in.log"
            if not path.exists():
                self.directory.mkdir(exist_ok=True)
                with Log(path, segment_bytes="32KiB", sync=False) as log:
                    for batch in self.batches():
                        log.append(batch)
            source = sources.log(path, group="simulated")
        else:
            batches = self.batches()
            schema = batches[-1].schema if self.stream.drifts else None
            source = sources.memory(batches, id="events", schema=schema)
        return lambda: self.pipeline(Pipeline("simulated").read(source))

    def pipeline(self, read: Pipeline) -> Pipeline:
        keys, exact = KEYS[self.keys]
        if self.behind_key_by and "key" not in keys:
            keys = ["key", *keys]
        by = "ts" if isinstance(self.window, timedelta) else None
        if "filter" in self.work:
            read = read.filter(pc.field("quantity") > 0)
        if self.partitions is not None and self.behind_key_by:
            read = read.key_by("key", partitions=self.partitions)
        read = read.dedup(keys, within=self.window, by=by, exact=exact)
        if self.partitions is not None and not self.behind_key_by:
            read = read.key_by("key", partitions=self.partitions)
        if "select" in self.work:
            read = read.select(*self.columns, twice=pc.add(pc.field("event"), pc.field("event")))
        if "map" in self.work:
            read = read.map(lambda rows: rows.append_column("half", pc.divide(rows.column("offset"), 2)))
        if "flat_map" in self.work:
            read = read.map(doubled)
        return read.write(SINKS[self.sink]())

    # What must come out.

    def expected(self) -> dict[str, list[tuple[int, bool]]]:
        """For each key the events that leave, in order, and whether they surely do."""
        seen: dict[int, int] = {}
        now = count = 0
        found: dict[str, list[tuple[int, bool]]] = {}
        for truth, batch in zip(self.stream.truths(), self.stream.batches(), strict=True):
            times = batch.column("ts").cast(pa.int64()).to_pylist()
            keys = truth.keys.to_pylist()
            for key, event, poison, time in zip(keys, truth.events.tolist(), truth.poison, times, strict=True):
                if poison and "filter" in self.work:
                    continue
                now = max(now, time)
                place = count if not isinstance(self.window, timedelta) else now
                last, seen[event] = seen.get(event), place
                count += 1
                leaves = self._leaves(last, place)
                if leaves is not False:
                    found.setdefault(key, []).append((event, leaves is True))
        return found

    def _leaves(self, last: int | None, place: int) -> bool | None:
        if last is None:
            return True
        if self.window is None:
            return False
        if isinstance(self.window, int):
            return place - last > self.window
        within = self.window // timedelta(microseconds=1)
        return False if place - last <= within else True if place - last > within + within // 64 else None

    def checker(self) -> Callable[[dict[int, pa.Table]], list[str]]:
        """Complaints about the rows that came out."""
        expected = self.expected()

        def check(tables: dict[int, pa.Table]) -> list[str]:
            found: dict[str, list[int]] = {}
            for table in tables.values():
                rows = table.filter(pc.field("copy") == 0) if "flat_map" in self.work else table
                for key, event in zip(rows.column("key").to_pylist(), rows.column("event").to_pylist(), strict=True):
                    found.setdefault(key, []).append(event)
            return [
                f"key {key}: by the stream's own account other events should have left"
                for key in expected.keys() | found.keys()
                if not _may_be(found.get(key, []), expected.get(key, []))
            ]

        return check


def _may_be(found: list[int], expected: list[tuple[int, bool]]) -> bool:
    """Whether all that surely leave are there, in order, and nothing that does not."""
    rest = iter([*found, None])
    at = next(rest)
    for event, surely in expected:
        if at == event:
            at = next(rest)
        elif surely:
            return False
    return at is None


def draw(chance: random.Random, directory: Path, *, sink: str | None = None, sealing: bool = False) -> Shape:
    """Some shape. ``sink``: one of ``SINKS``, or any. ``sealing``: its window outgrows its memory, so that it seals."""
    source = chance.choice(("memory", "memory", "log"))
    partitions = chance.choice((None, 1, 2, 3))
    windows = (None, chance.randrange(40, 400), timedelta(milliseconds=chance.randrange(10, 60)))
    window = None if sealing else chance.choice(windows)
    behind = partitions is not None and not sealing and window is None and chance.random() < 0.4
    kinds = [kind for kind in ("dictionary", "reorder", "widen") if chance.random() < 0.3] if source == "memory" else []
    rows = 12_000 if sealing else chance.randrange(300, 900)
    stream = EventStream(
        rows=rows,
        seed=chance.getrandbits(32),
        batch_rows=rows // chance.randrange(5, 9),
        keys=chance.choice((3, 20, 200)),
        skew=chance.choice((0.0, 1.0, 1.5)),
        hot_share=chance.choice((0.0, 0.3)),
        bursts=chance.choice((None, Bursts(every_s=0.02, length_s=0.004, factor=8.0))),
        redeliveries=0.05 if sealing else chance.choice((0.05, 0.3, 0.6)),
        delay=chance.choice(("fixed", "uniform", "exponential")),
        delay_rows=chance.choice((5, 60, 250)),
        late=chance.choice((0.0, 0.2)),
        lateness_s=0.02,
        disorder=chance.choice((0.0, 0.5)),
        poison=chance.choice((0.0, 0.05)),
        poison_kinds=("quantity",),
        drifts=tuple(Drift(chance.randrange(1, 6), kind) for kind in kinds),
    )
    work = {name for name in ("filter", "select", "map", "flat_map", "region") if chance.random() < 0.4}
    return Shape(
        stream=stream,
        source=source,
        sink=sink or chance.choice(list(SINKS)),
        keys=chance.choice(list(KEYS)[:1] if sealing else list(KEYS)),
        window=window,
        partitions=partitions,
        behind_key_by=behind,
        work=frozenset(work - {"flat_map", "region"} if sealing else work),
        directory=directory,
    )
