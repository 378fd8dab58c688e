"""Columns, Hive directories, and seeking by row groups."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import PARQUET, cut_small, drain, events, ids, table_of

from engine.errors import InputError, PipelineError
from engine.sources import parquet


def test_chosen_columns_in_the_order_given(tmp_path: Path) -> None:
    PARQUET.put(events(0, 30), tmp_path / "a.parquet")
    PARQUET.put(events(30, 60).drop_columns(["name"]), tmp_path / "b.parquet")
    source = parquet(tmp_path, columns=["amount", "id"])
    assert source.schema().names == ["amount", "id"]
    assert table_of(drain(source), source.schema()).equals(events(0, 60).select(["amount", "id"]))


def test_chosen_columns_that_are_not_there(tmp_path: Path) -> None:
    PARQUET.put(events(0, 30), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r'no column "amoun"; did you mean "amount"\? \(id, name, amount\)'):
        parquet(tmp_path, columns=["amoun"]).schema()
    for columns in ("id", [], ["id", "id"]):
        with pytest.raises(PipelineError, match="columns= must be"):
            parquet(tmp_path, columns=columns)
    with pytest.raises(PipelineError, match='columns= does not fit schema=: no column "b"'):
        parquet(tmp_path, columns=["b"], schema=pa.schema({"a": pa.int64()}))


def test_chosen_columns_of_a_declared_schema(tmp_path: Path) -> None:
    PARQUET.put(events(0, 30), tmp_path / "a.parquet")
    source = parquet(tmp_path, columns=["amount"], schema={"id": pa.int64(), "amount": pa.float32()})
    assert source.schema() == pa.schema({"amount": pa.float32()})
    assert table_of(drain(source), source.schema()).num_rows == 30


def hive(root: Path) -> None:
    PARQUET.put(events(0, 3), root / "day=1" / "kind=a%20b" / "x.parquet")
    PARQUET.put(events(3, 6), root / "day=__HIVE_DEFAULT_PARTITION__" / "kind=c" / "x.parquet")
    PARQUET.put(events(6, 9), root / "day=-12" / "kind=7" / "x.parquet")


def test_hive_directories_become_columns(tmp_path: Path) -> None:
    hive(tmp_path / "in")
    source = parquet(tmp_path / "in")
    assert source.schema() == pa.schema([*events(0, 0).schema, ("day", pa.int64()), ("kind", pa.string())])
    rows = table_of(drain(source), source.schema()).sort_by("id").to_pylist()
    assert [(row["day"], row["kind"]) for row in rows] == [(1, "a b")] * 3 + [(None, "c")] * 3 + [(-12, "7")] * 3
    assert parquet(tmp_path / "in", hive=False).schema() == events(0, 0).schema
    only = parquet(tmp_path / "in", columns=["day"])
    assert sorted(table_of(drain(only), only.schema())["day"].to_pylist(), key=str) == [-12] * 3 + [1] * 3 + [None] * 3
    declared = parquet(tmp_path / "in", schema={"id": pa.int64(), "day": pa.string()})
    assert "-12" in table_of(drain(declared), declared.schema())["day"].to_pylist()


def test_hive_directories_above_the_given_one_do_not_count(tmp_path: Path) -> None:
    hive(tmp_path / "year=2024")
    assert "year" not in parquet(tmp_path / "year=2024").schema().names
    assert parquet(tmp_path / "year=2024" / "day=1").schema().names[-1] == "kind"
    assert parquet(str(tmp_path / "year=2024" / "*" / "*" / "*.parquet")).schema().names[-2:] == ["day", "kind"]
    assert parquet(tmp_path / "year=2024/day=1/kind=a%20b/x.parquet").schema().names == events(0, 0).schema.names


def test_a_column_of_the_file_wins_over_its_directory(tmp_path: Path) -> None:
    PARQUET.put(events(0, 3), tmp_path / "id=7" / "x.parquet")
    assert ids(drain(parquet(tmp_path))) == [0, 1, 2]


def test_hive_types_must_not_change_behind_an_offset(tmp_path: Path) -> None:
    PARQUET.put(events(0, 3), tmp_path / "day=1" / "x.parquet")
    offset = drain(parquet(tmp_path))[-1].offset
    PARQUET.put(events(3, 6), tmp_path / "day=2" / "x.parquet")
    assert ids(drain(parquet(tmp_path), offset)) == [3, 4, 5]
    PARQUET.put(events(6, 9), tmp_path / "day=x" / "x.parquet")
    with pytest.raises(InputError, match='"day" is string; earlier files have int64'):
        parquet(tmp_path).open(offset, durable=True)
    PARQUET.put(events(6, 9), tmp_path / "other" / "x.parquet")
    with pytest.raises(InputError, match='has no column "day"'):
        parquet(tmp_path).schema()


def test_seeking_touches_no_earlier_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PARQUET.put(events(0, 400), tmp_path / "a.parquet", 100)
    cut_small(monkeypatch, 60)
    offset = next(read.offset for read in drain(parquet(path)) if read.origin.stop >= 240)
    asked = []
    decode = pq.ParquetFile.iter_batches

    def watch(self: pq.ParquetFile, *args: object, **options: object) -> object:
        asked.append(options["row_groups"])
        return decode(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    assert ids(drain(parquet(path), offset)) == list(range(240, 400))
    assert asked == [[2, 3]]


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    count = 1_000_000
    table = pa.table({"id": pa.array(range(count), pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=count, compression=None, use_dictionary=False)
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 1
    before = pa.total_allocated_bytes()
    reader = parquet(tmp_path).open(None, durable=True)
    most = 0
    while reader.read() is not None:
        most = max(most, pa.total_allocated_bytes() - before)
    reader.close()
    assert 0 < most < 4 << 20


def test_an_encrypted_or_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PARE" + bytes(60) + b"PARE")
    with pytest.raises(InputError, match="is an encrypted Parquet file"):
        parquet(tmp_path).schema()
    (tmp_path / "a.parquet").write_bytes(b"id,name\n1,x\n")
    with pytest.raises(InputError, match="expected a Parquet file, found 12 bytes of text"):
        parquet(tmp_path).schema()
