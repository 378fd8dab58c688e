"""The Bloom filter of a sealed run: ids that are in it, ids that are not, and building it; beside its portable code."""

import hashlib

import numpy as np
import pytest
from contest import Contender

from engine._core.bloom import BloomFilter

SEED = bytes(range(16))
FALSE_POSITIVES = 0.003
"""At most, at 16 bits a key."""


def digest_of(found):
    return hashlib.blake2b(found, digest_size=8).hexdigest()


@pytest.mark.parametrize("which", ["in it", "not in it"])
def bench_query(contest, rows, which):
    draw = np.random.default_rng(1)
    added, others = (draw.bytes(16 * rows) for _ in range(2))
    bloom = BloomFilter(SEED, rows, 16)
    bloom.add(added)
    asked = added if which == "in it" else others
    found = bloom.test(asked, scalar=True)
    assert sum(found) == rows if which == "in it" else sum(found) < FALSE_POSITIVES * rows
    contenders = [
        Contender("engine", lambda: bloom.test(asked), digest_of),
        Contender("engine, portable code", lambda: bloom.test(asked, scalar=True), digest_of),
    ]
    contest.hold(f"bloom, {which}", contenders, items=rows, expected=digest_of(found), unit="id")


def bench_add(contest, rows):
    added = np.random.default_rng(2).bytes(16 * rows)

    def build():
        bloom = BloomFilter(SEED, rows, 16)
        bloom.add(added)
        return bloom

    ours = Contender("engine", build, lambda bloom: sum(bloom.test(added)))
    contest.hold("bloom, build", [ours], items=rows, expected=rows, unit="id")
