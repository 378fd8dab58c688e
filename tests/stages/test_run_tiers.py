"""Which runs are merged: few runs, few rewrites, bounded doubles, whatever the widths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stages.run_tiers import MANY, next_merge

WIDTHS = st.lists(st.integers(1, 10**9), max_size=80)


@given(WIDTHS, st.data())
def test_a_group_is_of_idle_neighbours_within_the_bounds(widths, data):
    busy = data.draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)))
    group = next_merge(widths, busy)
    if group is None:
        return
    assert not any(busy[group])
    assert group.stop - group.start in (2, 4)
    assert 0 <= group.start < group.stop <= len(widths)
    if len(widths) <= MANY:
        under_way = sum(width for width, is_busy in zip(widths, busy, strict=True) if is_busy)
        assert 4 * sum(widths[group]) <= sum(widths)
        assert 3 * (under_way + sum(widths[group])) <= sum(widths) + 2
        assert max(widths[group]) < 2 * min(widths[group])


@pytest.mark.parametrize(("seals", "window"), [(30, None), (700, None), (3_000, None), (3_000, 400)])
def test_runs_stay_few_and_keys_are_rewritten_a_bounded_number_of_times(seals, window):
    runs = []  # (width, most often that a key of it was written)
    for _ in range(seals):
        runs.append((1, 1))
        while window and sum(width for width, _ in runs) - runs[0][0] > window:
            runs.pop(0)
        while group := next_merge([width for width, _ in runs], [False] * len(runs)):
            merged = runs[group]
            runs[group] = [(sum(width for width, _ in merged), 1 + max(written for _, written in merged))]
        assert len(runs) <= 8 + 4 * math.log(len(runs) + seals, 4)
    assert max(written for _, written in runs) <= 1 + math.log2(seals)
    if window:
        assert sum(width for width, _ in runs) <= window * 4 / 3 + 1


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=300))
def test_odd_widths_do_not_let_runs_become_many(seals):
    widths = []
    for width in seals:
        widths.append(width)
        while group := next_merge(widths, [False] * len(widths)):
            widths[group] = [sum(widths[group])]
        assert len(widths) <= MANY
    assert sum(widths) == sum(seals)
