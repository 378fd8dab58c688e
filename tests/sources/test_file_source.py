"""What holds for every format: order, offsets, new and changed files, schemas that differ, damaged bytes."""

import json
import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from formats import (
    BINARY_FORMATS,
    CSV,
    FORMATS,
    IPC_FILE,
    NDJSON,
    PARQUET,
    Format,
    cut_small,
    drain,
    events,
    exhaust,
    ids,
    table_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import InputError, PipelineError, SourceError
from engine.source import Reader, Replay, Source
from engine.sources import file_source

each_format = pytest.mark.parametrize("format", FORMATS, ids=str)


def lay(format: Format, directory: Path, sizes: list[int], group_rows: int = 50) -> pa.Table:
    """Write files of these sizes; the rows count on from file to file."""
    start = 0
    for number, size in enumerate(sizes):
        format.put(events(start, start + size), directory / f"day-{number:02}{format.extension}", group_rows)
        start += size
    return events(0, start)


@each_format
def test_rows_come_in_the_order_of_names(format: Format, tmp_path: Path) -> None:
    whole = lay(format, tmp_path / "in", [30, 1, 120])
    source = format.source(tmp_path / "in")
    assert isinstance(source, Source)
    assert source.replay is Replay.REPLAYABLE
    assert source.schema().equals(whole.schema)
    reads = drain(source)
    assert table_of(reads, whole.schema).equals(whole)
    assert all(read.rows.schema.equals(source.schema(), check_metadata=True) for read in reads)


@pytest.mark.parametrize("format", BINARY_FORMATS, ids=str)
def test_large_batches_are_cut(format: Format, tmp_path: Path) -> None:
    count = 150_000
    whole = pa.table({"id": pa.array(range(count), pa.int64())})
    format.put(whole, tmp_path / f"a{format.extension}", count)
    reads = drain(format.source(tmp_path))
    assert [read.rows.num_rows for read in reads] == [65_536, 65_536, 18_928]
    assert ids(reads) == list(range(count))
    assert ids(drain(format.source(tmp_path), reads[0].offset)) == list(range(65_536, count))


@each_format
def test_origins_name_the_file_and_its_rows(format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(format, tmp_path / "in", [10, 25])
    monkeypatch.chdir(tmp_path)
    cut_small(monkeypatch, 10)
    for path in ("in", tmp_path / "in"):
        origins = [read.origin for read in drain(format.source(path))]
        second = [origin for origin in origins if origin.location == f"in/day-01{format.extension}"]
        assert (second[0].start, second[-1].stop) == (0, 25)
        assert all(one.stop == other.start for one, other in pairwise(second))
        assert origins[0].location == f"in/day-00{format.extension}"


@each_format
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_resumes_behind_every_offset(
    format: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("in")
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda sizes: sizes[0] > 0))
    whole = lay(format, directory, sizes, data.draw(st.integers(1, 50)))
    source = format.source(directory)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, data.draw(st.integers(3, 30)))
        reads = drain(source)
        assert ids(reads) == whole["id"].to_pylist()
        cut_small(patch, data.draw(st.integers(3, 30)))
        seen = 0
        for read in reads:
            seen += read.rows.num_rows
            assert ids(drain(source, read.offset)) == list(range(seen, whole.num_rows))


