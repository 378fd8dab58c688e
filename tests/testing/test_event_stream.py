"""``EventStream``: every knob does what it says, counted; what it says of its rows is so; same seed, same bytes."""

import hashlib
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.errors import StageError
from engine.sinks import call
from engine.sources import memory
from engine.testing import Bursts, Drift, EventStream

PLAIN = EventStream(rows=50_000, seed=3)
EVERYTHING = EventStream(
    rows=20_000,
    seed=11,
    batch_rows=1_700,
    keys=50,
    skew=1.2,
    hot_share=0.2,
    bursts=Bursts(every_s=1.0, length_s=0.2, factor=5.0),
    redeliveries=0.3,
    delay_rows=400,
    late=0.1,
    disorder=0.5,
    poison=0.02,
    poison_kinds=("price", "quantity", "utf8"),
    drifts=(Drift(3, "add"), Drift(4, "widen"), Drift(5, "dictionary"), Drift(6, "reorder")),
)


def table_of(stream):
    return pa.Table.from_batches(list(stream.batches()))


def column(stream, name):
    """One column of all batches, whatever their schemas."""
    return [value for batch in stream.batches() for value in batch.column(name).to_pylist()]


def truth_of(stream, name):
    return np.concatenate([getattr(truth, name) for truth in stream.truths()])


def close(count, expected, of):
    """Within six standard deviations of a binomial distribution."""
    share = expected / of
    return abs(count - expected) <= 6 * math.sqrt(of * share * (1 - share)) + 1


def digest(stream):
    values = hashlib.sha256()
    for batch in stream.batches():
        # Invalid UTF-8 has no text: payloads are taken as bytes.
        for name in batch.schema.names:
            values.update(name.encode())
            values.update(repr(bytes_of(batch.column(name)).to_pylist()).encode())
            values.update(str(batch.schema.field(name).type).encode())
    return values.hexdigest()


def bytes_of(values):
    return values.view(pa.binary()) if values.type == pa.utf8() else values


def test_the_rows_of_a_seed_stay_what_they_are():
    assert digest(EVERYTHING) == "2044b9248fb9b797abe8777e9c8a2e915dae8cb0cb4098b644e0192c920dbe2b"
    assert digest(replace(PLAIN, rows=1_000)) == "89ee0d00a7593cc7cf93fe34fad143b9d895623c735057b9b11430eb1e2ba233"


def test_same_seed_same_bytes_in_any_order_in_any_process():
    numbers = list(range(EVERYTHING.batch_count))
    made = [EVERYTHING.batch(number).serialize().to_pybytes() for number in numbers]
    random.Random(5).shuffle(numbers)
    again = replace(EVERYTHING)
    for number in numbers:
        assert again.batch(number).serialize().to_pybytes() == made[number]
    program = (
        f"from engine.testing import *; import sys; stream = {EVERYTHING!r};"
        "sys.stdout.buffer.write(stream.batch(7).serialize().to_pybytes())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert other.stdout == made[7]


def test_other_seeds_give_other_rows():
    ids = [set(column(replace(PLAIN, seed=seed, rows=500), "event_id")) for seed in range(8)]
    assert all(one.isdisjoint(other) for index, one in enumerate(ids) for other in ids[index + 1 :])
    assert all(len(one) == 500 for one in ids)


def test_it_is_a_value():
    with pytest.raises(FrozenInstanceError):
        PLAIN.rows = 5
    assert hash(PLAIN) == hash(replace(PLAIN))
    assert replace(PLAIN) == PLAIN != replace(PLAIN, seed=4)


def test_batches_and_columns():
    assert EVERYTHING.batch_count == 12
    batches = list(EVERYTHING.batches())
    assert [batch.num_rows for batch in batches] == [1_700] * 11 + [1_300]
    assert batches[0].schema == pa.schema(
        {
            "offset": pa.int64(),
            "event": pa.int64(),
            "event_id": pa.binary(16),
            "key": pa.utf8(),
            "ts": pa.timestamp("us"),
            "price": pa.utf8(),
            "quantity": pa.int32(),
            "region": pa.dictionary(pa.int8(), pa.utf8()),
            "payload": pa.utf8(),
        }
    )
    table_of(PLAIN).validate(full=True)
    assert set(column(PLAIN, "quantity")) == set(range(1, 101))
    assert len(set(column(PLAIN, "region"))) == 7
    assert all(len(text) == 32 for text in column(PLAIN, "payload"))
    for wrong in (-1, 12):
        for give in (EVERYTHING.batch, EVERYTHING.truth):
            with pytest.raises(IndexError, match="there are 12"):
                give(wrong)
    assert list(replace(PLAIN, rows=0).batches()) == []


def test_the_size_of_batches_changes_no_row():
    whole = replace(EVERYTHING, drifts=(), poison_kinds=("price", "quantity"))
    expected = table_of(whole).combine_chunks()
    truths = {name: truth_of(whole, name) for name in ("duplicates", "poison", "late", "events")}
    for size in (255, 320, 4_097, 20_000, 50_000):
        other = replace(whole, batch_rows=size)
        assert table_of(other).combine_chunks().equals(expected)
        for name, values in truths.items():
            assert np.array_equal(truth_of(other, name), values)


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.5])
def test_keys_follow_zipf(skew):
    stream = replace(PLAIN, keys=100, skew=skew)
    counted = Counter(column(stream, "key"))
    weight = np.arange(1, 101) ** -skew
    for rank in range(10):
        expected = stream.rows * weight[rank] / weight.sum()
        assert close(counted[f"key-{rank:06}"], expected, stream.rows)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_hot_key_has_its_share(share):
    counted = Counter(column(replace(PLAIN, hot_share=share), "key"))
    assert close(counted["hot"], share * PLAIN.rows, PLAIN.rows)
    assert (len(counted) > 500) == (share < 1)


