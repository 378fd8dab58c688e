"""The window of keys seen: exact duplicates out of 16-byte ids, beside Polars, DuckDB and a Python set."""

import numpy as np
import pyarrow as pa
from contest import Contender

from engine._core.dedup import DedupWindow

SEED = bytes(range(16))


def id_buffers(events):
    """The ids of each batch, 16 bytes a row."""
    buffers = []
    for batch in events:
        column = batch.column("event_id")
        start = column.offset * 16
        buffers.append(memoryview(column.buffers()[1])[start : start + 16 * len(column)])
    return buffers


def window_contender(name, buffers, within):
    def run():
        window = DedupWindow(seed=SEED, within=within)
        fresh = 0
        for ids in buffers:
            token, mask = window.probe(ids, len(ids) // 16)
            window.commit(token)
            fresh += np.count_nonzero(np.frombuffer(mask, np.uint8))
        return fresh

    return Contender(name, run, int)


def bench_dedup(contest, peer, events, rows):
    expected = sum(batch.num_rows - np.count_nonzero(batch.column("delivery").to_numpy()) for batch in events)
    buffers = id_buffers(events)
    contenders = [
        window_contender("engine, for ever", buffers, None),
        window_contender("engine, a tenth of the rows", buffers, rows // 10),
    ]
    ids = pa.Table.from_batches([batch.select(["event_id"]) for batch in events])
    if polars := peer("polars"):
        frame = polars.from_arrow(ids, rechunk=False).lazy()
        kept = frame.unique(subset="event_id", keep="first", maintain_order=True).select(polars.len())
        contenders.append(Contender("polars, ids only", lambda: kept.collect(engine="streaming").item(), int))
    if duckdb := peer("duckdb"):
        connection = duckdb.connect()
        connection.register("ids", ids)
        query = "SELECT count(*) FROM (SELECT DISTINCT event_id FROM ids)"
        contenders.append(Contender("duckdb, ids only", lambda: connection.execute(query).fetchone()[0], int))
    if rows <= 1_000_000:
        values = [batch.column("event_id").to_pylist() for batch in events]

        def python_set():
            seen = set()
            for batch in values:
                seen.update(batch)
            return len(seen)

        contenders.append(Contender("set", python_set, int))
    contest.hold("dedup", contenders, items=rows, expected=expected)