@each_format
def test_an_offset_is_plain_json_and_stays_as_it_was(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(format, tmp_path, [20, 20, 20])
    cut_small(monkeypatch, 7)
    reader = format.source(tmp_path).open(None, durable=True)
    assert isinstance(reader, Reader)
    offsets = []
    while (read := reader.read()) is not None:
        offsets.append((read.offset, json.dumps(read.offset)))
    assert all(json.dumps(offset) == text for offset, text in offsets)
    assert [len(offset["files"]) for offset, _ in offsets] == sorted(len(offset["files"]) for offset, _ in offsets)


@each_format
def test_new_files_come_after_all_known_ones(format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 10)
    format.put(events(0, 20), tmp_path / f"m{format.extension}")
    reads = drain(format.source(tmp_path))
    format.put(events(40, 60), tmp_path / f"z{format.extension}")
    format.put(events(20, 40), tmp_path / f"a{format.extension}")
    resumed = drain(format.source(tmp_path), reads[-1].offset)
    assert ids(resumed) == list(range(20, 60))
    in_the_middle = drain(format.source(tmp_path), reads[0].offset)
    assert ids(in_the_middle) == list(range(reads[0].rows.num_rows, 60))
    assert ids(drain(format.source(tmp_path), resumed[-1].offset)) == []


@each_format
def test_nothing_is_left_behind_the_last_offset(format: Format, tmp_path: Path) -> None:
    lay(format, tmp_path, [20, 5])
    reads = drain(format.source(tmp_path))
    assert drain(format.source(tmp_path), reads[-1].offset) == []


@each_format
@pytest.mark.parametrize("which", [0, 1])
def test_a_known_file_must_stay_as_it_was(format: Format, which: int, tmp_path: Path) -> None:
    lay(format, tmp_path, [20, 20])
    offset = drain(format.source(tmp_path))[-1].offset
    path = tmp_path / f"day-{which:02}{format.extension}"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(InputError, match=f"day-{which:02}.*changed since the last run.*bytes"):
        format.source(tmp_path).open(offset, durable=True)
    path.write_bytes(content + b"1")
    with pytest.raises(InputError, match=f"day-{which:02}.*changed since the last run"):
        format.source(tmp_path).open(offset, durable=True)
    path.write_bytes(content[:-20] + bytes(reversed(content[-20:])))
    with pytest.raises(InputError, match=f"day-{which:02}.*changed since the last run.*content"):
        format.source(tmp_path).open(offset, durable=True)
    path.unlink()
    with pytest.raises(InputError, match=rf"day-{which:02}\{format.extension} is gone"):
        format.source(tmp_path).open(offset, durable=True)
    path.write_bytes(content)
    assert drain(format.source(tmp_path), offset) == []


@each_format
def test_a_file_that_grows_while_it_is_read_is_an_error(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 10)
    path = format.put(events(0, 30), tmp_path / f"a{format.extension}")
    reader = format.source(tmp_path).open(None, durable=True)
    reader.read()
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(InputError, match="changed while it was read"):
        exhaust(reader)
    reader.close()


@each_format
def test_no_files(format: Format, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"_a{format.extension}").touch()
    (tmp_path / "in" / f".b{format.extension}").touch()
    (tmp_path / "in" / "c.txt").touch()
    source = format.source(tmp_path / "in")
    for call in (source.schema, lambda: source.open(None, durable=True)):
        with pytest.raises(InputError, match=rf"found no file to read; looked for .*\{format.extension}"):
            call()
    with pytest.raises(InputError, match="does not exist") as caught:
        format.source(tmp_path / "nowhere").schema()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("format", [*BINARY_FORMATS, CSV], ids=str)
def test_files_without_rows(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 0), tmp_path / f"a{format.extension}")
    assert drain(format.source(tmp_path)) == []
    format.put(events(0, 3), tmp_path / f"b{format.extension}")
    format.put(events(0, 0), tmp_path / f"c{format.extension}")
    reads = drain(format.source(tmp_path))
    assert ids(reads) == [0, 1, 2]
    assert reads[0].rows.schema.field("id").type == pa.int64()
    assert drain(format.source(tmp_path), reads[-1].offset) == []


@each_format
def test_a_zero_length_file(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 3), tmp_path / f"a{format.extension}")
    (tmp_path / f"b{format.extension}").touch()
    with pytest.raises(InputError, match=rf"b\{format.extension}: expected .*, found an empty file"):
        drain(format.source(tmp_path))


@each_format
@pytest.mark.parametrize("content", [b"PAR1", b"ARROW1\0\0", b"\x1f\x8b\x08\0junk", b"\xff\xff\xff\xff", bytes(500)])
def test_garbage_is_refused_by_name(format: Format, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"a{format.extension}").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\{format.extension}: "):
        drain(format.source(tmp_path))


