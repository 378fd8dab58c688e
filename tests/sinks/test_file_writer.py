"""What one writer of files holds: few descriptors, and no bytes of files that are complete."""

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from sink_runs import files_below, opened, origin, staged, token

from engine.sinks import file_sink
from engine.sinks.parquet_files import parquet
from engine.storage import Storage


class CountingStorage(Storage):
    """Knows the files that it made, and how many of them were open at most."""

    def __init__(self):
        self.files = []
        self.most_open = 0

    def create(self, path, *, mode=0o600):
        file = super().create(path, mode=mode)
        self.files.append(file)
        self.most_open = max(self.most_open, sum(not each.closed for each in self.files))
        return file


@pytest.fixture
def storage():
    return CountingStorage()


@pytest.mark.parametrize("groups", ["each", "in turns"])
def test_files_that_are_open_have_a_bound(tmp_path, monkeypatch, storage, groups):
    monkeypatch.setattr(file_sink, "OPEN_FILES", 8)
    numbers = range(60)
    kinds = {"each": [n // 3 for n in numbers], "in turns": [n % 20 for n in numbers]}[groups]
    rows = pa.record_batch({"n": pa.array(numbers), "kind": kinds})
    sink = parquet(tmp_path / "out", partition_by="kind", row_group_rows=1)
    sink.storage = storage
    sink.commit([staged(opened(sink, rows.schema, partitions=1), rows)])
    found = ds.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert sorted(zip(*found.select(["n", "kind"]).to_pydict().values(), strict=True)) == list(
        zip(numbers, kinds, strict=True)
    )
    assert len(files_below(tmp_path / "out")) == len(storage.files)
    assert storage.most_open == 8
    assert all(file.closed for file in storage.files)


def test_a_writer_that_is_given_up_leaves_no_file_open(tmp_path, monkeypatch, storage):
    monkeypatch.setattr(file_sink, "OPEN_FILES", 4)
    rows = pa.record_batch({"n": range(10), "kind": range(10)})
    sink = parquet(tmp_path / "out", partition_by="kind", row_group_rows=1)
    sink.storage = storage
    writer = opened(sink, rows.schema, partitions=1).writer(0, token(1, sink))
    writer.write(rows, origin=origin())
    writer.abort()
    assert len(storage.files) == 10
    assert all(file.closed for file in storage.files)
    assert files_below(tmp_path / "out") == []


def test_a_file_that_is_complete_is_written(tmp_path, storage):
    rows = pa.record_batch({f"column {n}": range(20) for n in range(50)})
    sink = parquet(tmp_path / "out", row_group_rows=2, max_file_bytes=1)
    sink.storage = storage
    writer = opened(sink, rows.schema).writer(0, token(1, sink))
    writer.write(rows, origin=origin())
    handle = writer.prepare()
    assert handle is not None
    sizes = [size for _, size, *_ in handle["files"]]
    assert len(sizes) == 10

    storage.files.clear()
    writer = sink.writer(0, token(2, sink))
    writer.write(rows, origin=origin())
    assert [file.size for file in storage.files] == sizes
    writer.abort()
