"""Lines, types that are inferred once, and faults by line."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from formats import drain, ids, table_of

from engine.errors import InputError
from engine.sources import ndjson, ndjson_files


def test_the_last_line_needs_no_newline_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"id": 1}\n\n \n{"id": 2}')
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(b'{"id": 3}\n'))
    assert ids(drain(ndjson(tmp_path))) == [1, 2, 3]


def test_absent_names_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "tags": ["x"]}\n{"id": 2}\n{}\n')
    source = ndjson(tmp_path)
    assert table_of(drain(source), source.schema())["tags"].to_pylist() == [["x"], None, None]


def test_the_bad_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson_files, "BLOCK_BYTES", 200)
    lines = [f'{{"id": {n}}}' for n in range(200)]
    for bad, told in (
        ('{"id": "x"}', r"Column\(/id\) changed from number to string"),
        ('{"id": 1', "Missing a comma or"),
        ('{"id": 1, "more": 2}', r'a name that earlier lines do not have \("more"\)'),
        ("[1]", r"Column\(\) changed from object to array"),
    ):
        (tmp_path / "a.jsonl").write_text("\n".join([*lines[:123], bad, *lines[123:]]))
        with pytest.raises(InputError, match=rf"a\.jsonl: line 124 cannot be read: {told}"):
            drain(ndjson(tmp_path))


def test_a_declared_schema_decides(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "more": {}, "at": "2024-01-01 00:00:00"}\n{"id": 2.5}\n')
    declared = pa.schema({"at": pa.timestamp("us"), "id": pa.float64(), "none": pa.string()})
    source = ndjson(tmp_path, schema=declared)
    assert table_of(drain(source), declared)["id"].to_pylist() == [1.0, 2.5]


def test_nothing_to_take_a_schema_from(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no file holds a row to take the schema from"):
        ndjson(tmp_path).schema()
    assert drain(ndjson(tmp_path, schema={"id": pa.int64()})) == []
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n')
    assert ids(drain(ndjson(tmp_path))) == [1]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: .*UTF"):
        drain(ndjson(tmp_path))


def test_a_line_longer_than_a_block_and_one_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "' + "x" * 5000 + '"}\n{"id": 2, "text": ""}\n')
    monkeypatch.setattr(ndjson_files, "BLOCK_BYTES", 100)
    assert ids(drain(ndjson(tmp_path))) == [1, 2]
    monkeypatch.setattr(ndjson_files, "LINE_BYTES_MAX", 4000)
    with pytest.raises(InputError, match="a line is longer than 4,000 bytes"):
        drain(ndjson(tmp_path))
