"""The Bloom filter of a sealed run: ids that are in it, and ids that are not."""

import numpy as np
import pytest
from contest import Contender

from engine._core.bloom import BloomFilter

SEED = bytes(range(16))


@pytest.mark.parametrize("code", ["vector", "scalar"])
def bench_query(contest, rows, code):
    draw = np.random.default_rng(1)
    added, others = (draw.bytes(16 * rows) for _ in range(2))
    bloom = BloomFilter(SEED, rows, 16)
    bloom.add(added)
    scalar = code == "scalar"
    test = Contender("engine", lambda: bloom.test(others, scalar=scalar), lambda found: sum(found) < 0.003 * rows)
    contest.hold(f"bloom, not in it, {code}", [test], items=rows, expected=True, unit="id")
    test = Contender("engine", lambda: bloom.test(added, scalar=scalar), sum)
    contest.hold(f"bloom, in it, {code}", [test], items=rows, expected=rows, unit="id")


def bench_add(contest, rows):
    added = np.random.default_rng(2).bytes(16 * rows)

    def build():
        bloom = BloomFilter(SEED, rows, 16)
        bloom.add(added)
        return bloom

    contest.hold(
        "bloom, build",
        [Contender("engine", build, lambda bloom: sum(bloom.test(added)))],
        items=rows,
        expected=rows,
        unit="id",
    )
