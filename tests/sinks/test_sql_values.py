"""Which values come back from a database as they were, and which are refused by the name of their column."""

import sqlite3
import sys
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal

import arrow_columns
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from databases import Duckdb, Postgres, Sqlite
from sink_runs import OTHER, opened, staged

from engine import sinks
from engine.errors import PipelineError, SinkError
from engine.sinks.sql_target import RefusedError, decoded_type

COLUMNS = {
    **arrow_columns.SAME,
    **{name: column for name, (column, _) in arrow_columns.CHANGED.items()},
    **arrow_columns.NOT_IN_PARQUET,
}

EDGES = {
    "int64": pa.array([-(2**63), 2**63 - 1, None]),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "uint32": pa.array([2**32 - 1, 0, None], pa.uint32()),
    "double": pa.array([0.1, float("inf"), -float("inf"), 5e-324, 1.7976931348623157e308, None]),
    "float": pa.array([0.1, 3.4e38, None], pa.float32()),
    "decimal of 38 digits": pa.array([Decimal("9" * 38), Decimal("-" + "9" * 38), None], pa.decimal128(38, 0)),
    "decimal of small parts": pa.array([Decimal("0.0000000001"), Decimal("-1E-10"), None], pa.decimal128(20, 10)),
    "text": pa.array(["", "'", '"', "%s ? $1 \\N", "\t\n\r", "äöü", "🎉" * 100, "e\u0301", None]),
    "binary": pa.array([b"", b"\0", bytes(range(256)), b"\\x00", None]),
    "date": pa.array([date(1, 1, 1), date(1969, 12, 31), date(9999, 12, 31), None]),
    "timestamp": pa.array([datetime(1, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999_999), None], pa.timestamp("us")),
    "zoned": pa.array([datetime(1900, 1, 1), datetime(2024, 3, 31, 1, 30), None], pa.timestamp("us", "Europe/Berlin")),
}

REFUSED = {
    "sqlite": {
        *("uint64", "duration[s]", "null", "interval", "struct of nothing", "uuid", "json", "fixed list", "struct"),
        *(
            "map",
            "list of dictionaries",
            "list of dictionaries of views",
            "list of structs",
            "sparse union",
            "dense union",
            "struct of views",
        ),
        *("views in a struct in a list", *arrow_columns.LISTS),
    },
    "duckdb": {
        *("time64[ns]", "timestamp[ns, tz=Europe/Berlin]", "duration[s]", "decimal256(50, 2)", "null", "interval"),
        *(
            "struct of nothing",
            "sparse union",
            "dense union",
            "list of dictionaries",
            "list of dictionaries of views",
            "uuid",
            "json",
            "map",
        ),
        *("list_view<item: int64>", "large_list_view<item: int64>"),
    },
    "postgres": {
        *("time64[ns]", "timestamp[ns, tz=Europe/Berlin]", "duration[s]", "null", "interval", "uuid", "json", "map"),
        *(
            "struct of nothing",
            "fixed list",
            "struct",
            "list of dictionaries",
            "list of dictionaries of views",
            "list of structs",
            "sparse union",
        ),
        *("dense union", "struct of views", "views in a struct in a list", *arrow_columns.LISTS),
    },
}


def decoded(column):
    while pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type):
        if pa.types.is_dictionary(column.type):
            values = column.dictionary.to_pylist()
            found = [None if index is None else values[index] for index in column.indices.to_pylist()]
            column = pa.array(found, column.type.value_type)
        else:
            column = pc.run_end_decode(column)
    return column


def through(database, tmp_path, rows):
    sink = database.sink()
    sink.directory = str(tmp_path / "segments")
    opened(sink, rows.schema)
    sink.commit([staged(sink, rows)])
    return database.arrow("SELECT * FROM events")


def count_of(time, unit):
    """A time of day as text, in units since midnight: Arrow does not read those."""
    hours, minutes, seconds = time.split(":")
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    return int((Decimal(seconds) + 60 * int(minutes) + 3600 * int(hours)).scaleb(digits))


