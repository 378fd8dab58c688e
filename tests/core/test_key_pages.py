"""Full keys by position against a list; their bytes against the model; blocks and what is done to them."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from arrays import KEY_FORMS, batches
from guarded import guarded
from hash_model import bytes_of, number_of, packed
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._core.crc32c import crc32c
from engine._core.hash import key_ids
from engine._core.key_pages import TABLE_ENTRY_BYTES, DamagedKeysError, KeyPages

SEED = bytes(range(16))
KEYS = st.lists(st.sampled_from(sorted(KEY_FORMS)), min_size=1, max_size=3)
texts = st.lists(st.binary(max_size=40) | st.binary(min_size=100, max_size=400), max_size=60)


def component(raw):
    if isinstance(raw, bytes) or hasattr(raw, "size_bytes"):
        return bytes_of(raw)
    return struct.pack("<Q", number_of(raw))


def key_bytes(row):
    """The canonical bytes of a key: alone as they are, else each behind its size."""
    parts = [component(raw) for raw in row]
    return parts[0] if len(parts) == 1 else b"".join(struct.pack("<I", len(part)) + part for part in parts)


def column(keys):
    return pa.record_batch({"key": pa.array(keys, pa.binary())})


def pages_of(keys, start=0, page_bytes=100):
    pages = KeyPages(start, page_bytes)
    pages.append(column(keys), [0])
    return pages


def all_keys(pages):
    return [pages.key(position) for position in range(pages.first, pages.tail)]


def pairs(sightings):
    return np.array(sightings, np.uint64).reshape(-1)


@settings(max_examples=200)
@given(batches(KEYS), st.data())
def test_key_bytes_agree_with_the_model_in_every_form(drawn, data):
    rows = list(zip(*drawn.columns, strict=True))
    columns = list(range(len(drawn.forms)))
    identities = key_ids(drawn.batch, columns, SEED)
    selection = bytes(data.draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows))))
    pages = KeyPages(7, 64)
    pages.append(drawn.batch, columns, keyed=identities.keyed, selection=selection)
    wanted = [row for row, chosen in zip(rows, selection, strict=True) if chosen and None not in row]
    assert all_keys(pages) == [key_bytes(row) for row in wanted]


@given(batches(KEYS))
def test_ids_are_whole_by_type_only_where_each_is_its_key(drawn):
    columns = list(range(len(drawn.forms)))
    identities = key_ids(drawn.batch, columns, SEED)
    if identities.whole:
        ids = bytes(identities.ids)
        rows = zip(*drawn.columns, strict=True)
        expected = [bytes(16) if None in row else packed(row) or bytes_of(row[0]) for row in rows]
        assert [ids[at : at + 16] for at in range(0, len(ids), 16)] == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 36, 127, 128, 129, 200])
def test_nothing_is_read_behind_a_foreign_buffer(kind, size):
    keys = ["x" * size, "y" * size, "z" * size]
    array = guarded(pa.array(keys).cast(kind))
    for columns in ([array], [array, array]):
        pages = KeyPages()
        pages.append(pa.RecordBatch.from_arrays(columns, [str(at) for at in range(len(columns))]), range(len(columns)))
        assert pages.key(2) == key_bytes([b"z" * size] * len(columns))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["append", "append", "truncate", "release"]), texts, st.integers(0, 10**6))),
    st.integers(1, 300),
    st.sampled_from([0, 5, 2**32 - 20]),
)
def test_pages_are_a_list_with_a_beginning_and_an_end(steps, page_bytes, start):
    pages = KeyPages(start, page_bytes)
    first, kept = start, []
    for step, keys, at in steps:
        place = at % (len(kept) + 1)
        if step == "append":
            pages.append(column(keys), [0])
            kept += keys
        elif step == "truncate":
            pages.truncate(first + place)
            del kept[place:]
        else:
            pages.release_below(first + place)
            first += place
            del kept[:place]
        assert (pages.first, pages.tail) == (first, first + len(kept))
    assert all_keys(pages) == kept
    middle = first + len(kept) // 2
    assert pages.bytes_between(first, middle) == sum(map(len, kept[: len(kept) // 2]))
    assert pages.bytes_between(middle, pages.tail) == sum(map(len, kept[len(kept) // 2 :]))
    limit = max(pages.size_bytes // 2, page_bytes + 16)  # a page is kept for the next keys
    pages.release_below(pages.first_within(limit))
    assert pages.size_bytes <= limit
    pages.truncate(start)
    assert pages.size_bytes <= page_bytes + 16


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([b"", b"a", b"b", b"b" * 70]), min_size=1, max_size=100),
    st.data(),
    st.integers(1, 100),
)
def test_keys_are_compared_wherever_they_are(keys, data, page_bytes):
    pages = pages_of(keys, page_bytes=page_bytes)
    places = st.integers(0, len(keys) - 1)
    sightings = data.draw(st.lists(st.tuples(places, places), max_size=80))
    gone = data.draw(places)
    expected = min((at for at, previous in sightings if keys[at] != keys[previous]), default=None)
    assert pages.compare(pairs(sightings)) == (expected, b"")
    blocks = pages.encode(0, gone, 10**9)
    pages.release_below(gone)
    sightings = [(at, previous) for at, previous in sightings if at >= gone]
    here, numbers = pages.compare(pairs(sightings))
    elsewhere = [sightings[number] for number in np.frombuffer(numbers, np.uint32)]
    assert elsewhere == [(at, previous) for at, previous in sightings if previous < gone]
    counts = np.frombuffer(blocks[1], np.uint32)[::3].astype(np.uint64)
    firsts = counts.cumsum(dtype=np.uint64) - counts
    block_of = (np.searchsorted(firsts, pairs(elsewhere)[1::2], side="right") - 1).astype(np.uint32)
    there = pages.compare_in_blocks(pairs(elsewhere), block_of, firsts, blocks[1], blocks[2])
    expected = min((at for at, previous in sightings if keys[at] != keys[previous]), default=None)
    assert min((found for found in (here, there) if found is not None), default=None) == expected


@given(texts, st.integers(1, 30_000))
def test_blocks_give_back_what_they_took(keys, limit):
    keys = keys * 20
    pages, again = pages_of(keys, 3), KeyPages(3)
    start = 3
    while start < pages.tail:
        behind, table, blocks = pages.encode(start, pages.tail, limit)
        assert behind > start
        assert len(blocks) < limit + 4096 + 500
        again.load(table, blocks)
        start = behind
    assert all_keys(again) == keys


def test_the_block_format_stays():
    _, table, blocks = pages_of([b"gone", b"ab", b"", b"cde"]).encode(1, 4, 100)
    assert blocks == struct.pack("<III", 2, 2, 5) + b"abcde"
    assert table == struct.pack("<III", 3, 17, crc32c(blocks))
    assert TABLE_ENTRY_BYTES == 12


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=20), st.data())
def test_a_damaged_block_gives_no_answer(keys, data):
    pages = pages_of(keys)
    _, table, blocks = pages.encode(0, len(keys), 10**6)
    damaged = bytearray(table + blocks)
    bit = data.draw(st.integers(0, len(damaged) * 8 - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises((DamagedKeysError, ValueError)):
        KeyPages().load(damaged[: len(table)], damaged[len(table) :])
    with pytest.raises(ValueError, match=r"damaged|tells of"):
        pages.compare_in_blocks(pairs([(0, 0)]), np.zeros(1, np.uint32), pairs([0]), damaged[:12], damaged[12:])


def test_what_makes_no_sense_is_refused():
    pages = pages_of([b"a", b"b"], 10)
    for wrong in ([(10, 12)], [(9, 10)], [(12, 10)]):
        with pytest.raises(IndexError):
            pages.compare(pairs(wrong))
    for position in (9, 12):
        with pytest.raises(IndexError):
            pages.key(position)
    with pytest.raises(IndexError):
        pages.encode(9, 12, 100)
    with pytest.raises(ValueError, match="page_bytes"):
        KeyPages(0, 0)
    with pytest.raises(ValueError, match="selection: 2 bytes"):
        pages.append(column([b"a", b"b"]), [0], selection=b"\1")
    with pytest.raises(ValueError, match="nested"):
        pages.append(pa.record_batch({"key": pa.array([[1]])}), [0])
    _, table, blocks = pages.encode(10, 12, 100)
    with pytest.raises(IndexError, match="not in block"):
        pages.compare_in_blocks(pairs([(11, 12)]), np.zeros(1, np.uint32), pairs([10]), table, blocks)
    with pytest.raises(IndexError, match="pair 0"):
        pages.compare_in_blocks(pairs([(11, 10)]), np.ones(1, np.uint32), pairs([10]), table, blocks)
    with pytest.raises(ValueError, match="needs a block"):
        pages.compare_in_blocks(pairs([(11, 10)]), np.ones(2, np.uint32), pairs([10]), table, blocks)
    assert all_keys(pages) == [b"a", b"b"]
