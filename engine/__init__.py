"""Bulk ingest and event processing, exactly once, in one process.

Build a ``Pipeline``, then ``run`` it (``run_async`` under Trio), or ``collect`` its rows::

    import engine
    from engine import sinks, sources

    pipeline = (
        engine.Pipeline("orders")
        .read(sources.parquet("events/"))
        .dedup("event_id", within=50_000_000)
        .key_by("user_id", partitions=8)
        .map(add_tax)
        .write(sinks.parquet("out/"))
    )
    report = engine.run(pipeline, state="state/")
"""

from engine import errors, sinks, sources
from engine._runtime.entry import collect, run, run_async
from engine.errors import EngineError
from engine.log.log import Log
from engine.pipeline import Pipeline
from engine.report import Report, Statistics
from engine.retry import Retry
from engine.sink import Sink
from engine.source import Source
from engine.stages.deduplicator import Deduplicator
from engine.stages.hash_partitioner import HashPartitioner

__version__ = "0.1.0"

__all__ = [
    "Deduplicator",
    "EngineError",
    "HashPartitioner",
    "Log",
    "Pipeline",
    "Report",
    "Retry",
    "Sink",
    "Source",
    "Statistics",
    "collect",
    "errors",
    "run",
    "run_async",
    "sinks",
    "sources",
]
