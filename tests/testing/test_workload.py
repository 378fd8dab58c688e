"""The workload generator: its laws as properties, checked by naive counting."""

import collections
import itertools
import math
import tracemalloc
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.testing.workload import generate, redeliver

SHARES = st.one_of(st.just(0.0), st.floats(0.001, 0.5), st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.3, 0.5]))
DISTANCES = st.one_of(st.integers(2, 20), st.integers(2, 5_000))


def table_of(rows, **options):
    batches = list(generate(rows, **options))
    return pa.Table.from_batches(batches, batches[0].schema) if batches else None


def check_deliveries(ids, deliveries, max_distance):
    """Every row is the next delivery of its event, and comes at most ``max_distance`` rows after the first one."""
    first, count = {}, collections.Counter()
    for position, (event, delivery) in enumerate(zip(ids, deliveries, strict=True)):
        assert delivery == count[event]
        count[event] += 1
        assert position - first.setdefault(event, position) <= max_distance
    return count


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 3_000), seed=st.integers(0, 2**40), share=SHARES, distance=DISTANCES)
def test_share_distance_and_delivery_numbers(rows, seed, share, distance):
    table = table_of(rows, seed=seed, redeliveries=share, max_distance=distance, keys=50)
    if table is None:
        assert rows == 0
        return
    assert table.num_rows == rows
    count = check_deliveries(table["event_id"].to_pylist(), table["delivery"].to_pylist(), distance)
    assert abs((rows - len(count)) - rows * share) <= 1


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 2_000), seed=st.integers(0, 2**63), keys=st.integers(1, 300), skew=st.floats(0, 3))
def test_first_deliveries_count_per_key_and_repeats_are_equal(rows, seed, keys, skew):
    table = table_of(rows, seed=seed, keys=keys, skew=skew, max_distance=500)
    following = collections.Counter()
    first = {}
    for row in table.to_pylist():
        if row.pop("delivery") == 0:
            assert row["seq"] == following[row["key"]]
            following[row["key"]] += 1
            first[row["event_id"]] = row
        else:
            assert row == first[row["event_id"]]
    assert len(following) <= keys


@pytest.mark.parametrize("size", [1_000, 32_768, 65_535, 65_537, 100_000, 139_999, 140_000, 200_000])
def test_same_seed_same_rows_whatever_the_batch_size(size):
    options = {"seed": 12, "keys": 1_000, "max_distance": 70_000, "lateness_s": 3.0}
    expected = table_of(140_000, **options).combine_chunks()
    batches = list(generate(140_000, batch_rows=size, **options))
    assert [batch.num_rows for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert 0 < batches[-1].num_rows <= size
    assert pa.Table.from_batches(batches).combine_chunks().equals(expected)


def test_a_longer_stream_begins_with_the_shorter_one():
    short, long = (table_of(rows, seed=4, max_distance=90_000).combine_chunks() for rows in (70_000, 200_000))
    assert long.slice(0, 70_000).equals(short)


def test_other_seeds_give_other_rows():
    ids = [set(table_of(1_000, seed=seed, keys=10)["event_id"].to_pylist()) for seed in range(8)]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(ids, 2))


def test_the_rows_of_a_seed_stay_what_they_are():
    rows = table_of(2, seed=7, keys=100, redeliveries=0.5).to_pylist()
    row = rows[0]
    assert [one["delivery"] for one in rows] == [0, 1]
    assert (row["event_id"].hex(), row["key"], row["seq"]) == ("142c6e8569024eeba298cae1c0038809", "user-000008", 0)
    assert (row["ts"].isoformat(), row["amount"]) == ("2025-06-15T15:06:40.000073", 101.6)
    assert row["payload"] == "&a.43/9fx=71=dyk/b =mfsc-/uvmr&5m8/ijgs97k bx"


def test_schema_and_both_forms_of_the_id():
    binary, text = (table_of(5_000, seed=3, id=form) for form in ("binary", "uuid"))
    assert binary.schema == pa.schema(
        {
            "event_id": pa.binary(16),
            "key": pa.utf8(),
            "seq": pa.int64(),
            "ts": pa.timestamp("us"),
            "amount": pa.float64(),
            "payload": pa.utf8(),
            "delivery": pa.int32(),
        }
    )
    assert text.schema.field("event_id").type == pa.utf8()
    identities = [uuid.UUID(value) for value in text["event_id"].to_pylist()]
    assert [identity.bytes for identity in identities] == binary["event_id"].to_pylist()
    assert all(
        identity.version == 4 and str(identity) == value
        for identity, value in zip(identities, text["event_id"].to_pylist(), strict=True)
    )
    assert binary.drop_columns("event_id").equals(text.drop_columns("event_id"))
    binary.validate(full=True)
    text.validate(full=True)
    sizes = {len(value) for value in text["payload"].to_pylist()}
    assert sizes == set(range(30, 51))


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.0, 1.5])
def test_keys_follow_zipf(skew):
    keys, rows = 200, 200_000
    table = table_of(rows, seed=5, keys=keys, skew=skew, redeliveries=0.0)
    counted = sorted((entry["counts"] for entry in table["key"].value_counts().to_pylist()), reverse=True)
    weight = np.arange(1, keys + 1, dtype=np.float64) ** -skew
    expected = rows * weight / weight.sum()
    # Ranks far down are close together; the head shows the law. Six standard deviations.
    head = 10 if skew else 1
    for have, want in zip(counted[:head], expected[:head], strict=True):
        assert abs(have - want) < 6 * math.sqrt(want) + (60 if not skew else 0)
    assert len(counted) == keys


