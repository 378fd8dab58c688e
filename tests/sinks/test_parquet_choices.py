"""What is chosen for typical columns, and that the choices pay."""

import random
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sink_runs import files_below, opened, staged

from engine.sinks.parquet_files import parquet

COUNT = 20_000
CHANCE = random.Random(7)
COLUMNS = {
    "id": [CHANCE.randbytes(16) for _ in range(COUNT)],
    "uuid": pa.array([CHANCE.randbytes(16) for _ in range(COUNT)], pa.binary(16)),
    "key": [f"user-{int(CHANCE.paretovariate(1)) % 5000:06}" for _ in range(COUNT)],
    "prose": [" ".join(CHANCE.choices(["lorem", "ipsum", "dolor", "sit"], k=12)) for _ in range(COUNT)],
    "sequence": range(COUNT),
    "time": pa.array(sorted(CHANCE.randrange(10**12) for _ in range(COUNT)), pa.timestamp("us")),
    "small": pa.array([CHANCE.randrange(10) for _ in range(COUNT)], pa.int8()),
    "hash": [CHANCE.randrange(-(2**63), 2**63) for _ in range(COUNT)],
    "customer": CHANCE.choices([CHANCE.randrange(2**62) for _ in range(100)], k=COUNT),
    "price": [round(CHANCE.uniform(0, 500), 2) for _ in range(COUNT)],
    "rate": CHANCE.choices([0.07, 0.19, 0.0], k=COUNT),
    "flag": CHANCE.choices([True, False], k=COUNT),
    "cost": [Decimal(CHANCE.randrange(1000)) for _ in range(COUNT)],
    "nothing": pa.nulls(COUNT, pa.string()),
    "status": pa.array(CHANCE.choices(["new", "paid"], k=COUNT)).dictionary_encode(),
    "tags": [[CHANCE.choice("abc")] for _ in range(COUNT)],
    "dotted.name": CHANCE.choices(["x", "y"], k=COUNT),
}
ROWS = pa.record_batch(COLUMNS)
TEXT, FAST, PLAIN, SHRUNK = "RLE_DICTIONARY", "DELTA_BINARY_PACKED", "PLAIN", "SNAPPY"
LEFT = "UNCOMPRESSED"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "out"
    sink = opened(parquet(path), ROWS.schema, memory_bytes=1 << 30)
    sink.commit([staged(sink, ROWS)])
    (name,) = files_below(path)
    return path / name


@pytest.mark.parametrize(
    ("column", "encoding", "codec"),
    [
        ("id", PLAIN, LEFT),
        ("uuid", PLAIN, LEFT),
        ("key", TEXT, SHRUNK),
        ("prose", PLAIN, SHRUNK),
        ("sequence", FAST, LEFT),
        ("time", FAST, LEFT),
        ("small", FAST, LEFT),
        ("hash", PLAIN, LEFT),
        ("customer", TEXT, SHRUNK),
        ("price", PLAIN, LEFT),
        ("rate", TEXT, SHRUNK),
        ("status", TEXT, SHRUNK),
        ("tags.list.element", TEXT, SHRUNK),
        ("dotted.name", TEXT, SHRUNK),
    ],
)
def test_choice(chosen, column, encoding, codec):
    found = columns_of(chosen)[column]
    other = {TEXT, FAST, PLAIN} - {encoding, PLAIN}
    assert encoding in found.encodings
    assert not other & set(found.encodings)
    assert found.compression == codec


def columns_of(path):
    group = pq.read_metadata(path).row_group(0)
    return {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}


def test_statistics_for_what_has_an_order_worth_knowing(chosen):
    kept = {name for name, column in columns_of(chosen).items() if column.is_stats_set}
    assert kept == {"sequence", "time", "small", "hash", "customer", "price", "rate", "flag", "cost"}


def test_values_stay(chosen):
    assert pq.ParquetFile(chosen).read().to_pylist() == ROWS.to_pylist()


def test_it_pays(chosen, tmp_path):
    pq.write_table(pa.Table.from_batches([ROWS]), tmp_path / "default.parquet")
    assert chosen.stat().st_size < (tmp_path / "default.parquet").stat().st_size


def test_a_strong_codec_stays_where_it_helps(tmp_path):
    sink = opened(parquet(tmp_path / "out", compression="zstd"), ROWS.schema, memory_bytes=1 << 30)
    sink.commit([staged(sink, ROWS)])
    columns = columns_of(tmp_path / "out" / files_below(tmp_path / "out")[0])
    assert {columns[name].compression for name in ("sequence", "prose", "key", "price")} == {"ZSTD"}
    assert columns["hash"].compression == LEFT


def test_choices_follow_the_data(tmp_path):
    """A column that was noise and becomes text is looked at anew after some million rows; here they are feigned."""
    schema = pa.schema([("a", pa.binary())])
    sink = opened(parquet(tmp_path / "out", row_group_rows=5000), schema, memory_bytes=1 << 30)
    noise = pa.record_batch({"a": [CHANCE.randbytes(8) for _ in range(5000)]}, schema=schema)
    text = pa.record_batch({"a": [b"same"] * 5000}, schema=schema)
    sink.commit([staged(sink, noise)])
    sink.commit([staged(sink, text, epoch=2)])
    choices, _ = sink._choices[0]
    sink._choices[0] = (choices, 0)
    sink.commit([staged(sink, text, epoch=3)])
    codecs = [columns_of(tmp_path / "out" / name)["a"].compression for name in files_below(tmp_path / "out")]
    assert codecs == [LEFT, LEFT, SHRUNK]


def test_few_rows(tmp_path):
    for count in (1, 2, 130):
        path = tmp_path / str(count)
        sink = opened(parquet(path), ROWS.schema)
        sink.commit([staged(sink, ROWS.slice(7, count))])
        assert pq.ParquetFile(path / files_below(path)[0]).read().to_pylist() == ROWS.slice(7, count).to_pylist()
