"""``engine log`` on a log that is being written, and on a damaged one: it tells, and changes nothing."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from engine import Log
from engine.cli.main import main


@pytest.fixture
def path(tmp_path) -> Path:
    with Log(tmp_path / "log", partitions=2, segment_bytes=400) as log:
        for start in range(0, 30, 10):
            moments = [datetime(2026, 3, 1, n % 24, tzinfo=UTC) for n in range(start, start + 10)]
            rows = {"n": range(start, start + 10), "bytes": [b"\x00\xff"] * 10, "at": moments}
            log.append(pa.table({name: pa.array(values) for name, values in rows.items()}))
        log.groups["billing"].commit(12)
    return tmp_path / "log"


def files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_what_is_there(path, capsys):
    before = files(path)
    with Log(path):  # somebody writes meanwhile
        before |= files(path)
        assert main(["log", "ls", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [" ".join(line.split()[:4]) for line in lines[1:]] == ["0 0 - 10", "0 10 - 20", "0 20 - 30"]
        assert main(["log", "show", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "2 partitions\n  n: int64\n  bytes: binary\n" in shown
        assert "partition 0: rows 0 to 30\npartition 1: rows 0 to 0\n" in shown
        assert "group billing: 18 rows behind, at 12, 0\n" in shown
        assert main(["log", "verify", str(path)]) == 0
        assert capsys.readouterr().out.count("sound") == 3
    assert {name: data for name, data in files(path).items() if not name.endswith("durable")}.items() <= before.items()


def test_rows_are_written_out(path, capfdbinary):
    assert main(["log", "replay", str(path), "--start", "8", "--stop", "11"]) == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["n"] for row in rows] == [8, 9, 10]
    assert rows[0] == {"n": 8, "bytes": "AP8=", "at": "2026-03-01T08:00:00+00:00"}
    assert main(["log", "replay", str(path), "--format", "arrow"]) == 0
    with ipc.open_stream(capfdbinary.readouterr().out) as reader:
        assert reader.read_all().column("n").to_pylist() == list(range(30))
    assert main(["log", "replay", str(path), "--start", "2100-01-01"]) == 0
    assert capfdbinary.readouterr().out == b""
    assert main(["log", "replay", str(path), "--start", "yesterday"]) == 1
    assert b"'yesterday' is no offset and no time" in capfdbinary.readouterr().err


def test_tail_follows(path, monkeypatch, capsys):
    def interrupted(_self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.storage.Storage.pause", interrupted)
    assert main(["log", "tail", str(path), "--start", "25"]) == 130
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == list(range(25, 30))


def test_damage_is_told_and_left(path, capsys):
    second = sorted(path.rglob("*.seg"))[1]
    data = bytearray(second.read_bytes())
    data[200] ^= 1
    second.write_bytes(bytes(data))
    before = files(path)
    assert main(["log", "verify", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out.count("sound") == 2
    assert f"{second.name}: rows 10 to 10 DAMAGED at byte 64: the checksum of the frame's body is wrong" in out
    assert "1 damaged segment; nothing was changed" in err
    assert files(path) == before
    newest = sorted(path.rglob("*.seg"))[-1]
    newest.write_bytes(newest.read_bytes() + bytes(100))
    main(["log", "verify", str(path)])
    assert "100 bytes behind them were never acknowledged" in capsys.readouterr().out


def test_names_stay_on_their_line(tmp_path, capsys):
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"a\nb": [1], "é": [2]}))
        log.groups["g\n\x1b[2J é"].commit(1)
    assert main(["log", "show", str(tmp_path / "log")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  a\\nb: int64",
        "  é: int64",
        "partition 0: rows 0 to 1",
        "group g\\n\\x1b[2J é: 0 rows behind, at 1",
    ]


def test_no_log(tmp_path, capsys):
    assert main(["log", "ls", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "is no log" in said
    assert "`engine run` makes one" in said
    assert "write=" not in said


def test_floats_that_json_lacks_are_null(tmp_path, capsys):
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"x": [1.5, float("nan"), float("-inf")], "many": [[float("nan"), 2.0], [], None]}))
    assert main(["log", "replay", str(tmp_path / "log")]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in capsys.readouterr().out.splitlines()]
    expected = [(1.5, [None, 2.0]), (None, []), (None, None)]
    assert [(row["x"], row["many"]) for row in rows] == expected
