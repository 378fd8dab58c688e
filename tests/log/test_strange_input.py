"""Odd input: it comes back as it was, or an error of engine says why not."""

import time
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from engine import Log
from engine.errors import InputError, LogError, PipelineError
from engine.sinks import log as log_sink


def dictionary() -> pa.DictionaryArray:
    return pa.array(["a", "b", None, "a"]).dictionary_encode()


def test_a_dictionary_inside_an_extension_comes_back(tmp_path):
    column = pa.ExtensionArray.from_storage(pa.opaque(dictionary().type, "kind", "vendor"), dictionary())
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"c": column}))
        assert next(log.read()).column("c").equals(column)


def test_a_dictionary_of_dictionaries_is_refused_because_arrow_cannot_read_it(tmp_path):
    nested = pa.DictionaryArray.from_arrays(pa.array([0, 3], pa.int8()), dictionary())
    for column in (nested, pa.StructArray.from_arrays([nested], ["f"])):
        table = pa.table({"c": column})
        with Log(tmp_path / "log") as log:
            with pytest.raises(InputError, match="dictionary of dictionaries"):
                log.append(table)
            assert log.end() == 0
            assert log.schema is None  # a refused append decides nothing
        assert log_sink(tmp_path / "sink").faults(table.schema)


def test_metadata_of_fields_is_that_of_the_append(tmp_path):
    with Log(tmp_path / "log") as log:
        for value in ("x", "y"):
            field = pa.field("a", pa.int64(), metadata={"k": value})
            log.append(pa.record_batch([pa.array([1])], schema=pa.schema([field])))
        assert [rows.schema.field(0).metadata[b"k"] for rows in log.read()] == [b"x", b"y"]


@pytest.mark.parametrize("bad", ["0", 0.0, 1.5, True, float("nan"), date(2026, 1, 1), datetime(2026, 1, 1), []])
def test_offsets_and_partitions_are_whole_numbers(tmp_path, bad):
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"a": [1, 2]}))
        for call in (
            lambda: list(log.read(bad)),
            lambda: list(log.read(0, bad)),
            lambda: next(log.tail(bad)),
            lambda: log.end(partition=bad),
            lambda: log.append(pa.table({"a": [1]}), partition=bad),
            lambda: log.groups["g"].commit(bad),
            lambda: log.groups["g"].rewind(0, partition=bad),
        ):
            with pytest.raises(LogError):
                call()
        assert list(log.groups) == []


def test_numbers_of_numpy_are_numbers(tmp_path):
    with Log(tmp_path / "log") as log:
        log.append(pa.table({"a": [1, 2]}), partition=np.int64(0))
        log.groups["g"].commit(np.int64(2))
        assert log.groups["g"].offsets() == (2,)
        assert [rows.num_rows for rows in log.read(np.int64(1), datetime(9000, 1, 1, tzinfo=UTC))] == [1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": b"x"},
        {"path": "a\0"},
        {"path": ""},
        {"path": 5},
        {"partitions": "2"},
        {"partitions": 2.5},
        {"partitions": True},
        {"schema": {"a": 1}},
        {"compression": []},
        {"retain_age_s": -1},
        {"retain_age_s": "x"},
        {"retain_age_s": float("nan")},
        {"retain_age_s": float("inf")},
    ],
    ids=repr,
)
def test_a_log_is_not_made_of_nonsense(tmp_path, arguments):
    with pytest.raises(PipelineError, match="log: "):
        Log(**{"path": tmp_path / "log", **arguments})
    assert not (tmp_path / "log").exists()


def test_a_closed_log_removes_nothing(tmp_path):
    log = Log(tmp_path / "log")
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.roll()


@pytest.mark.parametrize("write", [True, False])
def test_tail_goes_on_where_it_is_and_not_from_the_start_of_the_segment(tmp_path, write):
    count = 1_500
    with Log(tmp_path / "log", sync=False) as log:
        for number in range(count):
            log.append(pa.record_batch({"a": [number]}))
        with Log(tmp_path / "log", write=False) as beside:
            begun = time.process_time()
            rows = (log if write else beside).tail(0)
            assert [next(rows).column("a")[0].as_py() for _ in range(count)] == list(range(count))
            assert time.process_time() - begun < 2
