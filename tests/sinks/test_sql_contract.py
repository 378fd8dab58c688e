"""The sinks of databases under ``check_sink``, as their users would call it."""

import os
import sqlite3

import adbc_driver_postgresql.dbapi
import duckdb
import pyarrow as pa
import pytest
from databases import marks

from engine import sinks
from engine.testing import check_sink

NOTHING = pa.table({"number": pa.array([], pa.int64()), "text": pa.array([], pa.utf8())})

NO_TABLE = (sqlite3.OperationalError, duckdb.CatalogException, adbc_driver_postgresql.dbapi.ProgrammingError)


@pytest.mark.parametrize("mode", ["error", "append"])
def test_our_sinks_of_databases(database, mode):
    opened = []

    def make_sink():
        opened.append(database.sink(mode=mode))
        return opened[-1]

    def read_rows():
        try:
            found = database.arrow("SELECT number, text FROM events")
        except NO_TABLE:
            return NOTHING
        return found if found.num_rows else NOTHING

    def staged():
        # The segments of the last commit stay until the next one: they prove how far the database must be.
        [(_, _, committed)] = marks(database)
        return [name for name in os.listdir(opened[-1].directory) if int(name.split("-")[0]) > committed]

    check_sink(make_sink, read_rows=read_rows, staged=staged, shared=mode == "append", interruptions=2)
    assert len({sink.directory for sink in opened}) == 1
    assert {sink.pipeline for sink in opened} == {"check_sink"}
    assert len(opened) > 15
    assert not os.path.exists(os.path.dirname(opened[0].directory))


def test_a_directory_that_is_set_stays(tmp_path):
    target, state = str(tmp_path / "out.db"), str(tmp_path / "state")
    found = []

    def make_sink():
        sink = sinks.sqlite(target, table="events")
        sink.directory = state
        found.append(sink)
        return sink

    with pytest.raises(AssertionError, match="breaks the law that commit makes the prepared rows visible"):
        check_sink(make_sink, read_rows=lambda: NOTHING)
    assert {sink.directory for sink in found} == {state}
    assert os.path.isdir(state)
