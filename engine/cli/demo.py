"""The main job on the bundled sample: real file events with injected re-deliveries in, each event once out.

Law: the input appears whole or not at all, so that a demo that is killed while it prepares begins anew.
"""

import io
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.pipeline import Pipeline
from engine.sinks import parquet as write_parquet
from engine.sources import parquet as read_parquet
from engine.storage import Storage
from engine.testing.workload import redeliver

__all__ = ["demo_pipeline", "prepare_input"]

SEED = 2004
SHARE = 0.1
MAX_DISTANCE = 10_000
FILES = 8


def add_delay(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the seconds between writing and committing a change as a column."""
    delay = pc.subtract(batch.column("ts").cast(pa.int64()), batch.column("author_ts").cast(pa.int64()))
    return batch.append_column("delay_s", pc.divide(delay, 1_000_000))


def demo_pipeline(directory: Path) -> Pipeline:
    """The pipeline of ``engine demo``; its input must be there."""
    return (
        Pipeline("demo")
        .read(read_parquet(str(directory / "input")))
        .dedup("event_id")
        .key_by("key", partitions=8)
        .map(add_delay)
        .write(write_parquet(str(directory / "output")))
    )


def prepare_input(directory: Path) -> str:
    """Write the sample with re-deliveries below ``directory``, unless it is there; gives a line that says so."""
    storage = Storage()
    target, unfinished = directory / "input", directory / "input.unfinished"
    if storage.is_directory(str(target)):
        return f"engine demo: real file events of rails/rails in {target}, as before"
    sample = _sample()
    rows = redeliver(sample, seed=SEED, share=SHARE, max_distance=MAX_DISTANCE)
    storage.make_directory(str(unfinished))
    for name in storage.list(str(unfinished)):
        storage.unlink(str(unfinished / name))
    size = -(-rows.num_rows // FILES)
    for index in range(FILES):
        encoded = io.BytesIO()
        pq.write_table(rows.slice(index * size, size), encoded, compression="zstd")
        with storage.create(str(unfinished / f"events-{index:02}.parquet")) as file:
            file.append(encoded.getbuffer())
            file.sync()
    storage.rename(str(unfinished), str(target))
    return (
        f"engine demo: wrote {rows.num_rows:,} real file events of rails/rails to {target} ({FILES} files), "
        f"{rows.num_rows - sample.num_rows:,} of them delivered again"
    )


def _sample() -> pa.Table:
    sample = resources.files("engine.cli") / "sample" / "git_file_events.parquet"
    return pq.read_table(pa.BufferReader(sample.read_bytes()))
