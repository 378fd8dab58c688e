"""Hashing key columns, beside Polars' hash.

The answer says for each row which is the first row of its batch with the same hash: it is the same for all hashes that
equal for equal values and differ for others.
"""

import hashlib

import numpy as np
from contest import Contender

from engine._core.hash import hash_rows
from engine.testing.workload import generate

BATCHES = 20


def first_equals(columns):
    """A digest of what equals what."""
    digest = hashlib.blake2b(digest_size=8)
    for values in columns:
        _, first, group = np.unique(values, return_index=True, return_inverse=True)
        digest.update(first[group].astype("<i8").tobytes())
    return digest.hexdigest()


def contend(contest, peer, title, column, events):
    batches = [batch.select([column]) for batch in events]
    expected = first_equals(np.array(batch.column(0).dictionary_encode().indices, np.int64) for batch in batches)
    contenders = [contender("engine", batches, lambda batch: hash_rows(batch, [0]))]
    if polars := peer("polars"):
        series = [polars.from_arrow(batch.column(0)) for batch in batches]
        contenders.append(contender("polars", series, lambda one: one.hash()))
    rows = sum(batch.num_rows for batch in batches)
    contest.hold(f"hash {title}", contenders, items=rows, expected=expected, repeat=10, rounds=3 * contest.rounds)


def contender(name, inputs, hashed):
    """Each result is let go before the next, as its reader would; so the answer is made anew."""

    def run():
        for one in inputs:
            hashed(one)

    return Contender(name, run, lambda nothing: first_equals(np.asarray(hashed(one)).view(np.uint64) for one in inputs))


def bench_int64(contest, peer, events):
    contend(contest, peer, "int64", "seq", events[:BATCHES])


def bench_16_bytes(contest, peer, events):
    contend(contest, peer, "16 bytes", "event_id", events[:BATCHES])


def bench_text(contest, peer, events):
    contend(contest, peer, "text, 11 bytes", "key", events[:BATCHES])


def bench_uuid_text(contest, peer, events):
    rows = sum(batch.num_rows for batch in events[:BATCHES])
    contend(contest, peer, "text, 36 bytes", "event_id", list(generate(rows, seed=3, keys=10, id="uuid")))
