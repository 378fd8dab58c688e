"""The checksum of every durable frame, beside zlib's CRC-32, in cache and out of it."""

import zlib

import numpy as np
import pytest
from contest import Contender

from engine._core.crc32c import crc32c, crc32c_portable


@pytest.mark.parametrize(("name", "size_bytes"), [("64 KiB", 1 << 16), ("64 MiB", 1 << 26)])
def bench_crc32c(contest, name, size_bytes):
    data = np.random.default_rng(1).bytes(size_bytes)
    expected = crc32c_portable(data)
    other = zlib.crc32(data)
    contenders = [
        Contender("engine", lambda: crc32c(data), int),
        Contender("engine, portable code", lambda: crc32c_portable(data), int),
        # Another polynomial, so another sum; it must be the same each time.
        Contender("zlib crc32", lambda: zlib.crc32(data), lambda value: value ^ other ^ expected),
    ]
    contest.hold(
        f"crc32c, {name}",
        contenders,
        items=size_bytes,
        expected=expected,
        unit="byte",
        repeat=max(1, (1 << 24) // size_bytes),
    )
