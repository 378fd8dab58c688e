"""Polars' side of the whole jobs, in its own idiom: the streaming engine, with ``maintain_order``."""

import polars as pl
import pyarrow as pa
from contest import Contender
from job_outcome import FACTOR, outcome_of
from jobs_engine import mapped_batches


def distinct(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.unique(subset="event_id", keep="first", maintain_order=True)


def to_files(source: str, directory: str, format: str) -> Contender:
    """The job to files; nothing is committed, nothing synced."""
    target = pl.PartitionBy(directory, key="part", include_key=False)

    def run() -> None:
        rows = distinct(pl.scan_ipc(source))
        rows = rows.with_columns(amount=pl.col("amount") * FACTOR, part=pl.col("key").hash() % 8)
        if format == "parquet":
            rows.sink_parquet(target, compression="snappy", maintain_order=True, engine="streaming")
        else:
            rows.sink_ipc(target, compression="uncompressed", maintain_order=True, engine="streaming")

    return Contender("polars", run, lambda nothing: None)


def in_memory(source: str, partitions: int) -> Contender:
    """Dedup with all columns, then, if ``partitions`` are wanted, one frame for each."""
    frame = pl.from_arrow(pa.Table.from_batches(mapped_batches(source)), rechunk=False)

    def run() -> list[pl.DataFrame]:
        if not partitions:
            return [distinct(frame.lazy()).collect(engine="streaming")]
        rows = distinct(frame.lazy()).with_columns(part=pl.col("key").hash() % partitions)
        return rows.collect(engine="streaming").partition_by("part", maintain_order=True, include_key=False)

    return Contender("polars", run, lambda frames: outcome_of(frame.to_arrow() for frame in frames))
