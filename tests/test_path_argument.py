"""Whatever takes a path says which argument was wrong, and touches nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import Pipeline, sinks, sources
from engine.errors import PipelineError
from engine.path_argument import path_fault

TAKERS: dict[str, Callable[[Any], object]] = {
    "log": engine.Log,
    "sinks.arrow_ipc": sinks.arrow_ipc,
    "sinks.duckdb": lambda path: sinks.duckdb(path, table="t"),
    "sinks.log": sinks.log,
    "sinks.parquet": sinks.parquet,
    "sinks.sqlite": lambda path: sinks.sqlite(path, table="t"),
    "sources.log": sources.log,
    "sources.parquet": sources.parquet,
    "state": lambda path: engine.run(pipeline(), state=path),
}


def pipeline() -> Pipeline:
    return Pipeline("p").read(sources.memory([{"n": 1}], id="rows")).write(sinks.call(lambda rows, token: None))


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("path", [5, b"out", "", "a\0b", "a\ud800", True], ids=repr)
def test_what_is_no_path_is_named(taker: str, path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"path|database|directory|no file"):
        TAKERS[taker](path)
    assert os.listdir(tmp_path) == []


def test_what_is_wrong_with_a_path() -> None:
    assert path_fault("out") is path_fault(Path("out")) is None
    assert path_fault(5) == "the path must be a text or a Path, found 5"
    assert path_fault("", "database") == "the database is empty"
