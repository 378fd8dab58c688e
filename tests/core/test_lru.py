"""The table of recent keys against a plain dict, with collisions, undo, eviction and positions that wrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine._core.lru import RecentKeys

SEED = bytes(range(16))
NOWHERE = 2**64 - 1


def ids_of(numbers):
    return b"".join(number.to_bytes(16, "big") for number in numbers)


class Model(RuleBasedStateMachine):
    """The history as a list; the table must know the last position of each key that is not forgotten."""

    @initialize(
        start=st.sampled_from([0, 5, 2**32 - 40, 2**33 - 7]),
        hint_bits=st.sampled_from([1, 3, 32]),
        chunk_bits=st.sampled_from([0, 2, 5]),
    )
    def begin(self, start, hint_bits, chunk_bits):
        self.keys = RecentKeys(SEED, start=start, hint_bits=hint_bits, chunk_bits=chunk_bits)
        self.start = start
        self.oldest = start
        self.history = []
        self.answers = []

    def last(self, number):
        for position in range(self.start + len(self.history) - 1, self.oldest - 1, -1):
            if self.history[position - self.start] == number:
                return position
        return NOWHERE

    @rule(numbers=st.lists(st.integers(0, 30), max_size=40))
    def sight(self, numbers):
        expected = []
        for number in numbers:
            expected.append(self.last(number))
            self.history.append(number)
        self.answers += expected
        assert np.frombuffer(self.keys.sight(ids_of(numbers)), np.uint64).tolist() == expected

    @precondition(lambda self: self.start + len(self.history) > self.oldest)
    @rule(count=st.integers(1, 20))
    def unsight(self, count):
        for _ in range(min(count, self.start + len(self.history) - self.oldest)):
            self.history.pop()
            self.keys.unsight(self.answers.pop())

    @rule(count=st.integers(0, 30), shrink=st.booleans())
    def forget(self, count, shrink):
        self.oldest = min(self.oldest + count, self.start + len(self.history))
        self.keys.forget_below(self.oldest, shrink=shrink)

    @invariant()
    def positions_agree(self):
        assert self.keys.tail == self.start + len(self.history)
        assert self.keys.oldest == self.oldest


TestModel = Model.TestCase


@given(st.integers(1, 4))
def test_a_long_history_in_few_buckets(hint_bits):
    keys = RecentKeys(SEED, hint_bits=hint_bits, chunk_bits=4)
    numbers = list(range(300))
    assert set(np.frombuffer(keys.sight(ids_of(numbers)), np.uint64)) == {NOWHERE}
    assert np.frombuffer(keys.sight(ids_of(numbers)), np.uint64).tolist() == numbers


def test_the_table_grows_one_bucket_at_a_time():
    keys = RecentKeys(SEED)
    before = keys.buckets
    for number in range(5_000):
        keys.sight(ids_of([number]))
        after = keys.buckets
        assert after[2] - before[2] in (0, 1)
        assert after[0] == before[0] + after[2] - before[2]
        before = after
    assert before[0] * 4.5 >= 4_900
    assert before[1] < before[0] * 0.1


def test_every_key_survives_growing_and_shrinking():
    """Through sizes at which hints take other bits of the hash: 2**8 and 2**16 buckets."""
    seed = np.random.default_rng(5).integers(0, 2**64, (400_000, 2), dtype=np.uint64)
    ids = seed.tobytes()
    keys = RecentKeys(SEED)
    assert set(np.frombuffer(keys.sight(ids), np.uint64)) == {NOWHERE}
    assert keys.buckets[0] > 2**16
    again = np.frombuffer(keys.sight(ids), np.uint64)
    assert (again == np.arange(400_000)).all()
    for kept in (250_000, 1_500, 300):
        keys.forget_below(keys.tail - kept, shrink=True)
        known = np.frombuffer(keys.sight(ids[-16 * kept :]), np.uint64)
        assert (known == np.arange(keys.tail - 2 * kept, keys.tail - kept)).all()
    assert keys.buckets[0] < 2**8
    for previous in reversed(known.tolist()):
        keys.unsight(previous)
    assert (np.frombuffer(keys.sight(ids[-16 * 300 :]), np.uint64) == known).all()


def test_a_sliding_window_keeps_its_size():
    keys = RecentKeys(SEED, chunk_bits=8)
    sizes = []
    for step in range(60):
        keys.sight(ids_of(range(step * 1_000, step * 1_000 + 1_000)))
        keys.forget_below(max(0, keys.tail - 4_000))
        sizes.append(keys.size_bytes)
    assert max(sizes[10:]) <= sizes[10] * 1.1
    assert sizes[-1] / 4_000 < 45


def test_memory_comes_back_when_the_table_may_shrink():
    keys = RecentKeys(SEED, chunk_bits=8)
    keys.sight(ids_of(range(50_000)))
    full = keys.size_bytes
    keys.forget_below(49_000, shrink=True)
    assert keys.size_bytes < full / 10
    remembered = np.frombuffer(keys.sight(ids_of([49_500, 10])), np.uint64).tolist()
    assert remembered == [49_500, NOWHERE]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        RecentKeys(b"")
    with pytest.raises(ValueError, match="hint_bits"):
        RecentKeys(SEED, hint_bits=0)
    keys = RecentKeys(SEED)
    with pytest.raises(ValueError, match="no sighting"):
        keys.unsight(NOWHERE)
    with pytest.raises(ValueError, match="not between"):
        keys.forget_below(1)
