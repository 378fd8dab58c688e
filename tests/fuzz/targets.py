"""One target a kernel: what a fuzzer's choices make of it, compared with a model where there is one.

Whatever comes in, a kernel answers rightly or raises one of `REFUSALS`; a broken structure it must refuse. An assertion
or any other exception is a finding, and so is what a sanitizer reports.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from choices import Choices
from foreign import Foreign, Node, batch, column, spoil

from engine._core import arrow_c, crc32c, hash, partition, pool
from engine._core.bloom import BloomFilter
from engine._core.dedup import DedupWindow
from engine._core.id_run import BLOCK_SIZE_BYTES, ENTRY_BYTES, RunEncoder, RunMerger
from engine._core.key_pages import KeyPages
from engine._core.lru import RecentKeys

REFUSALS = (ValueError, IndexError, TypeError, pa.ArrowException)
SEED = bytes(range(16))
NOWHERE = 2**64 - 1


def must_refuse(choices: Choices, source: Foreign, call: Callable[[], object]) -> bool:
    """Now and then breaks the batch and expects `call` to refuse it; whether it did so."""
    if choices.often():
        return False
    how = spoil(choices, source)
    try:
        call()
    except REFUSALS:
        return True
    raise AssertionError(f"accepted: {how}")


def every_column(node: Node) -> list[int]:
    return list(range(len(node.children)))


def row_keys(node: Node, columns: list[int]) -> list[str]:
    """What equal keys have in common: floats have one zero and one NaN, and bytes no format."""
    raw = [node.children[at].raw for at in columns]
    return [
        repr([0.0 if value == 0 and isinstance(value, float) else value for value in row])
        for row in zip(*raw, strict=True)
    ]


def describe(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    if must_refuse(choices, source, lambda: arrow_c.describe(source)):
        return
    described = arrow_c.describe(source)
    for found, given in zip(described, node.children, strict=True):
        assert (found["length"], found["offset"]) == (node.length, given.offset)
        if given.dictionary is None:
            assert found["nulls"] == given.raw.count(None)


def hash_rows(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    columns = every_column(node)
    if must_refuse(choices, source, lambda: hash.hash_rows(source, columns)):
        return
    hashes = np.frombuffer(hash.hash_rows(source, columns), np.uint64)
    assert len(hashes) == node.length
    # Equal keys hash equally; different ones differ, as far as 40 rows in 2**64 values can tell.
    keys = row_keys(node, columns)
    assert len(set(zip(keys, hashes.tolist(), strict=True))) == len(set(keys)) == len(set(hashes.tolist()))
    groups = np.frombuffer(partition.key_groups(source, columns), np.uint16)
    assert (groups == hashes >> np.uint64(49)).all()


def key_ids(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    columns = every_column(node)
    if must_refuse(choices, source, lambda: hash.key_ids(source, columns, SEED)):
        return
    found = hash.key_ids(source, columns, SEED)
    ids = [bytes(found.ids)[at * 16 : at * 16 + 16] for at in range(node.length)]
    keyed = [
        all(value is not None for value in row) for row in zip(*(child.raw for child in node.children), strict=True)
    ]
    assert found.null_count == keyed.count(False)
    assert list(bytes(found.keyed or b"\1" * node.length)) == [int(each) for each in keyed]
    pairs = {(key, identity) for key, identity, has in zip(row_keys(node, columns), ids, keyed, strict=True) if has}
    assert len(pairs) == len({key for key, _ in pairs})
    assert all(identity == bytes(16) for identity, has in zip(ids, keyed, strict=True) if not has)


def full_keys(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    columns = every_column(node)
    pages = KeyPages(0, 64)
    if must_refuse(choices, source, lambda: pages.append(source, columns)):
        return
    pages.append(source, columns, keyed=hash.key_ids(source, columns, SEED).keyed)
    keys = [
        key
        for key, row in zip(
            row_keys(node, columns), zip(*(child.raw for child in node.children), strict=True), strict=True
        )
        if all(value is not None for value in row)
    ]
    found = [pages.key(position) for position in range(pages.tail)]
    assert len(found) == len(keys)
    assert len(set(zip(keys, found, strict=True))) == len(set(keys)) == len(set(found))
    _, table, blocks = pages.encode(0, pages.tail, 2**20)
    again = KeyPages()
    again.load(table, blocks)
    assert [again.key(position) for position in range(again.tail)] == found
    junk = choices.raw(len(table) + len(blocks))
    if junk != table + blocks and table:
        try:
            KeyPages().load(junk[: len(table)], junk[len(table) :])
        except REFUSALS:
            return
        raise AssertionError("accepted: blocks of chance")


def _selection(choices: Choices, rows: int) -> bytes | None:
    if choices.often():
        return None
    return bytes(byte % 3 for byte in choices.raw(choices.one_of((rows, rows, rows, rows + 1))))


def _as_pyarrow(source: Foreign) -> Any:
    return pa.RecordBatch._import_from_c_capsule(*source.__arrow_c_array__())


def _values(given: Any) -> list[str]:
    return [repr(row) for row in zip(*(_column_values(each) for each in given.columns), strict=True)]


def _column_values(given: Any) -> list[object]:
    """As Python has them; numbers that are no date stay numbers, and codes of views are resolved here."""
    if pa.types.is_dictionary(given.type):
        values = _column_values(given.dictionary)
        return [None if code is None else values[code] for code in given.indices.to_pylist()]
    if pa.types.is_temporal(given.type):
        given = given.view(pa.int32() if given.type.bit_width == 32 else pa.int64())
    return list(given.to_pylist())


def partitioned(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    parts = 1 + choices.one_of((0, 1, 7, 63, 1023))
    key = [choices.below(len(node.children))]
    splitter = partition.Partitioner(key, parts)
    if must_refuse(choices, source, lambda: splitter.partition(source)):
        return
    selection = _selection(choices, node.length)
    given = _as_pyarrow(source)
    if selection is not None and len(selection) != node.length:
        try:
            splitter.partition(given, selection)
        except ValueError:
            return
        raise AssertionError("accepted: a selection of another length")
    groups = np.frombuffer(partition.key_groups(given, key), np.uint16).astype(np.uint32)
    wanted = [row for row in range(node.length) if selection is None or selection[row]]
    rows = _values(given)
    expected: list[list[str]] = [[] for _ in range(parts)]
    for row in wanted:
        expected[int(groups[row]) * parts >> 15].append(rows[row])
    assert [_values(each) for each in splitter.partition(given, selection)] == expected


def gathered(choices: Choices) -> None:
    node = batch(choices)
    source = Foreign(node)
    if must_refuse(choices, source, lambda: partition.gather(source, None)):
        return
    selection = _selection(choices, node.length)
    given = _as_pyarrow(source)
    if selection is not None and len(selection) != node.length:
        try:
            partition.gather(given, selection)
        except ValueError:
            return
        raise AssertionError("accepted: a selection of another length")
    rows = _values(given)
    expected = [rows[row] for row in range(node.length) if selection is None or selection[row]]
    assert _values(partition.gather(given, selection)) == expected


def combined(choices: Choices) -> None:
    mask = column(choices, choices.below(70), ("bits", "bits", "bits", "fixed"))
    selection = _selection(choices, mask.length)
    source = Foreign(mask)
    sound = mask.format == b"b" and (selection is None or len(selection) == mask.length)
    try:
        wanted, count = partition.combine_selection(selection, source, mask.length)
    except ValueError:
        assert not sound
        return
    assert sound
    expected = [int(bool(value) and (selection is None or selection[row] != 0)) for row, value in enumerate(mask.raw)]
    assert list(bytes(wanted)) == expected
    assert count == sum(expected)


def _ids(choices: Choices, most: int = 40) -> bytes:
    """Ids of few different keys, now and then cut off in the middle of one."""
    ids = b"".join(bytes([byte % 23]) * 16 for byte in choices.raw(choices.below(most)))
    return ids if choices.often() else ids + choices.raw(choices.below(16))


def deduplicated(choices: Choices) -> None:
    """A dictionary of the key's last position, over probes that are committed or taken back."""
    within = choices.one_of((None, 1, 5, 60, 0))
    window = DedupWindow(seed=SEED, within=within, chunk_ids=4, hint_bits=choices.one_of((32, 4, 1)))
    seen: dict[bytes, int] = {}
    at = 0
    for _ in range(choices.below(8)):
        ids = _ids(choices)
        rows = choices.one_of((len(ids) // 16, len(ids) // 16, len(ids) // 16 + 1))
        keyed = None if choices.often() else choices.raw(rows)
        if len(ids) < rows * 16:
            try:
                window.probe(ids, rows, keyed=keyed)
            except ValueError:
                assert window.tail == at
                continue
            raise AssertionError(f"accepted: {len(ids)} bytes for {rows} rows")
        before, start = dict(seen), at
        token, mask = window.probe(ids, rows, keyed=keyed)
        for row in range(rows):
            key = ids[row * 16 : row * 16 + 16]
            if keyed is not None and not keyed[row]:
                assert mask[row] == 1
                continue
            duplicate = key in seen and (within is None or at - seen[key] <= within)
            assert mask[row] == (not duplicate), (row, within)
            seen[key] = at
            at += 1
        if choices.often():
            window.commit(token)
        else:
            window.abort(token)
            seen, at = before, start
        assert window.tail == at


def filtered(choices: Choices) -> None:
    """What was added tests true; vector and scalar code agree, whatever the bits are."""
    blocks = None if choices.often() else choices.raw(choices.below(130))
    try:
        bloom = BloomFilter(SEED, choices.below(300), 1 + choices.below(32), blocks=blocks)
    except ValueError:
        assert blocks is not None
        assert len(blocks) % 32 or not blocks
        return
    added, asked = _ids(choices), _ids(choices)
    bloom.add(added)
    whole = added[: len(added) // 16 * 16]
    assert bloom.test(whole) == b"\1" * (len(whole) // 16)
    assert bloom.test(asked) == bloom.test(asked, scalar=True)


def sealed(choices: Choices) -> None:
    """Blocks hold what went into them; a changed bit or a block cut off is noticed."""
    count = 1 + choices.below(400)
    entries = b"".join(struct.pack("<IxxxxQQ", number, choices.below(256), number) for number in range(count))
    encoder = RunEncoder(SEED, count)
    cut = choices.below(count + 1) * ENTRY_BYTES
    blocks = bytearray(encoder.encode(entries[:cut]) + encoder.encode(entries[cut:]) + encoder.finish())
    assert encoder.count == count
    read = b""
    for at in range(0, len(blocks), BLOCK_SIZE_BYTES):
        (inside,) = struct.unpack_from("<I", blocks, at + 8)
        read += blocks[at + 16 : at + 16 + inside * ENTRY_BYTES]
    assert read == entries
    RunMerger(SEED, 1).feed(0, bytes(blocks))
    if choices.often():
        where = choices.below(len(blocks) // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES + choices.below(BLOCK_SIZE_BYTES)
        blocks[where] ^= 1 << choices.below(8)
    else:
        del blocks[len(blocks) - 1 - choices.below(BLOCK_SIZE_BYTES - 1) :]
    try:
        RunMerger(SEED, 1).feed(0, bytes(blocks))
    except ValueError:
        return
    raise AssertionError("damaged blocks were taken for sound ones")


def recent(choices: Choices) -> None:
    """The last position of every key, in a dictionary."""
    table = RecentKeys(SEED, start=choices.one_of((0, 2**32 - 9)), chunk_bits=2, hint_bits=choices.one_of((32, 3, 1)))
    positions: dict[bytes, int] = {}
    for _ in range(choices.below(8)):
        ids = _ids(choices)
        try:
            before = np.frombuffer(table.sight(ids), np.uint64).tolist()
        except ValueError:
            assert len(ids) % 16
            continue
        tail = table.tail - len(before)
        for row, found in enumerate(before):
            key = ids[row * 16 : row * 16 + 16]
            position = positions.get(key, NOWHERE)
            assert found == (position if position >= table.oldest else NOWHERE)
            positions[key] = tail + row
        if not choices.often():
            floor = table.oldest + choices.below(30)
            try:
                table.forget_below(floor, shrink=choices.often())
            except ValueError:
                assert floor > table.tail
                continue
            positions = {key: position for key, position in positions.items() if position >= floor}


def checksummed(choices: Choices) -> None:
    data = choices.raw(choices.below(2000))
    at, start = choices.below(len(data) + 1), int.from_bytes(choices.raw(4), "little")
    whole = crc32c.crc32c(data, start)
    assert whole == crc32c.crc32c_portable(data, start)
    assert whole == crc32c.crc32c(memoryview(data)[at:], crc32c.crc32c(data[:at], start))


def pooled(choices: Choices) -> None:
    """Buffers that are alive together do not overlap, and keep what was written."""
    held: list[tuple[pool.Buffer, int]] = []
    for number in range(choices.below(40)):
        if held and not choices.often():
            buffer, filling = held.pop(choices.below(len(held)))
            assert bytes(buffer) == bytes([filling]) * len(buffer)
        else:
            buffer = pool.Buffer(choices.one_of((0, 1, 63, 64, 4096, 16384, 70000)))
            ctypes.memset((ctypes.c_char * len(buffer)).from_buffer(buffer), number, len(buffer))
            held.append((buffer, number))
    if not choices.often():
        pool.trim()
    assert all(bytes(buffer) == bytes([filling]) * len(buffer) for buffer, filling in held)


TARGETS: dict[str, Callable[[Choices], None]] = {
    "arrow_c": describe,
    "hash": hash_rows,
    "key_ids": key_ids,
    "key_pages": full_keys,
    "partition": partitioned,
    "gather": gathered,
    "combine_selection": combined,
    "dedup": deduplicated,
    "bloom": filtered,
    "id_run": sealed,
    "lru": recent,
    "crc32c": checksummed,
    "pool": pooled,
}