def came_back(found, kind):
    """A column as the database gave it, in the type that it had: a cast that loses nothing."""
    column = found.combine_chunks()
    if pa.types.is_decimal(kind):
        return pa.array([None if value is None else Decimal(str(value)) for value in column.to_pylist()], kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None and pa.types.is_string(column.type):
        return column.cast(pa.timestamp(kind.unit, "UTC")).cast(kind)
    if kind == pa.uint64() and pa.types.is_string(column.type):
        return pa.array([None if value is None else int(value) for value in column.to_pylist()], kind)
    if pa.types.is_time(kind) and pa.types.is_string(column.type):
        return pa.array([value if value is None else count_of(value, kind.unit) for value in column.to_pylist()], kind)
    if pa.types.is_float16(kind):
        return column.cast(pa.float32()).cast(kind)
    return column.cast(kind)


def table_of(columns):
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def as_long_as_the_longest(columns):
    """Nulls at the end of those that are shorter."""
    length = max(map(len, columns.values()))
    missing = {name: pa.nulls(length - len(column), column.type) for name, column in columns.items()}
    return {name: pa.concat_arrays([column, missing[name]]) for name, column in columns.items()}


@contextmanager
def of_column(name):
    """What fails here names the column."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f'column "{name}" does not come back as it was') from error


def test_columns_come_back_or_are_refused_by_name(database, tmp_path):
    refused = {name: column for name, column in COLUMNS.items() if name in REFUSED[database.kind]}
    kept = {name: column for name, column in COLUMNS.items() if name not in refused}
    assert refused.keys() == REFUSED[database.kind]
    faults = database.sink().faults(table_of(COLUMNS).schema)
    told = [f'column "{name}" is {column.type}' for name, column in refused.items()]
    assert [fault.split("; ")[0] for fault in faults] == told
    with pytest.raises(SinkError) as raised:
        through(database, tmp_path, table_of(COLUMNS))
    assert [message for message in told if f"{message}; " not in str(raised.value)] == []
    found = through(database, tmp_path, table_of(kept))
    for name, column in kept.items():
        with of_column(name):
            check_column(found.column(name), column)


def check_column(found, column):
    if pa.types.is_nested(decoded_type(column.type)):
        assert found.to_pylist() == column.to_pylist()
        return
    expected = decoded(column)
    assert came_back(found, expected.type).equals(expected)


def test_values_at_the_edge_come_back(database, tmp_path):
    edges = {name: column for name, column in EDGES.items() if (name, database.kind) != ("uint64", "sqlite")}
    edges = as_long_as_the_longest(edges)
    found = through(database, tmp_path, table_of(edges))
    for name, column in edges.items():
        with of_column(name):
            assert came_back(found.column(name), column.type).equals(column)


def test_slices_come_back(database, tmp_path):
    rows = pa.record_batch(
        {"id": pa.array(range(100)), "flag": [i % 3 == 0 for i in range(100)], "t": ["x", None] * 50}
    )
    found = through(database, tmp_path, rows.slice(13, 40))
    assert found.column("id").to_pylist() == list(range(13, 53))
    assert [bool(value) for value in found.column("flag").to_pylist()] == rows.slice(13, 40).column("flag").to_pylist()
    assert found.column("t").to_pylist() == rows.slice(13, 40).column("t").to_pylist()


def test_names_are_names_whatever_is_in_them(database, tmp_path):
    names = ['odd "name"', "select", "ä ö", "?", "$1", "a.b", "%s"]
    rows = pa.record_batch({**{name: [number, number + 1] for number, name in enumerate(names)}, "id": [30, 40]})
    for number, name in enumerate(names):
        sink = database.sink(name)
        sink.directory = str(tmp_path / f"segments-{number}")
        opened(sink, rows.schema)
        sink.commit([staged(sink, rows)])
        quoted = name.replace('"', '""')
        assert database.execute(f'SELECT * FROM "{quoted}"') == [(*range(7), 30), (*range(1, 8), 40)], name
        opened(sink, rows.schema, epoch=1)


def test_what_a_database_cannot_hold_is_found_before_it_is_committed(database, tmp_path):
    bad = {
        "sqlite": (pa.array([1.0, float("nan")]), "holds NaN"),
        "duckdb": (pa.array([2**62], pa.timestamp("s", "UTC")), "would result in out of bounds"),
        "postgres": (pa.array(["a\0b"]), "a zero byte"),
    }
    column, message = bad[database.kind]
    sink = database.sink()
    sink.directory = str(tmp_path / "segments")
    rows = pa.RecordBatch.from_arrays([column], ["it"])
    opened(sink, rows.schema)
    with pytest.raises(SinkError, match=message):
        staged(sink, rows)
    assert list((tmp_path / "segments").iterdir()) == []


def test_text_that_is_none_is_found_before_it_is_committed(database, tmp_path):
    sink = database.sink()
    sink.directory = str(tmp_path / "segments")
    column = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    rows = pa.RecordBatch.from_arrays([column], ["it"])
    opened(sink, rows.schema)
    with pytest.raises(SinkError, match="UTF8"):
        staged(sink, rows)


@pytest.mark.parametrize("day", [-(2**31), -2_440_589, 2_145_042_906, 2**31 - 1])
def test_postgres_has_less_time_than_arrow(day):
    column = sinks.postgres("postgresql://h/d", table="t")._target.column("it", pa.date32())
    with pytest.raises(RefusedError, match="beyond those of PostgreSQL"):
        column.stored(pa.array([day, None], pa.int32()).cast(pa.date32()))


def test_the_first_and_last_moments_of_postgres(postgres_server, tmp_path):
    database = Postgres(postgres_server, "moments")
    rows = pa.record_batch(
        {
            "day": pa.array([-2_440_588, 2_145_042_905], pa.int32()).cast(pa.date32()),
            "at": pa.array([-210_866_803_200_000_000, 2**63 - 1], pa.timestamp("us")),
        }
    )
    found = through(database, tmp_path, rows)
    assert found.column("day").cast(pa.int32()).to_pylist() == [-2_440_588, 2_145_042_905]
    assert found.column("at").cast(pa.int64()).to_pylist() == [-210_866_803_200_000_000, 2**63 - 1]


# -- what cannot be written to at all --


@pytest.mark.parametrize("path", ["", ":memory:", "file::memory:?cache=shared"])
def test_sqlite_in_memory(path):
    with pytest.raises(PipelineError, match="is no file"):
        sinks.sqlite(path, table="t")


@pytest.mark.parametrize("path", ["", ":memory:", ":memory:named", "md:cloud"])
def test_duckdb_in_memory(path):
    with pytest.raises(PipelineError, match="is no file"):
        sinks.duckdb(path, table="t")


@pytest.mark.parametrize("uri", ["", "host=h dbname=d", "mysql://h/d", 3])
def test_a_uri_of_postgres(uri):
    with pytest.raises(PipelineError, match=r"expected a URI such as postgresql://"):
        sinks.postgres(uri, table="t")


@pytest.mark.parametrize("secret", ["se/cret", "se@cret", "se%cret", "secret%", "se%ZZcret"])
def test_a_secret_that_libpq_would_take_for_something_else_is_not_told(secret):
    for host in ("h", "[", ""):
        with pytest.raises(PipelineError, match="write % as %25, / as %2F and @ as %40") as raised:
            sinks.postgres(f"postgresql://me:{secret}@{host}:1/d", table="t")
        assert "cret" not in str(raised.value)


def test_no_secret_is_in_the_name():
    for uri in (
        "postgresql://me:secret@h:1/d?sslmode=require&password=secret",
        "postgresql://me:sec#re?t@h:1/d",
        "postgresql://me:sec%40re%2Ft@h:1/d?",
        "postgresql://?host=h:1&dbname=d&options=-c%20application_name%3Da&connect_timeout=3",
        "postgres:///d?host=h:1&password=secret",
    ):
        assert sinks.postgres(uri, table="t").name == "postgres(h:1/d, table=t)"


@pytest.mark.parametrize(("function", "module"), [("duckdb", "duckdb"), ("postgres", "adbc_driver_postgresql")])
def test_a_driver_that_is_not_installed(monkeypatch, function, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PipelineError, match=rf"pip install 'ingest-engine\[{function}\]'"):
        getattr(sinks, function)("x", table="t")


def test_options_that_make_no_sense(database):
    for options, message in [
        ({"mode": "replace"}, "mode is 'replace'"),
        ({"table": ""}, "needs a name"),
        ({"table": "a\0b"}, "zero byte"),
        ({"table": "engine_commits"}, "holds the marks"),
        ({"table": None}, "must be a name"),
    ]:
        with pytest.raises(PipelineError, match=message):
            database.sink(**options)


def test_columns_that_make_no_sense(database):
    sink = database.sink()
    twins = pa.schema([("a", pa.int64()), ("A", pa.int64())])
    assert bool(sink.faults(twins)) is (database.kind != "postgres")
    assert "have the same name" in sink.faults(pa.schema([("a", pa.int64())] * 2))[0]
    assert "without columns" in sink.faults(pa.schema([]))[0]
    assert "needs a name" in sink.faults(pa.schema([("", pa.int64())]))[0]
    assert bool(sink.faults(pa.schema([("a" * 64, pa.int64())]))) is (database.kind == "postgres")


@pytest.mark.parametrize("rest", ["", "?", "?application_name=my%20app", "?connect_timeout=3"])
def test_a_uri_is_passed_on_as_it_is(postgres_server, rest):
    uri = postgres_server.uri().replace("engine:secret@", "engine:sec%20r?e#t@") + rest
    target = sinks.postgres(uri, table="t")._target
    assert target._uri.startswith(uri)
    assert target._uri.count("connect_timeout") == 1
    name = target.transact(lambda session: session.execute("SELECT current_setting('application_name')"))
    assert name == [("my app" if "app" in rest else "",)]


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_text_travels_in_utf8_whatever_the_client_speaks(postgres_server, tmp_path, encoding):
    text = pa.table({"text": ["漢é", "plain"]})
    database = Postgres(postgres_server, f"spoken_{encoding.lower()}")
    database.database += f"&client_encoding={encoding}"
    assert through(database, tmp_path, text).column("text").to_pylist() == ["漢é", "plain"]


def test_a_database_that_lacks_letters_is_refused(postgres_server, tmp_path):
    with postgres_server.connection().cursor() as cursor:
        cursor.execute("CREATE DATABASE narrow ENCODING 'LATIN1' TEMPLATE template0")
    sink = sinks.postgres(postgres_server.uri().replace("/postgres", "/narrow"), table="t")
    sink.directory = str(tmp_path / "segments")
    with pytest.raises(SinkError, match="it is kept in LATIN1, which lacks letters; make one with ENCODING 'UTF8'"):
        opened(sink, pa.schema([("text", pa.string())]))


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.timestamp("ms"), pa.date32()])
def test_moments_without_a_text_are_refused_by_sqlite(tmp_path, kind):
    last = pa.array([2**31 - 1], pa.int32()) if kind == pa.date32() else pa.array([2**63 - 1])
    sink = sinks.sqlite(tmp_path / "out.db", table="t")
    sink.directory = str(tmp_path / "segments")
    rows = pa.table({"it": last.cast(kind)})
    opened(sink, rows.schema)
    with pytest.raises(SinkError, match='column "it" holds dates or times too far away to be written as text'):
        staged(sink, rows)


def test_a_null_for_a_number_that_sqlite_would_make_up(tmp_path):
    database = Sqlite(tmp_path)
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, text TEXT)")
    sink = database.sink(mode="append")
    sink.directory = str(tmp_path / "segments")
    rows = pa.table({"id": [1, None, 3], "text": list("abc")})
    opened(sink, rows.schema)
    with pytest.raises(SinkError, match='column "id" holds nulls, and the table allows none there'):
        staged(sink, rows)
    without = database.sink(mode="append")
    without.directory = str(tmp_path / "others")
    opened(without, rows.select(["text"]).schema, incarnation=OTHER)
    without.commit([staged(without, rows.select(["text"]), incarnation=OTHER)])
    assert database.execute("SELECT id, text FROM events") == [(1, "a"), (2, "b"), (3, "c")]
    database.execute("CREATE TABLE unnumbered (id INTEGER PRIMARY KEY, text TEXT) WITHOUT ROWID")
    unnumbered = database.sink("unnumbered", mode="append")
    unnumbered.directory = str(tmp_path / "unnumbered")
    with pytest.raises(SinkError, match='no column "id", which allows no nulls and has no default'):
        opened(unnumbered, rows.select(["text"]).schema)


def test_strict_tables_of_sqlite(tmp_path):
    if sqlite3.sqlite_version_info < (3, 37):
        return  # there are none
    values = {"integer": [1, 2], "real": [0.5, 1.0], "text": ["a", "b"], "blob": [b"a", b"b"], "boolean": [True, False]}
    fits = {"integer": "INT INTEGER ANY", "real": "REAL ANY", "text": "TEXT ANY", "blob": "BLOB ANY"}
    fits["boolean"] = fits["integer"]
    for name, column in values.items():
        rows = pa.table({"it": column})
        for declared in ("INT", "INTEGER", "REAL", "TEXT", "BLOB", "ANY"):
            directory = tmp_path / f"{name} {declared}"
            directory.mkdir()
            database = Sqlite(directory)
            database.execute(f"CREATE TABLE events (it {declared}) STRICT")
            sink = database.sink(mode="append")
            sink.directory = str(directory / "segments")
            if declared not in fits[name].split():
                with pytest.raises(SinkError, match="the table does not fit"):
                    opened(sink, rows.schema)
                continue
            opened(sink, rows.schema)
            sink.commit([staged(sink, rows)])
            assert [it for (it,) in database.execute("SELECT it FROM events")] == column


def test_a_table_of_duckdb_may_have_any_name(tmp_path):
    database = Duckdb(tmp_path)
    sink = database.sink("engine_rows")
    sink.directory = str(tmp_path / "segments")
    rows = pa.table({"id": [1]})
    opened(sink, rows.schema)
    sink.commit([staged(sink, rows)])
    assert database.execute("SELECT id FROM engine_rows") == [(1,)]


@pytest.mark.parametrize("kind", ["sqlite", "duckdb", "postgres"])
def test_a_name_that_is_no_text(kind):
    with pytest.raises(PipelineError, match="is no text"):
        getattr(sinks, kind)("postgresql:///d", table="\udc80")