def test_event_times():
    gap_us = 1e6 / 500
    for lateness_s in (0.0, 2.0):
        table = table_of(20_000, seed=6, rate_per_s=500.0, lateness_s=lateness_s, redeliveries=0.0)
        ts = table["ts"].cast(pa.int64()).to_numpy()
        late = np.arange(20_000) * gap_us + 1_750_000_000_000_000 - ts
        assert late.max() <= lateness_s * 1e6 + 1
        assert late.min() >= -gap_us - 1
        assert (np.diff(ts) < 0).any() == bool(lateness_s)
        assert np.median(late) < 0.2 * lateness_s * 1e6 + 1


def test_distances_are_spread_over_the_whole_range():
    ids = table_of(100_000, seed=8, max_distance=1_000, redeliveries=0.2)["event_id"].to_pylist()
    first = {}
    distances = [at - first.setdefault(event, at) for at, event in enumerate(ids)]
    distances = [distance for distance in distances if distance]
    assert max(distances) > 980
    assert abs(np.mean(distances) - 500) < 15


def test_memory_does_not_grow_with_the_rows():
    def peak_bytes(rows):
        tracemalloc.start()
        for _ in generate(rows, seed=9, keys=100, max_distance=1_000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1_000)
    assert peak_bytes(800_000) < peak_bytes(200_000) + 2**20


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 2_000), seed=st.integers(0, 2**40), share=SHARES, distance=DISTANCES)
def test_redeliver_keeps_the_table_and_its_order(rows, seed, share, distance):
    table = pa.table({"n": pa.array(range(rows), pa.int64()), "text": [f"row {row}" for row in range(rows)]})
    result = redeliver(table, seed=seed, share=share, max_distance=distance, delivery_column="again")
    assert result.schema == table.schema.append(pa.field("again", pa.int32()))
    check_deliveries(result["n"].to_pylist(), result["again"].to_pylist(), distance)
    first = result.filter(pa.compute.equal(result["again"], 0)).drop_columns("again")
    assert first.combine_chunks().equals(table.combine_chunks())
    assert result["text"].to_pylist() == [f"row {row}" for row in result["n"].to_pylist()]
    extra = result.num_rows - rows
    assert abs(extra - result.num_rows * share) <= 1
    assert redeliver(table, seed=seed, share=share, max_distance=distance, delivery_column="again").equals(result)


def test_redeliver_more_rows_than_a_block_in_several_chunks():
    chunk = pa.table({"n": pa.array(range(100_000), pa.int64())})
    shifted = pa.table({"n": pa.array(range(100_000, 200_000), pa.int64())})
    table = pa.concat_tables([chunk, shifted])
    result = redeliver(table, seed=1, share=0.1, max_distance=80_000)
    assert abs(result.num_rows - 200_000 / 0.9) <= 2
    check_deliveries(result["n"].to_pylist(), result["delivery"].to_pylist(), 80_000)
    bare = redeliver(table, seed=1, share=0.1, max_distance=80_000, delivery_column=None)
    assert bare.equals(result.select(["n"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"redeliveries": 0.51},
        {"redeliveries": -0.1},
        {"max_distance": 1},
        {"keys": 0},
        {"skew": -1},
        {"lateness_s": -1},
        {"rate_per_s": 0},
        {"id": "text"},
        {"batch_rows": 0},
        {"seed": -1},
    ],
)
def test_refuses_impossible_arguments_at_once(wrong):
    with pytest.raises(ValueError):
        generate(10, **{"seed": 1, **wrong})
    with pytest.raises(ValueError):
        generate(-1, seed=1)


def test_redeliver_refuses_a_column_that_is_there():
    with pytest.raises(ValueError, match='"delivery" already'):
        redeliver(pa.table({"delivery": [1]}), seed=1, share=0.1, max_distance=10)
