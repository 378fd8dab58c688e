"""Pipelines with dedup that stopped in the middle, damage to their files, and what there is to compare: on real and on
simulated disks.
"""

import itertools
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import Pipeline, run, sinks, sources
from engine._runtime.repair import repair_async
from engine._runtime.run import Options, execute
from engine.checkpoint.inspection import verify
from engine.errors import StageError
from engine.storage import Storage
from engine.testing.determinism import run_deterministically
from engine.testing.inline_threads import Delay, InlineBackground, InlineWorkers
from engine.testing.storage import SimulatedStorage

ROWS, BATCH_ROWS, STOP = 48_000, 1_000, 36_000
KINDS = ("ids", "run", "keys")


def batches(rows=ROWS, salt=""):
    """A quarter of the rows come again, from anywhere before."""
    chance = random.Random(7)
    ids = [n if chance.random() < 0.75 else chance.randrange(n + 1) for n in range(rows)]
    return [
        pa.record_batch(
            {
                "id": [f"{salt}an identity of more than sixteen bytes: {n}" for n in ids[start : start + BATCH_ROWS]],
                "value": range(start, start + BATCH_ROWS),
            }
        )
        for start in range(0, rows, BATCH_ROWS)
    ]


INPUT = batches()


def pipeline(out, *, stop=None, within=None, read=None, storage=None):
    """Stops with an error where a value is ``stop``."""

    def check(rows):
        if stop is not None and rows.num_rows and rows["value"][-1].as_py() >= stop:
            raise ValueError("stop here")
        return rows

    sink = sinks.parquet(out)
    if storage is not None:
        sink.storage = storage
    source = read if read is not None else sources.memory(INPUT, id="rows")
    started = Pipeline("repaired").read(*(source if isinstance(source, list) else [source]))
    return started.map(check).key_by("id", partitions=2).dedup("id", within=within, exact="bytes").write(sink)


class Foreign:
    """A source as users write them: it knows no ``before``."""

    def __init__(self, source):
        self._source = source
        self.name = source.name
        self.replay = source.replay
        self.schema = source.schema
        self.open = source.open
        self.ack = source.ack
        self.covers = source.covers


OPTIONS = {"memory": "2MiB", "commit_every_s": 3600, "commit_every_bytes": 300_000}


def stopped(path, **choices):
    with pytest.raises(StageError, match="stop here"):
        run(pipeline(path / "out", stop=STOP, **choices), state=path / "state", **OPTIONS)
    return path


def rows_of(directory):
    return sorted((row["value"], row["id"]) for row in pq.read_table(directory).to_pylist())


def everything(path):
    """All that is there, but for the text in LOCK."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}


def options(path, **more):
    return Options(state=path / "state", memory="2MiB", **more)


def harm(file, kind):
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "short":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = {"flipped": len(content) // 3, "filter": len(content) - 200}[kind]
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])


def victims(path, kind):
    state = str(path / "state" / "repaired")
    return [Path(file.path) for file in verify(Storage(), state).files if os.path.basename(file.path).startswith(kind)]


def simulated(storage, *, stop=None, mend=False, rows=12_000):
    """Run, or repair, on a simulated disk; with so many rows."""
    background = InlineBackground()
    chosen = Options(
        state="/state",
        memory="2MiB",
        commit_every_s=1e9,
        commit_every_bytes=100_000,
        storage=storage,
        workers=lambda: InlineWorkers(random.Random(1), background, Delay()),
        background=lambda name: background,
    )
    made = pipeline("/out", stop=stop, read=sources.memory(SMALL[: rows // BATCH_ROWS], id="rows"), storage=storage)
    if mend:
        return run_deterministically(next(STARTS), repair_async, made, chosen)
    return run_deterministically(next(STARTS), execute, made, made.graph.sink, chosen)


SMALL = batches(12_000)
STARTS = itertools.count()
"""A seed for each start: no two draw the same ids."""


def output_of(storage):
    """Rows of the published files."""
    files = sorted(name for name, data in storage.contents().items() if data and name.startswith("/out/"))
    tables = [pq.read_table(pa.BufferReader(storage.contents()[name])) for name in files if name.endswith(".parquet")]
    return sorted((row["value"], row["id"]) for table in tables for row in table.to_pylist())


def damaged_disk(kind=SimulatedStorage, rows=12_000):
    """A stopped run on a simulated disk, one of its files cut short; and what it would have written."""
    undisturbed, storage = SimulatedStorage(), SimulatedStorage(record=True)
    simulated(undisturbed, rows=rows)
    with pytest.raises(StageError):
        simulated(storage, stop=rows * 5 // 6, rows=rows)
    victim = verify(storage, "/state/repaired").files[0]
    with storage.open(victim.path, write=True) as file:
        file.truncate(victim.size_bytes // 2)
        file.sync()
    reached = storage.crash()
    reached.__class__ = kind
    return reached, victim.path, output_of(undisturbed)
