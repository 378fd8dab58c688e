"""Dedup, filter and key_by in a row: a selection that travels to one gather, beside a gather after each of them."""

import pyarrow.compute as pc
from contest import Contender
from job_outcome import Digest

from engine._core.dedup import DedupWindow
from engine._core.hash import key_ids
from engine._core.partition import Partitioner, combine_selection, gather

SEED = bytes(range(16))
PARTITIONS = 8
LIMIT = 60.0


def bench_fusion(contest, events):
    batches = [batch.drop_columns(["delivery"]) for batch in events[:64]]
    names = batches[0].schema.names
    event_id, key, amount = (names.index(name) for name in ("event_id", "key", "amount"))
    partitioner = Partitioner([key], PARTITIONS)

    def probe(window, rows):
        token, selection = window.probe(key_ids(rows, [event_id], SEED).ids, rows.num_rows)
        window.commit(token)
        return selection

    def fused(consume):
        window = DedupWindow(seed=SEED)
        for rows in batches:
            selection = probe(window, rows)
            selection, _ = combine_selection(selection, pc.less(rows.column(amount), LIMIT), rows.num_rows)
            consume(partitioner.partition(rows, selection))

    def unfused(consume):
        window = DedupWindow(seed=SEED)
        for rows in batches:
            fresh = gather(rows, probe(window, rows))
            mask, _ = combine_selection(None, pc.less(fresh.column(amount), LIMIT), fresh.num_rows)
            consume(partitioner.partition(gather(fresh, mask)))

    def contender(name, chain):
        return Contender(name, lambda: chain(lambda parts: None), lambda nothing: tally(chain))

    wanted = Digest()
    for batch in events[:64]:
        mask = pc.and_(pc.equal(batch.column("delivery"), 0), pc.less(batch.column("amount"), LIMIT))
        wanted.add(batch.filter(mask))
    contest.hold(
        "dedup, filter, key_by",
        [contender("engine, one gather", fused), contender("engine, three gathers", unfused)],
        items=sum(batch.num_rows for batch in batches),
        expected=(wanted.rows, str(wanted), 0),
    )


def tally(chain):
    """Once more, for the answer: rows, a digest of them, and keys in a second partition."""
    digest, owner, torn = Digest(), {}, 0

    def consume(parts):
        nonlocal torn
        for partition, part in enumerate(parts):
            digest.add(part)
            for value in part.column(part.schema.names.index("key")).unique().to_pylist():
                torn += owner.setdefault(value, partition) != partition

    chain(consume)
    return digest.rows, str(digest), torn
