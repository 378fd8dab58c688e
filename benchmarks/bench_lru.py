"""The table of recent keys: where was each id seen last, with the oldest forgotten, beside an OrderedDict."""

from collections import OrderedDict

import numpy as np
from contest import Contender

from engine._core.lru import RecentKeys

SEED = bytes(range(16))
BATCH = 65_536
NOWHERE = 2**64 - 1


def bench_recent_keys(contest, rows):
    rows = min(rows, 2_000_000)
    keep = rows // 4
    draw = np.random.default_rng(1)
    numbers = draw.integers(0, rows // 2, rows).astype("<u8")
    ids = np.zeros((rows, 2), "<u8")
    ids[:, 0] = numbers * np.uint64(0x9E3779B97F4A7C15)
    ids[:, 1] = numbers
    parts = [ids[start : start + BATCH].tobytes() for start in range(0, rows, BATCH)]
    values = [[part[at : at + 16] for at in range(0, len(part), 16)] for part in parts]

    def engine():
        keys, found = RecentKeys(SEED), []
        for part in parts:
            found.append(keys.sight(part))
            keys.forget_below(max(keys.tail - keep, keys.oldest))
        return sum(int(np.count_nonzero(np.frombuffer(one, np.uint64) != NOWHERE)) for one in found)

    def ordered_dict():
        keys, found, at = OrderedDict(), 0, 0
        for part in values:
            for key in part:
                found += key in keys
                keys[key] = at
                keys.move_to_end(key)
                at += 1
            while keys and next(iter(keys.values())) < at - keep:
                keys.popitem(last=False)
        return found

    contenders = [Contender("engine", engine, int), Contender("OrderedDict", ordered_dict, int)]
    contest.hold("recent keys", contenders, items=rows, expected=ordered_dict(), unit="id")