@pytest.mark.parametrize("format", BINARY_FORMATS, ids=str)
def test_a_truncated_file_is_refused(format: Format, tmp_path: Path) -> None:
    path = format.put(events(0, 100), tmp_path / f"a{format.extension}")
    content = path.read_bytes()
    for size in {*range(0, len(content), 97), *range(len(content) - 12, len(content))}:
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=rf"a\{format.extension}: .*(truncated|cannot be read|found|ends)"):
            drain(format.source(tmp_path))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_give_rows_or_an_error(
    format: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = format.put(events(0, 40), tmp_path_factory.mktemp("in") / f"a{format.extension}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    reads = []
    with suppress(InputError):
        reads = drain(format.source(path))
    for read in reads:
        read.rows.validate(full=format is not PARQUET)


@each_format
def test_another_type_in_a_later_file(format: Format, tmp_path: Path) -> None:
    first = format.put(events(0, 20), tmp_path / f"day-06{format.extension}")
    changed = events(20, 40).set_column(2, "amount", pa.array(["much"] * 20))
    format.put(changed, tmp_path / f"day-07{format.extension}")
    reader = format.source(tmp_path).open(None, durable=True)
    read = reader.read()
    assert read is not None
    assert read.origin.location.endswith(first.name)
    with pytest.raises(InputError) as caught:
        reader.read()
    location = read.origin.location.replace("day-06", "day-07")
    assert str(caught.value) == (
        f'{location}: "amount" is string; earlier files have double.\n'
        "  Nothing from it was committed. Fix the file or pass schema=."
    )


@pytest.mark.parametrize("format", BINARY_FORMATS, ids=str)
def test_differences_are_found_before_anything_is_read(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 20), tmp_path / f"a{format.extension}")
    format.put(events(20, 40).set_column(0, "id", pa.array(["x"] * 20)), tmp_path / f"b{format.extension}")
    with pytest.raises(InputError, match='"id" is string; earlier files have int64'):
        format.source(tmp_path).schema()


@pytest.mark.parametrize("format", [*BINARY_FORMATS, CSV], ids=str)
def test_missing_and_additional_columns(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 20), tmp_path / f"a{format.extension}")
    format.put(events(20, 40).drop_columns(["amount"]), tmp_path / f"b{format.extension}")
    with pytest.raises(InputError, match=r'has no column "amount"; earlier files have it \(double\)'):
        drain(format.source(tmp_path))
    format.put(events(20, 40).append_column("more", pa.array([1] * 20)), tmp_path / f"b{format.extension}")
    with pytest.raises(InputError, match=r'has a column "more" \(int64\); earlier files do not'):
        drain(format.source(tmp_path))


def test_an_additional_name_in_json_is_an_error(tmp_path: Path) -> None:
    NDJSON.put(events(0, 20), tmp_path / "a.ndjson")
    NDJSON.put(events(20, 40).append_column("more", pa.array([1] * 20)), tmp_path / "b.ndjson")
    with pytest.raises(InputError, match=r'has a column "more" \(int64\); earlier files do not'):
        drain(NDJSON.source(tmp_path))


@each_format
def test_columns_are_matched_by_name(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 20), tmp_path / f"a{format.extension}")
    format.put(events(20, 40).select(["amount", "id", "name"]), tmp_path / f"b{format.extension}")
    reads = drain(format.source(tmp_path))
    assert table_of(reads, events(0, 0).schema).equals(events(0, 40))


@pytest.mark.parametrize("format", BINARY_FORMATS, ids=str)
def test_metadata_and_nullability_may_differ(format: Format, tmp_path: Path) -> None:
    required = pa.schema([field.with_nullable(False) for field in events(0, 0).schema], {"written": "by us"})
    format.put(events(0, 20).cast(required), tmp_path / f"a{format.extension}")
    nulls = pa.table({"id": pa.array([None], pa.int64()), "name": ["x"], "amount": [0.5]})
    format.put(nulls, tmp_path / f"b{format.extension}")
    reads = drain(format.source(tmp_path))
    assert ids(reads) == [*range(20), None]
    assert reads[0].rows.schema.field("id").nullable


@pytest.mark.parametrize("format", [PARQUET, CSV, NDJSON], ids=str)
def test_a_declared_schema_casts_what_fits(format: Format, tmp_path: Path) -> None:
    declared = pa.schema({"amount": pa.float32(), "id": pa.int32()})
    format.put(events(0, 20), tmp_path / f"a{format.extension}")
    format.put(events(20, 40).append_column("more", pa.array([1] * 20)), tmp_path / f"b{format.extension}")
    source = format.source(tmp_path, schema=declared)
    assert source.schema() == declared
    assert table_of(drain(source), declared).equals(events(0, 40).select(["amount", "id"]).cast(declared))


@pytest.mark.parametrize("format", [PARQUET, CSV, NDJSON], ids=str)
def test_a_declared_schema_refuses_what_does_not_fit(format: Format, tmp_path: Path) -> None:
    format.put(events(0, 300), tmp_path / f"a{format.extension}")
    with pytest.raises(InputError, match=rf"a\{format.extension}"):
        drain(format.source(tmp_path, schema=pa.schema({"id": pa.int8()})))


def test_a_lossy_cast_names_file_column_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cut_small(monkeypatch, 100)
    PARQUET.put(events(0, 300), Path("in/a.parquet"))
    source = PARQUET.source("in", schema={"id": pa.int8()})
    with pytest.raises(
        InputError, match=r'in/a.parquet rows 100-200: "id" is int64 and does not fit int8 without loss'
    ):
        drain(source)


