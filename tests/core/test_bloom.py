"""The Bloom filter: never a false negative, few false positives, the same bits from both code paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.bloom import BloomFilter

SEED = bytes(range(16))


def ids_of(numbers):
    return b"".join(number.to_bytes(16, "little") for number in numbers)


SALTS = (0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31)


def folded(left, right):
    product = left * right
    return (product ^ product >> 64) & 2**64 - 1


def hash_of(number):
    """The hash of an id, written independently of the kernel."""
    low_seed, high_seed = (int.from_bytes(SEED[i : i + 8], "little") for i in (0, 8))
    low, high = number & 2**64 - 1, number >> 64
    mixed = folded(low ^ low_seed ^ 0xA0761D6478BD642F, high ^ high_seed ^ 0xE7037ED1A0B428DB)
    return folded(mixed ^ high_seed ^ 0x8EBC6AF09C88C6E3, mixed ^ 0x589965CC75374CC3)


@given(st.sets(st.integers(0, 2**128 - 1), max_size=200), st.integers(1, 32))
def test_what_was_added_always_tests_true(numbers, bits_per_key):
    filter_ = BloomFilter(SEED, len(numbers), bits_per_key)
    filter_.add(ids_of(numbers))
    assert filter_.test(ids_of(numbers)) == b"\1" * len(numbers)


@given(st.lists(st.integers(0, 60), max_size=100), st.lists(st.integers(0, 60), max_size=100))
def test_vector_and_scalar_code_agree(added, tested):
    filter_ = BloomFilter(SEED, 4)  # overfull on purpose: both answers occur
    filter_.add(ids_of(added))
    assert filter_.test(ids_of(tested)) == filter_.test(ids_of(tested), scalar=True)


def test_an_empty_filter_clears_everything():
    assert BloomFilter(SEED, 100).test(ids_of(range(50))) == bytes(50)


def test_16_bits_a_key_let_few_absent_keys_through():
    filter_ = BloomFilter(SEED, 50_000)
    filter_.add(ids_of(range(50_000)))
    suspects = sum(filter_.test(ids_of(range(1_000_000, 1_100_000))))
    assert suspects / 100_000 < 0.003


def test_the_bits_are_a_persisted_format():
    filter_ = BloomFilter(SEED, 1)
    filter_.add(ids_of([7]))
    words = np.frombuffer(filter_.blocks, dtype="<u4").tolist()
    assert words == [1 << (hash_of(7) * salt & 0xFFFFFFFF) // 2**27 for salt in SALTS]
    assert words == [8, 1, 4194304, 131072, 2048, 512, 268435456, 8192]
    again = BloomFilter(SEED, blocks=filter_.blocks)
    assert again.test(ids_of([7, 8])) == b"\1\0"


@pytest.mark.parametrize("blocks", [b"", bytes(31), bytes(33)])
def test_blocks_of_a_wrong_size_are_refused(blocks):
    with pytest.raises(ValueError, match="multiple of 32"):
        BloomFilter(SEED, blocks=blocks)


def test_a_seed_of_a_wrong_size_is_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        BloomFilter(b"short")
