"""Parquet files: every type comes back, sizes are kept, and columns become directories where asked."""

import datetime
import glob
import os
from collections.abc import Callable

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from arrow_columns import CHANGED, NOT_IN_PARQUET, SAME, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_runs import files_below, opened, origin, staged, token, written

from engine.errors import SinkError
from engine.sinks.parquet_files import parquet

READERS: list[Callable[[str], object]] = [
    lambda pattern: ds.dataset(sorted(glob.glob(pattern, recursive=True)), partitioning="hive").to_table()
]
try:
    import polars

    READERS.append(lambda pattern: polars.scan_parquet(pattern, hive_partitioning=True).collect().to_arrow())
except ImportError:
    pass
try:
    import duckdb

    READERS.append(
        lambda pattern: duckdb.sql(f"select * from read_parquet('{pattern}', hive_partitioning=true)").arrow()
    )
except ImportError:
    pass


def read_back(path):
    return pq.ParquetFile(path / files_below(path)[0]).read()


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("compression", ["snappy", None])
def test_types_that_stay(tmp_path, name, compression):
    rows = pa.record_batch({"c": SAME[name], "slice": SAME[name]})
    written(parquet(tmp_path / "out", compression=compression), rows.slice(1, 3))
    back = read_back(tmp_path / "out")
    assert back.schema.field("c").type == rows.schema.field("c").type
    assert values_of(back) == values_of(rows.slice(1, 3))


@pytest.mark.parametrize("name", CHANGED)
def test_types_that_change_form(tmp_path, name):
    column, kind = CHANGED[name]
    rows = pa.record_batch({"c": column})
    sink = opened(parquet(tmp_path / "out"), rows.schema)
    sink.commit([staged(sink, [rows, rows.slice(1, 2)])])
    back = read_back(tmp_path / "out")
    assert back.schema.field("c").type == kind
    assert back.column("c").to_pylist() == column.to_pylist() + column.slice(1, 2).to_pylist()


@pytest.mark.parametrize("name", NOT_IN_PARQUET)
def test_types_that_parquet_has_not(tmp_path, name):
    schema = pa.schema([("ok", pa.int64()), ("odd", NOT_IN_PARQUET[name].type)])
    sink = parquet(tmp_path / "out")
    with pytest.raises(SinkError, match='parquet has no form for column "odd"'):
        opened(sink, schema)
    assert not os.path.exists(tmp_path / "out")


def test_the_mark_and_the_metadata_of_the_user(tmp_path):
    schema = pa.schema([pa.field("a", pa.int64(), metadata={"unit": "mm"})], metadata={"made by": "me"})
    written(parquet(tmp_path / "out"), pa.record_batch([pa.array([1])], schema=schema), epoch=4, partition=7)
    name = files_below(tmp_path / "out")[0]
    assert name == "part-00007-00000004-00.parquet"
    metadata = pq.read_metadata(tmp_path / "out" / name).metadata
    assert metadata[b"engine.epoch"] == b"4"
    assert metadata[b"engine.partition"] == b"7"
    assert metadata[b"engine.incarnation"].decode() == "0123456789abcdef" * 2
    assert metadata[b"engine.sink"].decode() == f"parquet({tmp_path}/out)"
    back = read_back(tmp_path / "out").schema
    assert back.metadata[b"made by"] == b"me"
    assert back.field("a").metadata[b"unit"] == b"mm"


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=12),
    row_group_rows=st.integers(1, 100),
    memory_bytes=st.sampled_from([1, 500, 1 << 20]),
)
def test_row_groups(tmp_path_factory, sizes, row_group_rows, memory_bytes):
    path = tmp_path_factory.mktemp("groups") / "out"
    schema = pa.schema([("a", pa.int64())])
    sink = opened(parquet(path, row_group_rows=row_group_rows), schema, memory_bytes=memory_bytes)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = [pa.record_batch({"a": range(s, s + n)}, schema=schema) for s, n in zip(starts, sizes, strict=True)]
    handle = staged(sink, batches)
    sink.commit([handle])
    if sum(sizes) == 0:
        assert handle is None
        return
    file = pq.ParquetFile(path / "part-00000-00000001-00.parquet")
    assert file.read().column("a").to_pylist() == list(range(sum(sizes)))
    groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    assert max(groups) <= row_group_rows
    if memory_bytes == 1 << 20:
        assert groups[:-1] == [row_group_rows] * (len(groups) - 1)


