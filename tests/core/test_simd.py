"""Levels of vector instructions: what the machine has, what ENGINE_SIMD forces, and that no level changes an answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine._core import simd

ANSWERS = """
import hashlib
import numpy as np
import pyarrow as pa
from engine._core import simd
from engine._core.bloom import BloomFilter
from engine._core.crc32c import crc32c
from engine._core.hash import hash_rows, key_ids
from engine._core.partition import Partitioner, combine_selection, gather

random = np.random.default_rng(5)
seen = hashlib.sha256()
for rows in (0, 1, 7, 8, 9, 63, 64, 1000, 4099):
    short = [None if size == 0 else "k" * int(size) for size in random.integers(0, 17, rows)]
    long = ["x" * int(size) for size in random.integers(0, 90, rows)]
    flags = random.random(rows) < 0.5
    columns = {
        "n": random.integers(-9, 9, rows), "d": random.random(rows), "s": pa.array(short, pa.string()),
        "l": pa.array(long, pa.large_string()), "b": flags, "i": pa.array([bytes([n % 256]) * 16 for n in range(rows)],
        pa.binary(16)),
    }
    batch = pa.record_batch(columns)
    selection, count = combine_selection(None, pa.array(flags), rows)
    for index in range(6):
        seen.update(bytes(hash_rows(batch, [index])))
        seen.update(bytes(key_ids(batch, [index], bytes(16)).ids))
        for partitions in (1, 2, 8, 64, 1000):
            for wanted in (None, selection):
                for part in Partitioner([index], partitions).partition(batch, wanted):
                    seen.update(repr(part.to_pydict()).encode())
    seen.update(repr(gather(batch, selection).to_pydict()).encode())
    seen.update(str(crc32c(random.bytes(rows))).encode())
    filter_ = BloomFilter(bytes(16), rows)
    filter_.add(random.bytes(16 * (rows // 2)))
    seen.update(filter_.test(random.bytes(16 * rows)))
print(simd.chosen(), seen.hexdigest())
"""


def run(program: str, level: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ENGINE_SIMD": level}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_every_machine_has_the_plain_level_and_uses_one_that_it_has() -> None:
    assert simd.levels()[0] == "scalar"
    assert simd.chosen() in simd.levels()
    assert set(simd.levels()) <= {"scalar", "neon", "avx2", "avx512"}


def test_every_kernel_answers_alike_at_every_level() -> None:
    answers = {level: run(ANSWERS, level) for level in simd.levels()}
    assert all(done.returncode == 0 for done in answers.values()), answers
    words = {level: done.stdout.split() for level, done in answers.items()}
    assert {level: chosen for level, (chosen, _) in words.items()} == {level: level for level in answers}
    assert len({answer for _, answer in words.values()}) == 1, words


def test_the_best_level_is_used_where_none_is_forced() -> None:
    done = run("from engine._core import simd; print(simd.chosen())", "")
    assert done.stdout.strip() == simd.levels()[-1]


@pytest.mark.parametrize("kernel", ["crc32c", "hash", "simd", "pool"])
@pytest.mark.parametrize("level", ["sse9", "AVX2", "neon" if "avx2" in simd.levels() else "avx2"])
def test_a_level_that_the_machine_lacks_is_refused_by_every_kernel(kernel: str, level: str) -> None:
    done = run(f"import engine._core.{kernel}", level)
    assert done.returncode == 1
    expected = f"ENGINE_SIMD={level}: expected a level that this machine has, which are {' '.join(simd.levels())}"
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {expected}"
