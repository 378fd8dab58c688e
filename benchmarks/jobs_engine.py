"""Our side of the whole jobs, each in a child process (``child``)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from contest import Contender
from job_outcome import FACTOR, Outcome, outcome_of

import engine
from engine import sinks, sources

SCALED = pa.scalar(FACTOR)

WITHIN = 10_000_000
"""The window of ids: all that the peers have to remember as well."""


def scaled(batch: pa.RecordBatch) -> pa.RecordBatch:
    index = batch.schema.get_field_index("amount")
    return batch.set_column(index, "amount", pc.multiply(batch.column(index), SCALED))


def mapped_batches(path: str) -> list[pa.RecordBatch]:
    """The batches of a file where the page cache has them: they do not count as memory of the process."""
    with pa.memory_map(path) as file, pa.ipc.open_file(file) as reader:
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    for batch in batches:
        for column in batch.columns:
            for buffer in column.buffers():
                if buffer is not None:
                    # One byte of each page: what is not mapped yet is not read on the contender's time.
                    sum(memoryview(buffer)[::4096])
    return batches


def to_files(source: str, directory: str, format: str) -> Contender:
    """The job to files, with commits and fsync, killable at any moment."""
    into = {"parquet": sinks.parquet, "ipc": sinks.arrow_ipc}[format]

    def run() -> engine.Report:
        pipeline = (
            engine.Pipeline("bench")
            .read(sources.arrow_ipc(source))
            .dedup("event_id", within=WITHIN)
            .key_by("key", partitions=8)
            .map(scaled)
            .write(into(str(Path(directory) / "out")))
        )
        return engine.run(pipeline, state=str(Path(directory) / "state"))

    def note(report: engine.Report) -> str:
        return "1 commit" if report.epochs == 1 else f"{report.epochs} commits"

    return Contender("engine", run, lambda report: None, note=note)


def in_memory(source: str) -> Contender:
    """Dedup and 8 partitions, record batches in, record batches out."""
    return batches_in_memory(mapped_batches(source))


def batches_in_memory(batches: list[pa.RecordBatch], name: str = "engine") -> Contender:
    """The job in memory on batches as they are."""
    partitions = 8

    def run() -> list[list[pa.RecordBatch]]:
        kept: list[list[pa.RecordBatch]] = [[] for _ in range(partitions)]

        def keep(rows, token):
            kept[token.part % partitions].append(rows)

        pipeline = engine.Pipeline("bench").read(sources.memory(batches)).dedup("event_id", within=WITHIN)
        engine.run(pipeline.key_by("key", partitions=partitions).write(sinks.call(keep)), memory="2GiB")
        return kept

    def answer(kept: list[list[pa.RecordBatch]]) -> Outcome:
        return outcome_of(pa.Table.from_batches(part, batches[0].schema) for part in kept)

    return Contender(name, run, answer)