def test_a_declared_schema_with_an_unknown_column(tmp_path: Path) -> None:
    PARQUET.put(events(0, 3), tmp_path / "a.parquet")
    with pytest.raises(InputError, match='no column "nmae"; did you mean "name"'):
        PARQUET.source(tmp_path, schema=pa.schema({"nmae": pa.string()})).schema()
    with pytest.raises(InputError, match='"name" is string; schema= says list'):
        PARQUET.source(tmp_path, schema=pa.schema({"name": pa.list_(pa.int64())})).schema()
    with pytest.raises(PipelineError, match=r"schema= must be a pyarrow\.Schema"):
        PARQUET.source(tmp_path, schema=7)


@pytest.mark.parametrize("format", BINARY_FORMATS, ids=str)
def test_nested_and_dictionary_columns_travel(format: Format, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(range(60), pa.int64()),
            "nested": pa.array([{"a": [n, None], "b": {"c": str(n)}} if n % 5 else None for n in range(60)]),
            "word": pa.array([f"w{n % 3}" for n in range(60)]).dictionary_encode(),
            "map": pa.array([[("k", n)] for n in range(60)], pa.map_(pa.string(), pa.int64())),
        }
    )
    format.put(table, tmp_path / f"a{format.extension}", 20)
    format.put(table, tmp_path / f"b{format.extension}", 60)
    reads = drain(format.source(tmp_path))
    assert table_of(reads, table.schema).to_pylist() == [*table.to_pylist(), *table.to_pylist()]
    assert ids(drain(format.source(tmp_path), reads[0].offset)) == ids(reads[1:])


def test_an_error_of_the_system_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PARQUET.put(events(0, 20), tmp_path / "a.parquet")

    def refuse(path: str) -> pa.NativeFile:
        raise PermissionError(13, "Permission denied", path)

    source = PARQUET.source(tmp_path)
    monkeypatch.setattr("engine.sources.file_listing.open_input", refuse)
    reader = source.open(None, durable=True)
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read: Permission denied") as caught:
        reader.read()
    assert isinstance(caught.value.__cause__, PermissionError)
    monkeypatch.undo()
    reader = source.open(None, durable=True)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.parquet: vanished"):
        reader.read()


@pytest.mark.parametrize("error", [MemoryError("injected"), pa.ArrowMemoryError("injected")])
def test_memory_that_runs_out_does_not_make_a_file_damaged(
    error: MemoryError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PARQUET.put(events(0, 20), tmp_path / "a.parquet")
    reader = PARQUET.source(tmp_path).open(None, durable=True)

    def scarce(path: str) -> pa.NativeFile:
        raise error

    monkeypatch.setattr("engine.sources.file_listing.open_input", scarce)
    with pytest.raises(SourceError, match=r"a\.parquet: there was not enough memory to read it"):
        reader.read()


@pytest.mark.parametrize("unreadable", [False] if os.geteuid() == 0 else [False, True])
def test_a_file_without_permission(unreadable: bool, tmp_path: Path) -> None:
    path = IPC_FILE.put(events(0, 20), tmp_path / "a.arrow")
    path.chmod(0o000 if unreadable else 0o400)
    source = IPC_FILE.source(tmp_path)
    if unreadable:
        with pytest.raises(SourceError, match="Permission denied"):
            source.schema()
    else:
        assert len(ids(drain(source))) == 20


def test_a_new_first_file_must_not_change_the_schema(tmp_path: Path) -> None:
    PARQUET.put(events(0, 20), tmp_path / "m.parquet")
    offset = drain(PARQUET.source(tmp_path))[-1].offset
    PARQUET.put(events(20, 30).drop_columns(["name"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: has no column .name."):
        PARQUET.source(tmp_path).open(offset, durable=True)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    IPC_FILE.put(table, tmp_path / "a.arrow")
    with pytest.raises(InputError, match='has two columns "a"'):
        IPC_FILE.source(tmp_path).schema()


def test_only_some_files_are_looked_at_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_source, "AHEAD_FILES", 2)
    for name in ("a", "b", "c"):
        table = events(0, 3) if name < "c" else events(0, 3).drop_columns(["id"])
        PARQUET.put(table, tmp_path / f"{name}.parquet")
    source = PARQUET.source(tmp_path)
    source.schema()
    with pytest.raises(InputError, match="has no column"):
        drain(source)
