"""The whole job and its two halves in memory, beside Polars' own idiom for each.

- The job: Arrow IPC file in, exact dedup by id, amounts multiplied, 8 partitions by key, Parquet (snappy) out. Ours
  commits and syncs its files, and could be killed at any moment; Polars commits nothing.
- Dedup in memory: all columns of the rows that are kept, materialised.
- Partitioning in memory: record batches in, record batches out.
"""

import shutil

import pyarrow as pa
import pyarrow.compute as pc
from contest import Contender
from ingested import FACTOR, outcome_expected, outcome_of

import engine
from engine import sinks, sources


def scaled(batch):
    index = batch.schema.get_field_index("amount")
    return batch.set_column(index, "amount", pc.multiply(batch.column(index), FACTOR))


def ingest(source, directory):
    """Our job, from the beginning; gives where the output is."""
    shutil.rmtree(directory, ignore_errors=True)
    pipeline = (
        engine.Pipeline("bench")
        .read(sources.arrow_ipc(str(source)))
        .dedup("event_id", within=10_000_000)
        .key_by("key", partitions=8)
        .map(scaled)
        .write(sinks.parquet(str(directory / "out")))
    )
    engine.run(pipeline, state=str(directory / "state"))
    return directory / "out"


def polars_ingest(polars, source, directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rows = polars.scan_ipc(source).unique(subset="event_id", keep="first", maintain_order=True)
    rows = rows.with_columns(amount=polars.col("amount") * FACTOR, part=polars.col("key").hash() % 8)
    target = polars.PartitionBy(directory, key="part", include_key=False)
    rows.sink_parquet(target, compression="snappy", maintain_order=True, engine="streaming")
    return directory


def bench_job(contest, peer, events, events_file, rows, tmp_path):
    contenders = [Contender("engine", lambda: ingest(events_file, tmp_path / "engine"), outcome_of)]
    if polars := peer("polars"):
        contenders.append(
            Contender("polars", lambda: polars_ingest(polars, events_file, tmp_path / "polars"), outcome_of)
        )
    contest.hold("job to Parquet", contenders, items=rows, expected=outcome_expected(events))


def bench_dedup_in_memory(contest, peer, events, rows):
    expected = outcome_expected(events).rows
    table = pa.Table.from_batches(events)

    def ours():
        return engine.collect(engine.Pipeline("bench").read(sources.memory(table)).dedup("event_id"), memory="4GiB")

    contenders = [Contender("engine", ours, len)]
    if polars := peer("polars"):
        frame = polars.from_arrow(table, rechunk=False).lazy()
        kept = frame.unique(subset="event_id", keep="first", maintain_order=True)
        contenders.append(Contender("polars, streaming", lambda: kept.collect(engine="streaming"), len))
        contenders.append(Contender("polars, in memory", kept.collect, len))
    contest.hold("dedup in memory, all columns", contenders, items=rows, expected=expected)


def bench_partition_in_memory(contest, peer, events, rows):
    def ours():
        partitioner = engine.HashPartitioner("key", partitions=8)
        return sum(part.num_rows for batch in events for part in partitioner.partition(batch))

    contenders = [Contender("engine", ours, int)]
    if polars := peer("polars"):
        oldest = polars.CompatLevel.oldest()

        def theirs():
            count = 0
            for batch in events:
                frame = polars.from_arrow(pa.Table.from_batches([batch]), rechunk=False)
                frame = frame.with_columns(part=polars.col("key").hash() % 8)
                for part in frame.partition_by("part", maintain_order=True, include_key=False):
                    count += part.to_arrow(compat_level=oldest).combine_chunks().num_rows
            return count

        contenders.append(Contender("polars, Arrow to Arrow", theirs, int))
    contest.hold("partition in memory, 8 ways", contenders, items=rows, expected=rows)
