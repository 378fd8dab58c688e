"""Random numbers by counter: the n-th number of a stream needs no earlier one.

SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). Each purpose has a stream
of its own. The numbers are part of every seeded workload: they never change.
"""

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Integers", "Words", "random_words", "stream_of", "unit"]

Integers: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]


@lru_cache(maxsize=256)
def stream_of(seed: int, purpose: int) -> int:
    """The key of the stream for one purpose. Raises ValueError for a negative seed."""
    if seed < 0:
        raise ValueError("seed must not be negative")
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)[0])


def random_words(stream: int, counters: Integers) -> Words:
    """The numbers with these counters, 64 bits each."""
    words = counters.astype(np.uint64)
    words += np.uint64(1)
    words *= np.uint64(0x9E3779B97F4A7C15)
    words += np.uint64(stream)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def unit(words: Words) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1), from the upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
