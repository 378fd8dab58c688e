"""The whole job beside its peers, each contender in a process of its own: wall time, CPU time, memory.

- To files: Arrow IPC file in, exact dedup by id, amounts multiplied, 8 partitions by key, Parquet (snappy) or
  uncompressed Arrow IPC out. Ours commits and syncs its files, and could be killed at any moment; the peers commit
  nothing.
- In memory: dedup and 8 partitions, record batches in, every column materialised. Of the peers' contenders those that
  say "dedup" do that half only.
- Growth: ten times the rows, with ``--size huge``.
"""

import shutil

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from child import ChildContender
from events import write_events
from job_outcome import Digest, Outcome, outcome_expected, outcome_of_files, partition_files
from jobs_engine import scaled

from engine.testing.workload import generate


def an_outcome(values):
    return Outcome(*values)


def into(name, job, source, directory, format):
    """A contender whose output is read when its process has ended, and then removed."""

    def answer(_):
        outcome = outcome_of_files(directory / "out" if (directory / "out").is_dir() else directory)
        shutil.rmtree(directory)
        return outcome

    return ChildContender(name, job, {"source": str(source), "directory": str(directory), "format": format}, answer)


@pytest.mark.parametrize(("format", "title"), [("parquet", "job to Parquet"), ("ipc", "job to Arrow IPC")])
def bench_job(contest, peer, events, events_file, rows, tmp_path, format, title):
    contenders = [into("engine", "jobs_engine:to_files", events_file, tmp_path / "engine", format)]
    if peer("polars"):
        contenders.append(into("polars", "jobs_polars:to_files", events_file, tmp_path / "polars", format))
    if format == "parquet" and peer("duckdb"):
        contenders.append(into("duckdb", "jobs_duckdb:to_files", events_file, tmp_path / "duckdb", format))
    contenders.append(into("pyarrow, set", "jobs_pyarrow:to_files", events_file, tmp_path / "pyarrow", format))
    contest.hold(title, contenders, items=rows, expected=outcome_expected(events))


def bench_in_memory(contest, peer, events, events_file, rows):
    source = {"source": str(events_file)}
    contenders = [ChildContender("engine", "jobs_engine:in_memory", source, an_outcome)]
    if peer("polars"):
        for name, partitions in (("polars, dedup", 0), ("polars", 8)):
            arguments = source | {"partitions": partitions}
            contenders.append(ChildContender(name, "jobs_polars:in_memory", arguments, an_outcome))
    if peer("duckdb"):
        contenders.append(ChildContender("duckdb, dedup", "jobs_duckdb:in_memory", source, an_outcome))
    contest.hold("job in memory", contenders, items=rows, expected=outcome_expected(events, scaled=False))


def bench_growth(contest, growth_rows, tmp_path):
    """The same job on ten times the rows: nanoseconds a row and memory should stay."""
    source, directory = tmp_path / "events.arrow", tmp_path / "engine"

    def answer(_):
        digest = Digest()
        for paths in partition_files(directory / "out").values():
            for path in paths:
                for batch in pq.ParquetFile(path).iter_batches():
                    digest.add(batch)
        shutil.rmtree(directory)
        return digest.rows, str(digest)

    arguments = {"source": str(source), "directory": str(directory), "format": "parquet"}
    contender = ChildContender("engine", "jobs_engine:to_files", arguments, answer)
    for rows in growth_rows:
        expected = Digest()
        write_events(source, counted(rows, expected))
        contest.hold("growth, job to Parquet", [contender], items=rows, expected=(expected.rows, str(expected)))
        source.unlink()


def counted(rows, digest):
    """Events on their way into the file, and what is to be left of them."""
    for batch in generate(rows, seed=20260102, max_distance=min(rows // 10, 1_000_000)):
        digest.add(scaled(batch.filter(pc.field("delivery") == 0)))
        yield batch