def test_rate_and_bursts():
    steady = truth_of(replace(PLAIN, rate_per_s=500.0), "arrival_s")
    assert np.allclose(np.diff(steady), 1 / 500)
    bursts = Bursts(every_s=10.0, length_s=2.0, factor=8.0)
    arrival = truth_of(replace(PLAIN, rate_per_s=500.0, bursts=bursts), "arrival_s")
    assert (np.diff(arrival) > 0).all()
    assert arrival[-1] > 40
    by_second = np.bincount(arrival.astype(int))[:40]
    calm = [by_second[second] for second in range(40) if second % 10 < 8]
    busy = [by_second[second] for second in range(40) if second % 10 >= 8]
    assert set(np.abs(np.array(calm) - 500)) <= {0, 1}
    assert set(np.abs(np.array(busy) - 4_000)) <= {0, 1}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_redeliveries_have_their_share(share):
    stream = replace(PLAIN, redeliveries=share, delay_rows=50)
    again = sum(
        event != offset for event, offset in zip(column(stream, "event"), column(stream, "offset"), strict=True)
    )
    assert close(again, share * stream.rows, stream.rows)
    assert truth_of(stream, "duplicates").sum() == again


def test_delays_have_their_distribution():
    """The distance to the event's first delivery is one delay where that was no re-delivery itself."""
    for shape, mean, most in (("fixed", 70, 70), ("uniform", 70, 139), ("exponential", 70, 1 + 20 * 69)):
        stream = replace(PLAIN, redeliveries=0.02, delay=shape, delay_rows=70)
        distance = truth_of(stream, "offsets") - truth_of(stream, "events")
        # A chain of several delays is rare; the first rows have too few before them.
        delays = distance[2_000:][distance[2_000:] > 0]
        single = delays[delays <= most]
        assert len(single) > 0.95 * len(delays) > 800
        assert abs(np.median(single) - {"fixed": 70, "uniform": 70, "exponential": 49}[shape]) < 6
        assert abs(single.mean() - mean) < 8
        if shape == "uniform":
            assert single.min() < 5
            assert (np.histogram(single, 7, (1, 140))[0] > len(single) / 14).all()