def test_max_file_bytes(tmp_path):
    rows = pa.record_batch({"a": [os.urandom(100) for _ in range(1000)]})
    sink = opened(parquet(tmp_path / "out", row_group_rows=100, max_file_bytes=25_000), rows.schema)
    sink.commit([staged(sink, rows)])
    names = files_below(tmp_path / "out")
    assert names == [f"part-00000-00000001-{part:02}.parquet" for part in range(4)]
    assert all(25_000 <= os.path.getsize(tmp_path / "out" / name) < 45_000 for name in names[:-1])
    back = [value for name in names for value in pq.read_table(tmp_path / "out" / name).column("a").to_pylist()]
    assert back == rows.column("a").to_pylist()


def test_other_readers(tmp_path):
    count = 10_000
    rows = pa.record_batch(
        {
            "n": range(count),
            "moment": pa.array(range(count), pa.timestamp("us")),
            "label": [f"user-{index % 50}" for index in range(count)],
            "noise": [os.urandom(16) for _ in range(count)],
            "price": [index % 97 / 7 for index in range(count)],
        }
    )
    written(parquet(tmp_path / "out"), rows)
    for read in READERS:
        assert pa.table(read(str(tmp_path / "out" / "*.parquet"))).to_pylist() == rows.to_pylist()


# -- partition_by --

ODD = [
    "plain",
    None,
    "",
    "a/b",
    "..",
    "x=y",
    "100%",
    "ü ñ",
    "a b",
    "NULL",
    "\0nul",
    "'\"\\",
]


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string_view())])
def test_values_become_directories(tmp_path, kind):
    rows = pa.record_batch({"id": range(len(ODD)), "kind": pa.array(ODD).cast(kind)})
    written(parquet(tmp_path / "out", partition_by="kind"), rows)
    names = files_below(tmp_path / "out")
    assert len(names) == len(ODD)
    assert "kind=__HIVE_DEFAULT_PARTITION__/part-00000-00000001-00.parquet" in names
    assert "kind=a%2Fb/part-00000-00000001-00.parquet" in names
    assert pq.ParquetFile(tmp_path / "out" / names[0]).schema_arrow.names == ["id"]
    layout = ds.partitioning(pa.schema([("kind", pa.string())]), flavor="hive")
    back = ds.dataset(tmp_path / "out", partitioning=layout).to_table().sort_by("id")
    assert back.column("kind").to_pylist() == ODD


def test_several_columns_of_several_types(tmp_path):
    count = 500
    rows = pa.record_batch(
        {
            "id": range(count),
            "day": [datetime.date(2024, 1, 1 + index % 3) for index in range(count)],
            "flag": pa.array([None if index % 5 == 0 else index % 2 == 0 for index in range(count)]),
            "kind": pa.array([f"k{index % 4}" for index in range(count)]).dictionary_encode(),
            "n": pa.array([index % 2 for index in range(count)], pa.uint8()),
        }
    )
    sink = parquet(tmp_path / "out", partition_by=["kind", "day", "flag", "n"], row_group_rows=120)
    opened(sink, rows.schema)
    sink.commit([staged(sink, [rows.slice(0, 250), rows.slice(250)])])
    back = {}
    for name in files_below(tmp_path / "out"):
        ids = pq.ParquetFile(tmp_path / "out" / name).read().column("id").to_pylist()
        assert ids == sorted(ids)
        assert len(os.path.split(name)[0].split("/")) == 4
        back |= dict.fromkeys(ids, name)
    for row in rows.to_pylist():
        flag = "__HIVE_DEFAULT_PARTITION__" if row["flag"] is None else str(row["flag"]).lower()
        assert back[row["id"]].startswith(f"kind={row['kind']}/day={row['day']}/flag={flag}/n={row['n']}/part-")
    assert len(back) == count


