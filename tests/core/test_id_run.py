"""Blocks of sealed runs: sorted, searched and merged as plain dictionaries say; damage never goes unnoticed."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.bloom import BloomFilter
from engine._core.crc32c import crc32c
from engine._core.id_run import (
    BLOCK_SIZE_BYTES,
    ENTRIES_PER_BLOCK,
    DamagedBlockError,
    FilterMemory,
    RunEncoder,
    RunIndex,
    RunMerger,
    RunSorter,
    add_to_filter,
    filter_block_count,
    first_ids_of,
    page_checksums,
)

SEED = bytes(range(16))
NOWHERE = 2**64 - 1


def id_of(number):
    return number.to_bytes(16, "big")


def entries_of(numbers, first=0, parts=3):
    """The entries of a run, with the first number at position ``first``."""
    ids = b"".join(map(id_of, numbers))
    sorter = RunSorter(SEED, ids, first, parts)
    return b"".join([sorter.entries(part) for part in range(parts)])


def encoded(entries, filter_keys=1000):
    encoder = RunEncoder(SEED, filter_keys)
    half = len(entries) // 48 * 24
    blocks = encoder.encode(entries[:half]) + encoder.encode(entries[half:]) + encoder.finish()
    return encoder, blocks


def as_dict(entries):
    pairs = struct.iter_unpack("<16sQ", entries)
    return {int.from_bytes(key, "big"): position for key, position in pairs}


def decoded(blocks):
    """The entries in blocks, read as the format says."""
    entries = b""
    for at in range(0, len(blocks), BLOCK_SIZE_BYTES):
        (count,) = struct.unpack_from("<I", blocks, at + 8)
        entries += blocks[at + 16 : at + 16 + count * 24]
    return entries


def find(encoder, blocks, numbers, **options):
    index = RunIndex(SEED, encoder.first_ids, **options)
    ids = b"".join(map(id_of, numbers))
    positions = np.full(len(numbers), NOWHERE, dtype=np.uint64)
    plan = np.frombuffer(index.plan(ids), np.uint32).reshape(-1, 2)
    assert plan.tolist() == sorted(plan.tolist())
    wanted = np.unique(plan[:, 0]).tolist()
    read = b"".join(blocks[block * BLOCK_SIZE_BYTES : (block + 1) * BLOCK_SIZE_BYTES] for block in wanted)
    index.search(read, plan, ids, positions)
    return positions.tolist()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=600), st.integers(1, 5), st.sampled_from([1, 2, 3, 32]))
def test_a_run_knows_the_last_position_of_every_key(numbers, parts, prefix_bits):
    expected = {number: 10 + i for i, number in enumerate(numbers)}
    entries = entries_of(numbers, 10, parts)
    assert as_dict(entries) == expected
    assert len(entries) == 24 * len(expected)
    encoder, blocks = encoded(entries)
    assert len(blocks) == -(-len(expected) // ENTRIES_PER_BLOCK) * BLOCK_SIZE_BYTES
    assert (encoder.count, encoder.last_position) == (len(expected), max(expected.values()))
    assert encoder.first_position == min(expected.values())
    asked = [*range(0, 520, 3), *numbers]
    found = find(encoder, blocks, asked, prefix_bits=prefix_bits)
    assert found == [expected.get(number, NOWHERE) for number in asked]
    suspects = BloomFilter(SEED, blocks=encoder.filter).test(b"".join(map(id_of, expected)))
    assert suspects == b"\1" * len(expected)
    assert decoded(blocks) == entries
    firsts = [entries[at * 24 : at * 24 + 16] for at in range(0, len(expected), ENTRIES_PER_BLOCK)]
    assert encoder.first_ids == b"".join(firsts)
    assert first_ids_of(blocks, 0) == (encoder.first_ids, len(expected))


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=900), st.lists(st.integers(0, 120), max_size=4))
def test_a_filter_can_be_built_again_part_by_part_from_the_blocks_behind_it(numbers, cuts):
    encoder, blocks = encoded(entries_of(list(numbers)), filter_keys=len(numbers))
    index = RunIndex(SEED, encoder.first_ids)
    filter_blocks = filter_block_count(len(numbers))
    assert len(encoder.filter) == filter_blocks * 32
    borders = sorted({0, filter_blocks, *(cut for cut in cuts if cut < filter_blocks)})
    built = b""
    for first, stop in pairwise(borders):
        part = bytearray((stop - first) * 32)
        low, high = index.blocks_behind(first, stop, filter_blocks)
        behind = blocks[low * BLOCK_SIZE_BYTES : high * BLOCK_SIZE_BYTES]
        add_to_filter(SEED, behind, low, filter_blocks, first, part)
        built += part
    assert built == bytes(encoder.filter)


def test_pages_have_their_checksums():
    data = bytes(range(256)) * 40
    assert struct.unpack("<3I", page_checksums(data)) == tuple(crc32c(data[at : at + 4096]) for at in (0, 4096, 8192))
    assert page_checksums(b"") == b""


@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=400), min_size=1, max_size=6), st.integers(0, 800))
def test_merging_keeps_the_last_position_and_drops_what_is_below_the_horizon(runs, horizon):
    expected, inputs, first = {}, [], 0
    for numbers in runs:
        expected |= {number: first + i for i, number in enumerate(numbers)}
        inputs.append(encoded(entries_of(numbers, first))[1])
        first += len(numbers)
    merger = RunMerger(SEED, len(inputs), horizon)
    encoder = RunEncoder(SEED, first)
    offsets = [0] * len(inputs)

    def feed(number):
        merger.feed(number, inputs[number][offsets[number] : offsets[number] + BLOCK_SIZE_BYTES])
        offsets[number] += BLOCK_SIZE_BYTES

    for number in range(len(inputs)):
        feed(number)
    merged, starving = b"", 0
    while starving >= 0:
        blocks, starving = merger.merge(encoder)
        merged += blocks
        if starving >= 0:
            feed(starving)
    merged += encoder.finish()
    kept = {number: position for number, position in expected.items() if position >= horizon}
    assert as_dict(decoded(merged)) == kept
    assert find(encoder, merged, list(kept)) == list(kept.values())
    whole, again = encoded(decoded(merged), filter_keys=first)
    assert again == merged
    assert bytes(whole.filter) == bytes(encoder.filter)


@given(st.integers(1, 400), st.data())
def test_one_flipped_bit_in_a_block_is_noticed(count, data):
    encoder, blocks = encoded(entries_of(list(range(count))))
    bit = data.draw(st.integers(0, len(blocks) * 8 - 1))
    damaged = bytearray(blocks)
    damaged[bit // 8] ^= 1 << bit % 8
    number = bit // 8 // BLOCK_SIZE_BYTES
    block = bytes(damaged[number * BLOCK_SIZE_BYTES : (number + 1) * BLOCK_SIZE_BYTES])
    positions = np.zeros(1, dtype=np.uint64)
    plan = np.array([[number, 0]], dtype=np.uint32)
    with pytest.raises(DamagedBlockError) as caught:
        RunIndex(SEED, encoder.first_ids).search(block, plan, id_of(0), positions)
    assert caught.value.number == number
    with pytest.raises(DamagedBlockError):
        first_ids_of(bytes(damaged), 0)
    with pytest.raises(DamagedBlockError):
        add_to_filter(SEED, bytes(damaged), 0, 100, 0, bytearray(3200))
    with pytest.raises(DamagedBlockError):
        RunMerger(SEED, 1).feed(0, bytes(damaged))


def test_a_block_in_a_wrong_place_and_zeros_are_damaged():
    encoder, blocks = encoded(entries_of(list(range(400))))
    index = RunIndex(SEED, encoder.first_ids)
    positions = np.zeros(1, dtype=np.uint64)
    for block in (blocks[BLOCK_SIZE_BYTES : 2 * BLOCK_SIZE_BYTES], bytes(BLOCK_SIZE_BYTES), b"short"):
        with pytest.raises(DamagedBlockError):
            index.search(block, np.array([[0, 0]], dtype=np.uint32), id_of(0), positions)


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
    assert RunEncoder(SEED).filter is None
    with pytest.raises(ValueError, match="0 bytes"):
        FilterMemory(0)
    with pytest.raises(ValueError, match="prefix_bits"):
        RunIndex(SEED, b"", prefix_bits=33)
    encoder, blocks = encoded(entries_of([1]))
    for plan in ([[0, 1]], [[0, 0], [0, 7]]):
        with pytest.raises(IndexError):
            RunIndex(SEED, encoder.first_ids).search(
                blocks, np.array(plan, dtype=np.uint32), id_of(1), np.zeros(1, dtype=np.uint64)
            )
    with pytest.raises(IndexError, match="no part 3 of 3"):
        RunSorter(SEED, id_of(1), 0, 3).entries(3)
    with pytest.raises(ValueError, match="at least one part"):
        RunSorter(SEED, id_of(1), 0, 0)
    with pytest.raises(ValueError, match="nothing to merge"):
        RunMerger(SEED, 0)
    with pytest.raises(IndexError):
        RunMerger(SEED, 1).feed(1, b"")


def test_a_part_of_a_block_is_not_taken_for_the_end():
    _, blocks = encoded(entries_of(range(10)))
    with pytest.raises(ValueError, match="blocks of 4096 bytes are needed, not 4000 bytes"):
        RunMerger(SEED, 1).feed(0, blocks[:4000])
