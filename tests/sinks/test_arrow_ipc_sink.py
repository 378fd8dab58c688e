"""Arrow IPC files: every type comes back as it was, and dictionaries may differ from batch to batch."""

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from arrow_columns import CHANGED, NOT_IN_PARQUET, SAME, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_runs import files_below, opened, staged, written

from engine.sinks.arrow_ipc_files import arrow_ipc

EVERY = {**SAME, **NOT_IN_PARQUET, **{name: column for name, (column, _) in CHANGED.items()}}


def read_back(path):
    tables = []
    for name in files_below(path):
        with ipc.open_file(path / name) as reader:
            tables.append(reader.read_all())
    return tables


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_every_type_stays(tmp_path, name, compression):
    rows = pa.record_batch({"c": EVERY[name]})
    sink = opened(arrow_ipc(tmp_path / "out", compression=compression), rows.schema)
    sink.commit([staged(sink, [rows, rows.slice(1, 2)])])
    (back,) = read_back(tmp_path / "out")
    assert back.schema.field("c").equals(rows.schema.field("c"))
    assert values_of(back)["c"] == values_of(rows)["c"] + values_of(rows.slice(1, 2))["c"]


def test_the_mark(tmp_path):
    rows = pa.record_batch({"a": [1]}).replace_schema_metadata({"made by": "me"})
    written(arrow_ipc(tmp_path / "out"), rows, epoch=4, partition=7)
    assert files_below(tmp_path / "out") == ["part-00007-00000004-00.arrow"]
    metadata = read_back(tmp_path / "out")[0].schema.metadata
    assert metadata[b"made by"] == b"me"
    assert (metadata[b"engine.epoch"], metadata[b"engine.partition"]) == (b"4", b"7")


def test_batches_are_joined(tmp_path):
    rows = pa.record_batch({"a": range(1000), "b": [str(n) for n in range(1000)]})
    sink = opened(arrow_ipc(tmp_path / "out"), rows.schema, memory_bytes=1 << 30)
    sink.commit([staged(sink, [rows] * 100)])
    with ipc.open_file(tmp_path / "out" / files_below(tmp_path / "out")[0]) as reader:
        assert [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)] == [65_536, 34_464]
        assert reader.read_all().column("b").to_pylist() == rows.column("b").to_pylist() * 100


@settings(max_examples=40)
@given(batches=st.lists(st.lists(st.one_of(st.none(), st.integers(0, 300)), min_size=1, max_size=40), min_size=1))
def test_dictionaries_that_differ(tmp_path_factory, batches):
    """Also more values than the index type can count, which takes another file."""
    path = tmp_path_factory.mktemp("dictionaries") / "out"
    kind = pa.dictionary(pa.int8(), pa.string())
    arrays = [pa.array([None if n is None else f"v{n}" for n in values]).dictionary_encode() for values in batches]
    rows = [pa.record_batch({"d": array.cast(kind), "n": range(len(array))}) for array in arrays]
    sink = opened(arrow_ipc(path), rows[0].schema, memory_bytes=1)
    sink.commit([staged(sink, rows)])
    tables = read_back(path)
    assert all(table.schema.field("d").type == kind for table in tables)
    found = [value for table in tables for value in table.column("d").to_pylist()]
    assert found == [value for array in arrays for value in array.to_pylist()]


def test_growing_dictionaries_stay_in_one_file(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    rows = [pa.record_batch({"d": pa.array([f"v{n}", "v0"]).dictionary_encode().cast(kind)}) for n in range(100)]
    sink = opened(arrow_ipc(tmp_path / "out"), rows[0].schema, memory_bytes=1)
    sink.commit([staged(sink, rows)])
    (table,) = read_back(tmp_path / "out")
    assert table.column("d").to_pylist() == [value for batch in rows for value in batch.column("d").to_pylist()]


def test_more_values_than_indexes_begin_another_file(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    rows = [
        pa.record_batch({"d": pa.array([f"{part}-{n}" for n in range(100)]).dictionary_encode().cast(kind)})
        for part in range(3)
    ]
    sink = opened(arrow_ipc(tmp_path / "out"), rows[0].schema)
    sink.commit([staged(sink, rows)])
    assert len(files_below(tmp_path / "out")) == 3
    assert [len(table) for table in read_back(tmp_path / "out")] == [100] * 3


def test_directories(tmp_path):
    rows = pa.record_batch({"id": [1, 2, 3], "kind": ["a", None, "a"]})
    written(arrow_ipc(tmp_path / "out", partition_by=["kind"]), rows)
    assert files_below(tmp_path / "out") == [
        "kind=__HIVE_DEFAULT_PARTITION__/part-00000-00000001-00.arrow",
        "kind=a/part-00000-00000001-00.arrow",
    ]
    assert [table.to_pydict() for table in read_back(tmp_path / "out")] == [{"id": [2]}, {"id": [1, 3]}]
