"""Recycled buffers beside fresh ones, each page touched once."""

import numpy as np
from contest import Contender

from engine._core import pool

SIZE_BYTES = 4 << 20
BUFFERS = 50


def touched(make):
    """Make buffers one after the other and write to each page; the number of bytes touched."""
    pages = 0
    for _ in range(BUFFERS):
        view = np.frombuffer(make(), np.uint8)
        view[::4096] = 1
        pages += int(view[::4096].sum())
    return pages


def bench_pool(contest):
    pool.set_limit(4 * SIZE_BYTES)
    contenders = [
        Contender("engine", lambda: touched(lambda: pool.Buffer(SIZE_BYTES)), int),
        Contender("numpy.empty", lambda: touched(lambda: np.empty(SIZE_BYTES, np.uint8)), int),
        Contender("bytearray", lambda: touched(lambda: bytearray(SIZE_BYTES)), int),
    ]
    pages = SIZE_BYTES // 4096 * BUFFERS
    contest.hold("pool, buffers of 4 MiB", contenders, items=pages, expected=pages, unit="page")
