"""Hashing key columns, beside Polars' hash."""

import numpy as np
import pyarrow as pa
from contest import Contender

from engine._core.hash import hash_rows
from engine.testing.workload import generate


def distinct_hashes(parts):
    return len(np.unique(np.concatenate([np.frombuffer(part, np.uint64) for part in parts])))


def contend(contest, peer, title, column, events):
    """Hash one column of every batch; as many hashes must differ as values do."""
    batches = [batch.select([column]) for batch in events]
    expected = len(pa.Table.from_batches(batches)[column].unique())
    contenders = [Contender("engine", lambda: [hash_rows(batch, [0]) for batch in batches], distinct_hashes)]
    if polars := peer("polars"):
        series = [polars.from_arrow(batch.column(0)) for batch in batches]
        contenders.append(
            Contender("polars", lambda: [one.hash() for one in series], lambda parts: polars.concat(parts).n_unique())
        )
    contest.hold(f"hash {title}", contenders, items=sum(batch.num_rows for batch in batches), expected=expected)


def bench_int64(contest, peer, events):
    contend(contest, peer, "int64", "seq", events)


def bench_16_bytes(contest, peer, events):
    contend(contest, peer, "16 bytes", "event_id", events)


def bench_text(contest, peer, events):
    contend(contest, peer, "text, 11 bytes", "key", events)


def bench_uuid_text(contest, peer, rows):
    events = [batch.select(["event_id"]) for batch in generate(min(rows, 2_000_000), seed=3, keys=10, id="uuid")]
    contend(contest, peer, "text, 36 bytes", "event_id", events)
