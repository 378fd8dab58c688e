"""Partitioning whole batches by key, Arrow to Arrow, beside Polars and pyarrow."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from contest import Contender

from engine._core.partition import Partitioner


def tally(pieces):
    """Rows, and how often a key is in a second partition; ``pieces`` are lists of batches by partition."""
    owner, rows, torn = {}, 0, 0
    for parts in pieces:
        for partition, part in enumerate(parts):
            rows += part.num_rows
            for key in part.column(part.schema.names.index("key")).unique().to_pylist():
                torn += owner.setdefault(key, partition) != partition
    return rows, torn


def polars_contender(polars, batches, ways):
    def run():
        pieces = []
        for batch in batches:
            frame = polars.from_arrow(pa.Table.from_batches([batch]), rechunk=False)
            parts = frame.with_columns(part=polars.col("key").hash() % ways).partition_by(
                "part", maintain_order=True, include_key=True, as_dict=True
            )
            oldest = polars.CompatLevel.oldest()
            pieces.append({key[0]: part.to_arrow(compat_level=oldest).combine_chunks() for key, part in parts.items()})
        return pieces

    def answer(pieces):
        schema = pa.schema([("key", pa.large_string())])
        empty = schema.empty_table()
        return tally([[parts.get(way, empty) for way in range(ways)] for parts in pieces])

    return Contender("polars, Arrow to Arrow", run, answer)


def pyarrow_contender(batches, ways):
    """Sort by partition and slice: what pyarrow offers; it has no hash of rows, so it is given the partition."""
    partitioner = Partitioner([batches[0].schema.get_field_index("key")], ways)
    numbered = []
    for batch in batches:
        parts = partitioner.partition(batch)
        rows = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        numbers = pa.array([way for way, part in enumerate(parts) for _ in range(part.num_rows)], pa.uint16())
        shuffled = pc.sort_indices(rows.column("ts"))
        numbered.append(rows.append_column("part", numbers).take(shuffled))

    def run():
        pieces = []
        for batch in numbered:
            rows = batch.take(pc.sort_indices(batch.column("part")))
            counts = dict(
                zip(*(side.to_pylist() for side in rows.column("part").value_counts().flatten()), strict=True)
            )
            parts, start = [], 0
            for way in range(ways):
                parts.append(rows.slice(start, counts.get(way, 0)))
                start += counts.get(way, 0)
            pieces.append(parts)
        return pieces

    return Contender("pyarrow, sort and slice", run, tally)


@pytest.mark.parametrize("ways", [8, 64])
def bench_partition(contest, peer, events, ways):
    batches = events[:20]
    rows = sum(batch.num_rows for batch in batches)
    partitioner = Partitioner([batches[0].schema.get_field_index("key")], ways)
    contenders = [Contender("engine", lambda: [partitioner.partition(batch) for batch in batches], tally)]
    if polars := peer("polars"):
        contenders.append(polars_contender(polars, batches, ways))
    contenders.append(pyarrow_contender(batches, ways))
    contest.hold(f"partition, {ways} ways", contenders, items=rows, expected=(rows, 0))
