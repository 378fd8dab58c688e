"""Blocks of sealed runs: sorted, searched and merged as plain dictionaries say; damage never goes unnoticed."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.bloom import BloomFilter
from engine._core.dedup import DedupWindow
from engine._core.id_run import (
    BLOCK_SIZE_BYTES,
    ENTRIES_PER_BLOCK,
    DamagedBlockError,
    RunEncoder,
    RunIndex,
    RunMerger,
    entries_of,
)

SEED = bytes(range(16))
NOWHERE = 2**64 - 1


def id_of(number):
    return number.to_bytes(16, "big")


def sorted_entries(numbers, first=0, parts=3):
    """The entries of a run, as a window makes them, with the first number at position ``first``."""
    window = DedupWindow(seed=SEED, start=first, chunk_ids=8)
    token, _ = window.probe(b"".join(map(id_of, numbers)), len(numbers))
    window.commit(token)
    stop = first + len(numbers)
    return b"".join(window.sorted_entries(first, stop, part, parts) for part in range(parts))


def encoded(entries, expected_keys=1000):
    encoder = RunEncoder(SEED, expected_keys)
    half = len(entries) // 48 * 24
    blocks = encoder.encode(entries[:half]) + encoder.encode(entries[half:]) + encoder.finish()
    return encoder, blocks


def as_dict(entries):
    pairs = struct.iter_unpack("<16sQ", entries)
    return {int.from_bytes(key, "big"): position for key, position in pairs}


def find(encoder, blocks, numbers):
    index = RunIndex(SEED, encoder.first_ids)
    ids = b"".join(map(id_of, numbers))
    positions = np.full(len(numbers), NOWHERE, dtype=np.uint64)
    for i, block in enumerate(np.frombuffer(index.locate(ids), np.uint32).tolist()):
        if block != 2**32 - 1:
            data = blocks[block * BLOCK_SIZE_BYTES : (block + 1) * BLOCK_SIZE_BYTES]
            index.search(data, block, ids, np.array([i]), positions)
    return positions.tolist()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=600), st.integers(1, 5))
def test_a_run_knows_the_last_position_of_every_key(numbers, parts):
    expected = {number: 10 + i for i, number in enumerate(numbers)}
    entries = sorted_entries(numbers, 10, parts)
    assert as_dict(entries) == expected
    assert len(entries) == 24 * len(expected)
    encoder, blocks = encoded(entries)
    assert len(blocks) == -(-len(expected) // ENTRIES_PER_BLOCK) * BLOCK_SIZE_BYTES
    assert (encoder.count, encoder.last_position) == (len(expected), max(expected.values()))
    assert encoder.first_position == min(expected.values())
    asked = [*range(0, 520, 3), *numbers]
    assert find(encoder, blocks, asked) == [expected.get(number, NOWHERE) for number in asked]
    suspects = BloomFilter(SEED, blocks=encoder.filter).test(b"".join(map(id_of, expected)))
    assert suspects == b"\1" * len(expected)
    assert entries_of(blocks, 0) == entries


@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=400), min_size=1, max_size=6), st.integers(0, 800))
def test_merging_keeps_the_last_position_and_drops_what_is_below_the_horizon(runs, horizon):
    expected, inputs, first = {}, [], 0
    for numbers in runs:
        expected |= {number: first + i for i, number in enumerate(numbers)}
        inputs.append(encoded(sorted_entries(numbers, first))[1])
        first += len(numbers)
    merger = RunMerger(SEED, len(inputs), horizon)
    offsets = [0] * len(inputs)

    def feed(number):
        merger.feed(number, inputs[number][offsets[number] : offsets[number] + BLOCK_SIZE_BYTES])
        offsets[number] += BLOCK_SIZE_BYTES

    for number in range(len(inputs)):
        feed(number)
    merged, starving = b"", 0
    while starving >= 0:
        entries, starving = merger.merge()
        merged += entries
        if starving >= 0:
            feed(starving)
    assert as_dict(merged) == {number: position for number, position in expected.items() if position >= horizon}
    encoder, blocks = encoded(merged)
    assert find(encoder, blocks, list(as_dict(merged))) == list(as_dict(merged).values())


@given(st.integers(1, 400), st.data())
def test_one_flipped_bit_in_a_block_is_noticed(count, data):
    encoder, blocks = encoded(sorted_entries(list(range(count))))
    bit = data.draw(st.integers(0, len(blocks) * 8 - 1))
    damaged = bytearray(blocks)
    damaged[bit // 8] ^= 1 << bit % 8
    number = bit // 8 // BLOCK_SIZE_BYTES
    block = bytes(damaged[number * BLOCK_SIZE_BYTES : (number + 1) * BLOCK_SIZE_BYTES])
    positions = np.zeros(1, dtype=np.uint64)
    with pytest.raises(DamagedBlockError) as caught:
        RunIndex(SEED, encoder.first_ids).search(block, number, id_of(0), np.array([0]), positions)
    assert caught.value.number == number
    with pytest.raises(DamagedBlockError):
        entries_of(bytes(damaged), 0)
    with pytest.raises(DamagedBlockError):
        RunMerger(SEED, 1).feed(0, bytes(damaged))


def test_a_block_in_a_wrong_place_and_zeros_are_damaged():
    encoder, blocks = encoded(sorted_entries(list(range(400))))
    index = RunIndex(SEED, encoder.first_ids)
    positions = np.zeros(1, dtype=np.uint64)
    for block in (blocks[BLOCK_SIZE_BYTES : 2 * BLOCK_SIZE_BYTES], bytes(BLOCK_SIZE_BYTES), b"short"):
        with pytest.raises(DamagedBlockError):
            index.search(block, 0, id_of(0), np.array([0]), positions)


def test_an_empty_run_holds_nothing():
    encoder, blocks = encoded(b"")
    assert blocks == b""
    assert find(encoder, blocks, [1, 2]) == [NOWHERE, NOWHERE]


def test_the_block_is_a_persisted_format():
    _, blocks = encoded(struct.pack("<16sQ", id_of(1), 99))
    assert blocks[4:16] == struct.pack("<III", 0, 1, 0)
    assert blocks[16:40] == struct.pack("<16sQ", id_of(1), 99)
    assert not any(blocks[40:])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        RunEncoder(b"", 1)
    with pytest.raises(ValueError, match="nothing to merge"):
        RunMerger(SEED, 0)
    with pytest.raises(IndexError):
        RunMerger(SEED, 1).feed(1, b"")
