"""``Deduplicator``, exact, in memory: a window that is full and forgets, and all ids of a stream beside the peers.

Each answer is held to what the stream says (``id_stream``): nothing that must be kept is dropped, no duplicate passes.
The notes have the slowest batch of 65,536 rows, tables that grow among them.
"""

import hashlib
import time

import numpy as np
import pyarrow as pa
import pytest
from contest import Contender
from id_stream import IdStream

from engine import Deduplicator

BATCH_ROWS = 65_536
MEASURED_BATCHES = 32
ENTRY_BYTES = 100
"""More than a key costs: nothing is to spill."""


def digest_of(masks):
    """Of which rows are kept."""
    return hashlib.blake2b(b"".join(np.packbits(mask).tobytes() for mask in masks), digest_size=8).hexdigest()


def probe_all(seen, batches):
    """The masks, and the slowest batch in milliseconds."""
    masks, slowest_s = [], 0.0
    for batch in batches:
        began_s = time.perf_counter()
        probe = seen.probe(batch)
        seen.commit(probe.token)
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        masks.append(probe.mask)
    return masks, slowest_s * 1e3


def engine_contender(name, batches, within, ids, fill=lambda seen: 0.0):
    memory = max(256 << 20, ids * ENTRY_BYTES)

    def prepare():
        seen = Deduplicator("event_id", within=within, memory=memory)
        return seen, fill(seen)

    def run(prepared):
        seen, filling_ms = prepared
        masks, slowest_ms = probe_all(seen, batches)
        return masks, max(slowest_ms, filling_ms), seen.statistics()

    return Contender(
        name,
        run,
        lambda result: digest_of(mask.to_numpy(zero_copy_only=False) for mask in result[0]),
        prepare,
        lambda result: f"slowest batch {result[1]:.1f} ms",
    )


@pytest.mark.parametrize("duplicates_percent", [1, 10, 50])
@pytest.mark.parametrize("kind", ["binary", "text"])
def bench_window(contest, size, kind, duplicates_percent):
    """The window is filled first; the slowest batch may be one of those."""
    for within in size.windows:
        stream = IdStream(within, duplicates_percent, kind)
        # A tenth more than fits, so that the window forgets from the first measured row on.
        first = within + within // 10
        starts = [first + index * BATCH_ROWS for index in range(MEASURED_BATCHES if within > BATCH_ROWS else 2)]
        batches, kept = zip(*(stream.batch(start, start + BATCH_ROWS) for start in starts), strict=True)

        def fill(seen, stream=stream, first=first):
            spans = ((at, min(at + BATCH_ROWS, first)) for at in range(0, first, BATCH_ROWS))
            return probe_all(seen, (stream.batch(*span)[0] for span in spans))[1]

        ours = engine_contender("engine", batches, within, within, fill)
        bytes_each = "16 bytes" if kind == "binary" else "36-char text"
        contest.hold(
            f"dedup, last {within:,} ids, {duplicates_percent} %, {bytes_each}",
            [ours],
            items=len(batches) * BATCH_ROWS,
            expected=digest_of(kept),
            rounds=1 if within > 50_000_000 else None,
        )


@pytest.mark.parametrize("kind", ["binary", "text"])
def bench_all_ids(contest, peer, rows, kind):
    """From an empty table to all ids of the stream, a tenth of them duplicates. The peers tell how many there are."""
    stream = IdStream(rows, 10, kind)
    batches, kept = zip(
        *(stream.batch(at, min(at + BATCH_ROWS, rows)) for at in range(0, rows, BATCH_ROWS)), strict=True
    )
    ids = pa.Table.from_batches(batches)
    expected = int(sum(map(np.count_nonzero, kept)))
    ours = engine_contender("engine", batches, None, rows)
    contenders = [Contender("engine", ours.run, lambda result: fresh_of(result, kept), ours.prepare, ours.note)]
    if polars := peer("polars"):
        frame = polars.from_arrow(ids).lazy()
        kept_ids = frame.unique(subset="event_id", keep="first", maintain_order=True)
        contenders.append(Contender("polars unique", lambda: kept_ids.collect(engine="streaming"), len))
    if duckdb := peer("duckdb"):
        connection = duckdb.connect()
        connection.register("ids", ids)
        query = "SELECT count(*) FROM (SELECT DISTINCT event_id FROM ids)"
        contenders.append(Contender("duckdb distinct", lambda: connection.execute(query).fetchone()[0], int))
    contenders.append(Contender("pyarrow unique", ids["event_id"].unique, len))
    title = "dedup, all ids, " + ("16 bytes" if kind == "binary" else "36-char text")
    contest.hold(title, contenders, items=rows, expected=expected)


def fresh_of(result, kept):
    """How many rows are kept; AssertionError unless they are those of the stream."""
    masks = [mask.to_numpy(zero_copy_only=False) for mask in result[0]]
    assert all(map(np.array_equal, masks, kept))
    return int(sum(map(np.count_nonzero, masks)))
