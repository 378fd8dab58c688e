"""``engine log`` on rows that JSON has no form for, and places that are none."""

import pyarrow as pa
import pytest

from engine import Log
from engine.cli.main import main


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": pa.array([2932907], pa.date32())}),
        pa.table({"a": pa.array([-(10**15)], pa.timestamp("s"))}),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]),
    ],
    ids=["date", "time", "names"],
)
def test_rows_without_a_form_in_json_are_told(tmp_path, capfd, table):
    with Log(tmp_path / "log") as log:
        log.append(table)
    assert main(["log", "replay", str(tmp_path / "log")]) == 1
    errors = capfd.readouterr().err
    assert errors.startswith("LogError: rows cannot be shown as JSON")
    assert "--format arrow" in errors


@pytest.mark.parametrize("place", ["²", "0001-01-01", "x"])
def test_places_that_are_none_are_told(tmp_path, capfd, place, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"a": [1]}))
    code = main(["log", "replay", str(tmp_path / "log"), "--start", place])
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert code == 0 or errors.startswith("LogError: ")
