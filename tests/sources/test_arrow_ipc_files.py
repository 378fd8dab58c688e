"""Compression, dictionaries, bodies that are skipped, and sizes that are declared but not there."""

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from formats import IPC_FILE, IPC_STREAM, Format, drain, events, ids, table_of

from engine.errors import InputError
from engine.sources import arrow_ipc, arrow_ipc_metadata

both = pytest.mark.parametrize("format", [IPC_FILE, IPC_STREAM], ids=str)


@both
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_bodies(format: Format, codec: str, tmp_path: Path) -> None:
    make = ipc.new_file if format is IPC_FILE else ipc.new_stream
    table = events(0, 500)
    with make(tmp_path / "a.arrow", table.schema, options=ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=100)
    reads = drain(arrow_ipc(tmp_path))
    assert table_of(reads, table.schema).equals(table)
    assert ids(drain(arrow_ipc(tmp_path), reads[1].offset)) == list(range(200, 500))


def words(start: int, vocabulary: list[str]) -> pa.RecordBatch:
    word = pa.DictionaryArray.from_arrays(pa.array([n % len(vocabulary) for n in range(10)], pa.int32()), vocabulary)
    return pa.record_batch({"id": pa.array(range(start, start + 10), pa.int64()), "word": word})


@pytest.mark.parametrize("deltas", [False, True])
def test_dictionaries_that_change_between_batches(deltas: bool, tmp_path: Path) -> None:
    batches = [words(0, ["a"]), words(10, ["a", "b"]), words(20, ["a", "b", "c"])]
    options = ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
    with ipc.new_stream(tmp_path / "a.arrows", batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    reads = drain(arrow_ipc(tmp_path))
    told = [value for read in reads for value in read.rows.column("word").to_pylist()]
    assert told == [value for batch in batches for value in batch.column("word").to_pylist()]
    resumed = drain(arrow_ipc(tmp_path), reads[1].offset)
    assert [read.rows.column("word").to_pylist() for read in resumed] == [batches[2].column("word").to_pylist()]


@both
def test_skipped_batches_are_not_read(format: Format, tmp_path: Path) -> None:
    path = format.put(events(0, 50_000), tmp_path / f"a{format.extension}", 10_000)
    offset = drain(arrow_ipc(path))[2].offset
    content = bytearray(path.read_bytes())
    damaged = content.index(b"event 15000, of")
    content[damaged : damaged + 2] = b"\xff\xff"
    path.write_bytes(content)
    assert ids(drain(arrow_ipc(path), offset)) == list(range(30_000, 50_000))
    with pytest.raises(InputError, match=r"cannot be read behind row 10,000 as Arrow IPC: .*UTF"):
        drain(arrow_ipc(path))


def test_a_stream_without_its_end_is_truncated(tmp_path: Path) -> None:
    path = IPC_STREAM.put(events(0, 100), tmp_path / "a.arrows", 10)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="without the end-of-stream mark"):
        drain(arrow_ipc(path))


def test_a_stream_of_the_old_format(tmp_path: Path) -> None:
    options = ipc.IpcWriteOptions(use_legacy_format=True)
    table = events(0, 100)
    with ipc.new_stream(tmp_path / "a.arrows", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=30)
    assert ids(drain(arrow_ipc(tmp_path))) == list(range(100))


@both
def test_a_declared_number_of_rows_is_not_believed(format: Format, tmp_path: Path) -> None:
    count = 77_777
    path = format.put(pa.table({"nothing": pa.nulls(count)}), tmp_path / f"a{format.extension}", count)
    content = path.read_bytes()
    assert sum(read.rows.num_rows for read in drain(arrow_ipc(path))) == count
    for declared in ((1 << 31) - 1, -1, 1 << 62):
        path.write_bytes(content.replace(struct.pack("<q", count), struct.pack("<q", declared)))
        with pytest.raises(InputError, match=rf"a\{format.extension}: .*declares {declared:,} rows"):
            drain(arrow_ipc(path))


@both
def test_a_compressed_body_that_declares_too_much(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ipc.new_file if format is IPC_FILE else ipc.new_stream
    table = pa.table({"id": pa.array([0] * 100_000, pa.int64())})
    with make(tmp_path / "a.arrow", table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    assert (tmp_path / "a.arrow").stat().st_size < 2000
    monkeypatch.setattr(arrow_ipc_metadata, "BATCH_BYTES_MAX", 500_000)
    with pytest.raises(InputError, match="one batch declares 800,000 bytes; at most 500,000 are read"):
        drain(arrow_ipc(tmp_path))


def test_what_is_no_arrow_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(InputError, match="expected an Arrow IPC file or stream, found a Parquet file"):
        arrow_ipc(tmp_path).schema()


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_stream_without_a_schema(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrows").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.arrows: cannot be read as Arrow IPC: it ends"):
        arrow_ipc(tmp_path).schema()


@both
@pytest.mark.parametrize("column", ["time", "coded", "nested", "tagged"])
def test_texts_of_a_type_that_are_no_utf8(format: Format, column: str, tmp_path: Path) -> None:
    zoned = pa.array([1, 2], pa.timestamp("us", "Mars/Phobos"))
    columns = {
        "time": zoned,
        "coded": zoned.dictionary_encode(),
        "nested": pa.StructArray.from_arrays([pa.array([1, 2])], ["Mars/Phobos"]),
        "tagged": pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([zoned], ["at"])),
    }
    path = format.put(pa.table({column: columns[column]}), tmp_path / f"a{format.extension}", 10)
    content = path.read_bytes()
    assert b"Mars/Phobos" in content
    path.write_bytes(content.replace(b"Mars/Phobos", b"Mars/\xffhobos"))
    with pytest.raises(InputError, match=f'in the type of "{column}", a name or a time zone is no UTF-8'):
        arrow_ipc(path).schema()