def test_rows_that_come_again_are_equal():
    stream = replace(EVERYTHING, drifts=(), poison_kinds=("price",))
    first, times = {}, Counter()
    for row in table_of(stream).to_pylist():
        offset = row.pop("offset")
        times[row["event"]] += 1
        assert row == first.setdefault(row["event"], row)
        assert offset >= row["event"]
    assert max(times.values()) > 3


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_lateness(share):
    stream = replace(PLAIN, late=share, lateness_s=2.0)
    ts = np.array(pc.cast(table_of(stream)["ts"], pa.int64()).to_pylist()) - 1_750_000_000_000_000
    behind_s = truth_of(stream, "arrival_s") - ts / 1e6
    late = truth_of(stream, "late")
    assert close(late.sum(), share * stream.rows, stream.rows)
    assert np.abs(behind_s[~late]).max(initial=0) < 2e-6
    assert (np.diff(ts) < 0).any() == (share > 0)
    if share:
        assert 1.99 < behind_s[late].max() <= 2.000001
        assert abs(behind_s[late].mean() - 1.0) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_disorder(share):
    stream = replace(PLAIN, disorder=share, disorder_rows=100, batch_rows=777)
    offsets = truth_of(stream, "offsets")
    assert sorted(offsets.tolist()) == list(range(stream.rows))
    moved = offsets != np.arange(stream.rows)
    # Of k rows that change places one stays where it is on average.
    expected = share * stream.rows - (stream.rows / 100 if share else 0)
    assert close(moved.sum(), expected, stream.rows)
    distance = np.abs(offsets - np.arange(stream.rows))
    assert distance.max() < 100
    assert (distance.max() > 90) == bool(share)
    assert column(stream, "offset") == offsets.tolist()


@pytest.mark.parametrize("kinds", [("price",), ("quantity",), ("utf8",), ("price", "quantity", "utf8")])
def test_poison_makes_functions_fail(kinds):
    stream = replace(PLAIN, poison=0.03, poison_kinds=kinds, redeliveries=0.1)
    poison = truth_of(stream, "poison")
    counted = Counter(poison[~truth_of(stream, "duplicates")].tolist())
    fresh = counted.total()
    for index, kind in enumerate(("price", "quantity", "utf8")):
        number = kinds.index(kind) + 1 if kind in kinds else None
        expected = 0 if number is None else 0.03 / len(kinds) * fresh
        assert close(counted[number], expected, fresh) or number is None
        functions = [
            lambda rows: pc.cast(rows["price"], pa.float64()),
            lambda rows: pc.divide(100, rows["quantity"]),
            lambda rows: rows["payload"].validate(full=True),
        ]
        failed = {row for row, only in enumerate(single_rows(stream, 300)) if fails(functions[index], only)}
        assert failed == {row for row in range(300) if number is not None and poison[row] == number}


def single_rows(stream, count):
    """The first rows, each alone."""
    batch = stream.batch(0)
    names = ("price", "quantity", "payload")
    return [{name: batch.column(name).take(pa.array([row])) for name in names} for row in range(count)]


def fails(function, rows):
    try:
        function(rows)
    except pa.ArrowInvalid:
        return True
    return False


def test_there_is_no_invalid_utf8_unless_asked():
    table_of(replace(PLAIN, poison=0.5)).validate(full=True)
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        table_of(replace(PLAIN, poison=0.5, poison_kinds=("utf8",))).validate(full=True)


def test_drift_comes_at_its_batch_and_changes_no_value():
    plain = replace(EVERYTHING, drifts=())
    names = plain.batch(0).schema.names
    for number, (drifted, expected) in enumerate(zip(EVERYTHING.batches(), plain.batches(), strict=True)):
        assert ("added_1" in drifted.schema.names) == (number >= 3)
        assert drifted.schema.field("quantity").type == (pa.int64() if number >= 4 else pa.int32())
        dictionaries = drifted.column("region").dictionary, expected.column("region").dictionary
        assert (dictionaries[0].to_pylist() != dictionaries[1].to_pylist()) == (number >= 5)
        assert sorted(dictionaries[0].to_pylist()) == dictionaries[1].to_pylist()
        assert drifted.schema.field("region").type == expected.schema.field("region").type
        assert ([name for name in drifted.schema.names if name in names] != names) == (number >= 6)
        for name in names:
            assert bytes_of(drifted.column(name)).to_pylist() == bytes_of(expected.column(name)).to_pylist()
        if number >= 3:
            assert drifted.column("added_1").equals(drifted.column("event"))


