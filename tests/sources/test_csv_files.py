"""Headers, types that are inferred once, quoting, compression."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from formats import drain, exhaust, ids, table_of

from engine.errors import InputError, PipelineError
from engine.sources import csv, csv_files


def rows(source: csv_files.CsvSource) -> list[dict[str, object]]:
    return table_of(drain(source), source.schema()).to_pylist()


def test_types_are_those_of_the_first_file_with_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,note,when\n")
    (tmp_path / "b.csv").write_text("id,note,when\n1,,2024-01-01\n")
    (tmp_path / "c.csv").write_text("id,note,when\n2,007,2024-01-02\n")
    source = csv(tmp_path)
    assert source.schema() == pa.schema({"id": pa.int64(), "note": pa.string(), "when": pa.date32()})
    assert [row["note"] for row in rows(source)] == ["", "007"]


def test_header_only_files_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,note\n")
    (tmp_path / "b.csv").write_text("id,note\n")
    source = csv(tmp_path)
    assert source.schema() == pa.schema({"id": pa.string(), "note": pa.string()})
    assert rows(source) == []


def test_a_value_that_does_not_fit_behind_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_files, "BATCH_BYTES", 64)
    (tmp_path / "a.csv").write_text("id\n" + "".join(f"{n}\n" for n in range(100)) + "x\n")
    reader = csv(tmp_path).open(None, durable=True)
    with pytest.raises(InputError, match=r"a\.csv: cannot be read behind row \d+ as CSV: .*int64: invalid value 'x'"):
        exhaust(reader)
    reader.close()


def test_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1;x\n2;y\n")
    assert rows(csv(tmp_path, header=False, delimiter=";")) == [{"f0": 1, "f1": "x"}, {"f0": 2, "f1": "y"}]
    named = csv(tmp_path, header=False, delimiter=";", schema={"id": pa.int32(), "name": pa.string()})
    assert rows(named) == [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]


def test_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,text\r\n1,"a\r\nb, ""c"""\r\n')
    assert rows(csv(tmp_path)) == [{"id": 1, "text": 'a\r\nb, "c"'}]


def test_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n1\n") + gzip.compress(b"2\n"))
    with pa.CompressedOutputStream(str(tmp_path / "b.csv.zst"), "zstd") as file:
        file.write(b"id\n3\n4\n")
    reads = drain(csv(tmp_path))
    assert ids(reads) == [1, 2, 3, 4]
    assert ids(drain(csv(tmp_path), reads[0].offset)) == [3, 4]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n" + bytes(range(48, 58)) * 2000)[:-9])
    with pytest.raises(InputError, match=r"a\.csv\.gz: "):
        drain(csv(tmp_path))
    (tmp_path / "a.csv.gz").write_bytes(b"id\n1\n")
    with pytest.raises(InputError, match="expected compressed CSV, found 5 bytes of text"):
        drain(csv(tmp_path))


@pytest.mark.parametrize("content", [b"a,b\n1,2\n3\n", b'a,b\n1,"x\n2,y\n', b"a,b\n1,\xff\xfe\n", b"a,a\n1,2\n", b""])
def test_broken_text(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv: "):
        drain(csv(tmp_path, schema={"a": pa.int64(), "b": pa.string()}))


def test_a_quote_that_is_not_closed_is_an_error_and_a_closed_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,x\n2,"y\n"')
    assert rows(csv(tmp_path))[1] == {"a": 2, "b": "y\n"}
    (tmp_path / "a.csv").write_text('a,b\n1,"x\n2,y\n')
    with pytest.raises(InputError, match="a quote is not closed"):
        drain(csv(tmp_path))


def test_a_delimiter_is_one_character(tmp_path: Path) -> None:
    for delimiter in ("", "::", '"', "\n", "é", 7):
        with pytest.raises(PipelineError, match="delimiter= must be"):
            csv(tmp_path, delimiter=delimiter)


def test_a_type_that_text_cannot_give(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    with pytest.raises(InputError, match="not supported"):
        csv(tmp_path, schema={"id": pa.list_(pa.int64())}).schema()
