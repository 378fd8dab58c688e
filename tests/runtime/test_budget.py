"""The shares of a run's memory: together never more than all of it."""

from hypothesis import given
from hypothesis import strategies as st

from engine._runtime.budget import MINIMUM_BYTES, Budget


@given(st.integers(MINIMUM_BYTES, 2**50), st.integers(0, 40), st.integers(0, 40))
def test_the_shares_of_all_who_take_part_fit(total_bytes: int, dedups: int, channels: int) -> None:
    budget = Budget(total_bytes, dedups=dedups, channels=channels)
    waiting = budget.channel_bytes * channels + 2 * budget.exchange_bytes + budget.idle_bytes
    assert budget.dedup_bytes * dedups + budget.sink_bytes + waiting <= total_bytes


def test_what_an_exchange_frees_at_once_is_kept_for_the_next() -> None:
    budget = Budget(512 << 20, dedups=1, channels=2)
    assert 2 * budget.exchange_bytes <= budget.idle_bytes