def test_several_drifts_of_a_kind():
    drifts = [Drift(0, "widen"), Drift(1, "widen"), Drift(1, "add"), Drift(2, "add"), Drift(1, "dictionary")]
    stream = replace(PLAIN, rows=4_000, batch_rows=1_000, drifts=(*drifts, Drift(2, "dictionary")))
    batches = list(stream.batches())
    assert [str(batch.schema.field("quantity").type) for batch in batches] == ["int64", "double", "double", "double"]
    assert batches[3].schema.names[-2:] == ["added_1", "added_2"]
    dictionaries = [tuple(batch.column("region").dictionary.to_pylist()) for batch in batches]
    assert len(set(dictionaries)) == 3
    assert dictionaries[2] == dictionaries[3]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**40),
    share=st.floats(0, 0.9),
    delay=st.integers(1, 300),
    disorder=st.floats(0, 1),
    group=st.integers(1, 200),
    size=st.integers(60, 900),
)
def test_the_truth_about_duplicates(seed, share, delay, disorder, group, size):
    """By plain counting: a row is a duplicate where its event arrived before."""
    stream = EventStream(
        rows=1_500,
        seed=seed,
        batch_rows=size,
        redeliveries=share,
        delay_rows=delay,
        disorder=disorder,
        disorder_rows=group,
        keys=20,
    )
    seen, expected, order = set(), [], {}
    table = table_of(stream)
    events = table["event"].to_pylist()
    for event, key in zip(events, table["key"].to_pylist(), strict=True):
        expected.append(event in seen)
        if event not in seen:
            order.setdefault(key, []).append(event)
        seen.add(event)
    assert truth_of(stream, "duplicates").tolist() == expected
    assert truth_of(stream, "events").tolist() == events
    assert stream.order_by_key() == order


def test_a_knob_changes_only_what_it_says():
    base = table_of(PLAIN).combine_chunks()
    changes = {
        "keys": ({"keys": 500}, {"key"}),
        "hot_share": ({"hot_share": 0.1}, {"key"}),
        "late": ({"late": 0.1}, {"ts"}),
        "rate_per_s": ({"rate_per_s": 5.0}, {"ts"}),
        "poison": ({"poison": 0.1}, {"price", "quantity"}),
    }
    for change, changed in changes.values():
        other = table_of(replace(PLAIN, **change)).combine_chunks()
        assert {name for name in base.column_names if not base[name].equals(other[name])} == changed


def test_a_pipeline_gives_what_the_model_says():
    stream = replace(EVERYTHING, drifts=(), poison_kinds=("price", "quantity"))
    seen = {}

    def take(rows, token):
        for key, event in zip(rows["key"].to_pylist(), rows["event"].to_pylist(), strict=True):
            seen.setdefault(key, []).append(event)

    read = engine.Pipeline("modelled").read(memory(list(stream.batches())))
    sound = (pc.field("price") != "") & (pc.field("price") != "n/a") & (pc.field("quantity") != 0)
    engine.run(read.dedup("event_id").key_by("key", partitions=3).write(call(take)))
    assert seen == stream.order_by_key()
    assert len(seen) > 40
    seen.clear()
    engine.run(read.dedup("event_id").filter(sound).key_by("key", partitions=3).write(call(take)))
    assert seen == stream.order_by_key(poison=False)

    def add_tax(rows):
        return rows.append_column("taxed", pc.multiply(pc.cast(rows["price"], pa.float64()), 1.2))

    with pytest.raises(StageError, match="add_tax"):
        engine.run(read.map(add_tax).write(call(take)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": -1}, "rows is -1; it must be at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"keys": 0}, "keys is 0"),
        ({"skew": -1.0}, "skew and lateness_s must not be negative"),
        ({"rate_per_s": 0.0}, "rate_per_s must be above 0"),
        ({"hot_share": 1.5}, "hot_share is 1.5; it must lie between 0 and 1"),
        ({"redeliveries": 0.95}, "redeliveries is 0.95; it must lie between 0 and 0.9"),
        ({"delay": "normal"}, "there is no delay 'normal'"),
        ({"delay_rows": 0}, "delay_rows is 0"),
        ({"disorder_rows": 0}, "disorder_rows is 0"),
        ({"poison": 0.1, "poison_kinds": ()}, "there are price, quantity and utf8"),
        ({"poison_kinds": ("text",)}, "there are price, quantity and utf8"),
        ({"bursts": Bursts(1.0, 1.0, 2.0)}, "length_s must lie between 0 and every_s"),
        ({"bursts": Bursts(1.0, 0.5, 0.0)}, "factor above 0"),
        ({"drifts": (Drift(1, "drop"),)}, "there is no drift 'drop'"),
        ({"drifts": (Drift(1, "widen"),) * 3}, "quantity can be widened 2 times"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **wrong)