def test_dictionaries_with_a_null_among_their_values_below_directories(tmp_path):
    def batch(values):
        coded = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(values))
        return pa.record_batch({"kind": ["x", "y"], "coded": coded})

    rows = pa.Table.from_batches([batch(["a", None]), batch(["c", None])])
    written(parquet(tmp_path / "out", partition_by="kind"), rows)
    found = [pq.ParquetFile(tmp_path / "out" / name).read() for name in files_below(tmp_path / "out")]
    assert [table.column("coded").to_pylist() for table in found] == [["a", "c"], [None, None]]


def test_other_readers_of_directories(tmp_path):
    rows = pa.record_batch({"id": [1, 2, 3], "kind": ["a/b", None, "c"]})
    written(parquet(tmp_path / "out", partition_by="kind"), rows)
    for read in READERS:
        found = pa.table(read(str(tmp_path / "out" / "**" / "*.parquet"))).sort_by("id").select(["id", "kind"])
        assert found.to_pylist() == rows.to_pylist()


def test_few_files_stay_open(tmp_path):
    count = 40
    rows = pa.record_batch({"id": range(count), "kind": [str(index) for index in range(count)]})
    sink = opened(parquet(tmp_path / "out", partition_by="kind"), rows.schema, partitions=100)
    writer = sink.writer(0, token(1, sink))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        writer.write(rows, origin=origin())
        writer._encode(count)
    assert len(os.listdir("/proc/self/fd")) > before
    assert len(writer._open) <= 4
    sink.commit([writer.prepare()])
    assert len(files_below(tmp_path / "out")) == 2 * count
    assert sorted(pq.read_table(tmp_path / "out").column("id").to_pylist()) == sorted(list(range(count)) * 2)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ("knd", 'no column "knd"; did you mean "kind"'),
        (["id", "kind", "price", "list"], '"price" is double'),
        ("list", '"list" is list<item: int64>'),
        (["kind", "kind"], "names a column twice"),
    ],
)
def test_wrong_columns(tmp_path, columns, match):
    schema = pa.schema(
        [("id", pa.int64()), ("kind", pa.string()), ("price", pa.float64()), ("list", pa.list_(pa.int64()))]
    )
    sink = parquet(tmp_path / "out", partition_by=columns)
    assert any(match in fault for fault in sink.faults(schema))
    with pytest.raises(SinkError):
        opened(sink, schema)


def test_all_columns_taken(tmp_path):
    with pytest.raises(SinkError, match="the rows have no columns"):
        opened(parquet(tmp_path / "out"), pa.schema([]))
    with pytest.raises(SinkError, match="takes every column"):
        opened(parquet(tmp_path / "out", partition_by="a"), pa.schema([("a", pa.int64())]))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("y" * 300, 'a value of "kind" is too long for the name of a directory'),
        ("__HIVE_DEFAULT_PARTITION__", "which readers take for null"),
    ],
)
def test_a_value_that_names_no_directory(tmp_path, value, match):
    rows = pa.record_batch({"id": [1, 2], "kind": ["x", value]})
    sink = opened(parquet(tmp_path / "out", partition_by="kind"), rows.schema)
    with pytest.raises(SinkError, match=match):
        staged(sink, rows)
    assert files_below(tmp_path) == []


def test_dictionaries_that_are_too_many_for_their_index_come_back(tmp_path):
    def piece(number):
        values = pa.array([f"{number}-{n}" for n in range(90)])
        return pa.record_batch({"v": pa.DictionaryArray.from_arrays(pa.array(range(90), pa.int8()), values)})

    pieces = [piece(number) for number in range(3)]
    sink = opened(parquet(tmp_path / "out"), pieces[0].schema, memory_bytes=1 << 30)
    sink.commit([staged(sink, pieces)])
    (name,) = files_below(tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / name)
    assert found.schema.field("v").type == pieces[0].schema.field("v").type
    assert found["v"].to_pylist() == [f"{number}-{n}" for number in range(3) for n in range(90)]
