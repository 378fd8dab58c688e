"""The dedup window against a plain history: rows and time, undo, collisions, wrap, runs that answer late."""

import array
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._core.bloom import BloomFilter
from engine._core.dedup import DedupWindow
from engine._core.id_run import RunSorter

SEED = bytes(range(16))
NOWHERE = 2**64 - 1


def ids_of(numbers):
    return b"".join(number.to_bytes(16, "big") for number in numbers)


def sorted_ids(ids):
    return b"".join(sorted(ids[at : at + 16] for at in range(0, len(ids), 16)))


class History:
    """What dedup means, in a list of (key, clock) per keyed row."""

    def __init__(self, within, timed):
        self.within = within
        self.timed = timed
        self.rows = []

    def verdicts(self, key, clock):
        """The allowed answers for the next row (1 = wanted); then it is part of the history."""
        now = max([clock, *(past for _, past in self.rows[-1:])])
        allowed = {1}
        for age, (seen, then) in enumerate(reversed(self.rows), 1):
            if seen == key:
                allowed = self._judge(age, now - then)
                break
        self.rows.append((key, now))
        return allowed

    def _judge(self, age, elapsed):
        if self.within is None:
            return {0}
        if not self.timed:
            return {0} if age <= self.within else {1}
        if elapsed <= self.within:
            return {0}
        return {0, 1} if elapsed <= self.within + max(1, self.within // 64) and self.within >= 64 else {1}


batches = st.lists(
    st.lists(
        st.tuples(st.integers(0, 25), st.booleans(), st.booleans(), st.integers(0, 40), st.integers(0, 9)), max_size=40
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(
    batches,
    st.sampled_from([0, 1, 2, 7, 30, 100, 1000, None]),
    st.booleans(),
    st.sampled_from([0, 3, 2**32 - 30]),
    st.sampled_from([1, 4, 32]),
    st.lists(st.sampled_from(["commit", "commit", "wait", "abort"]), min_size=12, max_size=12),
)
def test_every_answer_is_that_of_the_history(batches, within, timed, start, hint_bits, endings):
    timed = timed and within is not None
    window = DedupWindow(seed=SEED, within=within, timed=timed, start=start, chunk_ids=4, hint_bits=hint_bits)
    history = History(within, timed)
    pending = []
    clock = 0
    for rows, ending in zip(batches, endings, strict=False):
        keyed, selected, clocks = [], [], []
        for _, has_key, wanted, step, late in rows:
            clock += step
            clocks.append(clock - late)
            keyed.append(has_key)
            selected.append(wanted)
        before = len(history.rows)
        token, mask = window.probe(
            ids_of([row[0] for row in rows]),
            len(rows),
            keyed=bytes(keyed),
            selection=bytes(selected),
            clock=array.array("q", clocks) if timed else None,
        )
        for i, row in enumerate(rows):
            allowed = {0} if not selected[i] else {1} if not keyed[i] else history.verdicts(row[0], clocks[i])
            assert mask[i] in allowed
        pending.append((token, before))
        if ending == "commit":
            window.commit(pending.pop(0)[0])
        elif ending == "abort":
            token, before = pending[len(pending) // 2]
            window.abort(token)
            del pending[len(pending) // 2 :]
            del history.rows[before:]
            clock = max([0, *(past for _, past in history.rows[-1:])])
        assert window.tail == start + len(history.rows)


@given(st.lists(st.integers(0, 40), max_size=150), st.lists(st.integers(1, 20), max_size=10), st.integers(1, 60))
def test_where_batches_begin_changes_nothing(keys, sizes, within):
    whole = DedupWindow(seed=SEED, within=within, timed=True)
    clocks = array.array("q", [i * 3 % 17 + i for i in range(len(keys))])
    _, expected = whole.probe(ids_of(keys), len(keys), clock=clocks)
    pieces = DedupWindow(seed=SEED, within=within, timed=True)
    got = bytearray()
    for size in [*sizes, len(keys)]:
        piece = keys[len(got) : len(got) + size]
        token, mask = pieces.probe(ids_of(piece), len(piece), clock=clocks[len(got) : len(got) + size])
        pieces.commit(token)
        got += mask
    assert got == expected


def test_ids_that_differ_in_the_last_byte_only_are_different():
    window = DedupWindow(seed=SEED, hint_bits=1)
    ids = b"".join(b"\xff" * 15 + bytes([last]) for last in range(256))
    assert sum(window.probe(ids, 256)[1]) == 256
    assert sum(window.probe(ids, 256)[1]) == 0


def test_a_full_filter_makes_suspects_and_no_duplicates():
    window = DedupWindow(seed=SEED, within=1000, start=100)
    window.set_runs([(0, 100, b"\xff" * 64)])
    _, mask = window.probe(ids_of([1, 2, 1]), 3)
    assert mask == b"\1\1\0"
    suspects = window.suspects(0)
    assert sorted_ids(suspects) == ids_of([1, 2])
    window.resolve(array.array("Q", [40 if suspects[i : i + 16] == ids_of([2]) else NOWHERE for i in (0, 16)]))
    assert mask == b"\1\0\0"
    assert window.last_counts() == (3, 2, 0, 1, 1, 2)


@given(
    st.lists(st.integers(0, 3_000), min_size=1, max_size=300, unique=True),
    st.lists(st.integers(0, 3_000), max_size=400),
    st.integers(1, 400),
    st.integers(1, 4),
)
def test_a_filter_clears_the_same_rows_page_by_page_as_whole(asked, added, filter_blocks, pages_at_once):
    filter_ = BloomFilter(SEED, blocks=bytes(filter_blocks * 32))
    filter_.add(ids_of(added))
    bits = filter_.blocks
    window = DedupWindow(seed=SEED, start=10_000)
    window.set_runs([(0, 10_000, bits)])
    window.probe(ids_of(asked), len(asked))
    expected = [number for number, bit in zip(asked, filter_.test(ids_of(asked)), strict=True) if bit]
    suspects = window.suspects(0)
    assert sorted_ids(suspects) == ids_of(sorted(expected))
    entries = RunSorter(SEED, suspects, 0, 1).entries(0)
    assert suspects == b"".join(key for key, _ in struct.iter_unpack("<16sQ", entries))
    wanted = np.frombuffer(window.wanted_pages(0, filter_blocks), np.uint32)
    assert wanted.tolist() == sorted(set(wanted.tolist()))
    for at in range(0, len(wanted), pages_at_once):
        numbers = wanted[at : at + pages_at_once]
        pages = b"".join(bits[page * 4096 : page * 4096 + 4096].ljust(4096, b"\0") for page in numbers.tolist())
        window.sift(0, filter_blocks, numbers, pages)
    assert window.sifted() == suspects
    window.resolve(array.array("Q", [1] * (len(suspects) // 16)))
    assert window.last_counts().duplicates == len(expected)
    assert window.suspects(0) == b""
    with pytest.raises(ValueError, match="wanted"):
        window.sift(0, filter_blocks, np.array([0], np.uint32), bytes(4096))
    window.wanted_pages(0, filter_blocks)
    with pytest.raises(ValueError, match="pages"):
        window.sift(0, filter_blocks, np.array([0], np.uint32), b"")


def test_a_run_answers_only_within_the_horizon_and_newer_runs_first():
    window = DedupWindow(seed=SEED, within=100, start=100)
    window.set_runs([(0, 50, None), (50, 100, None)])
    _, mask = window.probe(ids_of([1, 2, 3]), 3)
    suspects = window.suspects(1)
    window.resolve(array.array("Q", [60 if suspects[i : i + 16] == ids_of([1]) else NOWHERE for i in (0, 16, 32)]))
    assert sorted_ids(window.suspects(0)) == ids_of([2, 3])
    window.resolve(array.array("Q", [1, 1]))  # the horizons are 1 and 2
    assert mask == b"\0\0\1"


def test_marks_of_an_aborted_token_are_gone_from_runs_too():
    window = DedupWindow(seed=SEED)
    token, _ = window.probe(ids_of([1, 2]), 2)
    window.commit(token)
    first, _ = window.probe(ids_of([3]), 1)
    second, _ = window.probe(ids_of([3]), 1)
    window.abort(first)
    with pytest.raises(ValueError, match="not open"):
        window.abort(second)
    with pytest.raises(ValueError, match="committed"):
        window.seal_below(3)
    third, mask = window.probe(ids_of([3, 1]), 2)
    assert mask == b"\1\0"
    assert third > second


def test_an_abort_takes_the_clock_back():
    window = DedupWindow(seed=SEED, within=10, timed=True)
    window.commit(window.probe(ids_of([1]), 1, clock=array.array("q", [0]))[0])
    window.abort(window.probe(ids_of([2]), 1, clock=array.array("q", [1000]))[0])
    assert window.probe(ids_of([1, 2, 1]), 3, clock=array.array("q", [5, 5, 11]))[1] == b"\0\1\0"


def test_tokens_commit_in_the_order_of_their_probes():
    window = DedupWindow(seed=SEED)
    first, _ = window.probe(ids_of([1]), 1)
    second, _ = window.probe(ids_of([2]), 1)
    with pytest.raises(ValueError, match="order"):
        window.commit(second)
    window.commit(first)
    window.commit(second)
    with pytest.raises(ValueError, match="order"):
        window.commit(second)


def test_a_clock_value_that_says_nothing_does_not_move_the_clock():
    window = DedupWindow(seed=SEED, within=10, timed=True)
    silent = -(2**63)
    _, mask = window.probe(ids_of([1, 2, 1]), 3, clock=array.array("q", [silent, 5, silent]))
    assert mask == b"\1\1\0"


def test_a_clock_that_leaps_over_the_whole_range_forgets():
    window = DedupWindow(seed=SEED, within=10, timed=True)
    clock = array.array("q", [-(2**63) + 1, 2**63 - 1])
    assert window.probe(ids_of([1, 1]), 2, clock=clock)[1] == b"\1\1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": bytes(31), "rows": 2}, "ids"),
        ({"ids": bytes(32), "rows": 2, "keyed": b"1"}, "keyed"),
        ({"ids": bytes(32), "rows": 2, "selection": b"1"}, "selection"),
        ({"ids": bytes(32), "rows": 2, "clock": bytes(15)}, "clock"),
        ({"ids": bytes(32), "rows": 2}, "clock value"),
    ],
)
def test_short_buffers_are_refused_and_nothing_is_marked(arguments, message):
    window = DedupWindow(seed=SEED, within=5, timed="clock" in message)
    with pytest.raises(ValueError, match=message):
        window.probe(arguments.pop("ids"), arguments.pop("rows"), **arguments)
    assert window.tail == 0


def test_the_state_brings_a_window_of_time_back():
    window = DedupWindow(seed=SEED, within=10, timed=True)
    token, _ = window.probe(ids_of([1, 2, 3]), 3, clock=array.array("q", [0, 5, 30]))
    window.commit(token)
    copy = DedupWindow(seed=SEED, within=10, timed=True, start=window.oldest)
    copy.replay(window.ids(window.oldest, window.committed))
    copy.restore_horizon(window.horizon_state())
    assert copy.horizon_state() == window.horizon_state()
    for other in (window, copy):
        _, mask = other.probe(ids_of([2, 3]), 2, clock=array.array("q", [30, 38]))
        assert mask == b"\1\0"


@pytest.mark.parametrize("table_bytes", [0, 16 << 10, None])
def test_a_table_that_may_not_grow_answers_the_same(table_bytes):
    window, history, numbers = DedupWindow(seed=SEED, within=2_000, table_bytes=table_bytes), {}, random.Random(7)
    position = 0
    for _ in range(40):
        batch = [numbers.randrange(4_000) for _ in range(250)]
        token, mask = window.probe(ids_of(batch), len(batch))
        window.commit(token)
        for number, wanted in zip(batch, mask, strict=True):
            assert wanted == (position - history.get(number, -3_000) > 2_000)
            history[number] = position
            position += 1
    buckets, overflow, splits = window.buckets
    assert table_bytes is None or buckets * 64 <= max(table_bytes, 8 * 64)
    assert (overflow > 100, splits > 0) == ((True, False) if table_bytes == 0 else (False, True))
