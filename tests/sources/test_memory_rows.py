"""Everything that can be handed over in process, read once or again, and what is compared after a restart."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from formats import drain, events, ids, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError, PipelineError, SourceError
from engine.source import Replay, Source
from engine.sources import memory
from engine.sources.memory_rows import MemorySource

TABLE = pa.concat_tables([events(0, 40), events(40, 41), events(41, 100)])


class OnlyStream:
    def __init__(self, data: pa.Table) -> None:
        self._data = data

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._data.__arrow_c_stream__(requested_schema)


class OnlyArray:
    def __init__(self, data: pa.RecordBatch) -> None:
        self._data = data

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self._data.__arrow_c_array__(requested_schema)


def polars_frame(table: pa.Table) -> object:
    import polars

    return polars.from_arrow(table)


def pandas_frame(table: pa.Table) -> object:
    return table.to_pandas()


def duckdb_relation(table: pa.Table) -> object:
    import duckdb

    return duckdb.connect().from_arrow(table)


def foreign() -> dict[str, Callable[[pa.Table], object]]:
    """Other libraries' tables, as far as they are installed."""
    makers = {"polars": polars_frame, "pandas": pandas_frame, "duckdb": duckdb_relation}
    return {name: make for name, make in makers.items() if importlib.util.find_spec(name) is not None}


REPEATABLE: dict[str, Callable[[pa.Table], object]] = {
    "table": lambda table: table,
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "stream": OnlyStream,
    "array": lambda table: OnlyArray(table.combine_chunks().to_batches()[0]),
    "struct": lambda table: table.to_struct_array().combine_chunks(),
    "batches": lambda table: table.to_batches(),
    "tables": lambda table: (table.slice(0, 10), table.slice(10)),
    "function": lambda table: lambda: table.to_reader(),
    "generator function": lambda table: lambda: (batch for batch in table.to_batches()),
    **foreign(),
}
ONCE: dict[str, Callable[[pa.Table], object]] = {
    "reader": lambda table: table.to_reader(),
    "iterator": lambda table: iter(table.to_batches()),
    "generator": lambda table: (batch for batch in table.to_batches(max_chunksize=7)),
}


@pytest.mark.parametrize("kind", [*REPEATABLE, *ONCE])
def test_all_kinds_give_their_rows_in_order(kind: str) -> None:
    source = memory({**REPEATABLE, **ONCE}[kind](TABLE), id="x")
    assert isinstance(source, Source)
    assert source.replay is (Replay.REPEATABLE if kind in REPEATABLE else Replay.ONCE)
    schema = source.schema()
    assert schema.names == TABLE.schema.names
    reads = drain(source)
    assert table_of(reads, schema).to_pylist() == TABLE.to_pylist()
    assert [read.origin.start for read in reads[1:]] == [read.origin.stop for read in reads[:-1]]
    assert reads[0].origin.location == "memory(x)"
    assert all(read.rows.schema.equals(schema, check_metadata=True) for read in reads)


@pytest.mark.parametrize("kind", list(REPEATABLE))
def test_repeatable_kinds_resume_behind_every_offset(kind: str) -> None:
    make = REPEATABLE[kind]
    for read in drain(memory(make(TABLE))):
        assert ids(drain(memory(make(TABLE)), read.offset)) == list(range(read.origin.stop, 100))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 99), st.data())
def test_other_rows_are_found_whatever_the_borders(before: int, after: int, changed: int, data: st.DataObject) -> None:
    reads = drain(memory(TABLE.combine_chunks().to_batches(max_chunksize=before)))
    offset = data.draw(st.sampled_from(reads)).offset
    again = TABLE.combine_chunks().to_batches(max_chunksize=after)
    assert ids(drain(memory(again), offset)) == list(range(offset["rows"], 100))
    amounts = TABLE["amount"].to_pylist()
    amounts[changed] += 1
    other = memory(TABLE.set_column(2, "amount", pa.array(amounts)))
    if changed < offset["rows"]:
        with pytest.raises(InputError, match=r"holds other rows than at the last run \(the first \d+ differ\)"):
            other.open(offset, durable=True)
    else:
        assert len(ids(drain(other, offset))) == 100 - offset["rows"]


def test_fewer_rows_are_other_rows() -> None:
    offset = drain(memory(TABLE))[-1].offset
    with pytest.raises(InputError, match=r"memory: holds other rows .* \(100 were committed, it has 50\)"):
        memory(TABLE.slice(0, 50)).open(offset, durable=True)


def test_more_rows_are_new_rows() -> None:
    offset = drain(memory(TABLE))[-1].offset
    assert ids(drain(memory(events(0, 130)), offset)) == list(range(100, 130))


def test_a_checksum_is_only_computed_for_commits() -> None:
    reader = memory(TABLE).open(None, durable=False)
    read = reader.read()
    assert read is not None
    assert read.offset == {"rows": 40}
    assert json.loads(json.dumps(drain(memory(TABLE))[0].offset)).keys() == {"rows", "checksum"}


@pytest.mark.parametrize("kind", list(ONCE))
def test_what_is_read_once_needs_a_word_to_resume(kind: str) -> None:
    offset = drain(memory(ONCE[kind](TABLE), id="x"))[0].offset
    done = offset["rows"]
    assert "checksum" not in offset
    with pytest.raises(InputError, match=rf'memory\(x\): {done} rows are committed.*\n.*resume="skip".*"continue"'):
        memory(ONCE[kind](TABLE), id="x").open(offset, durable=True)
    assert ids(drain(memory(ONCE[kind](TABLE), resume="skip"), offset)) == list(range(done, 100))
    continued = drain(memory(ONCE[kind](TABLE), resume="continue"), offset)
    assert ids(continued) == list(range(100))
    assert continued[-1].offset == {"rows": done + 100}
    assert continued[0].origin.start == done
    with pytest.raises(InputError, match="holds other rows"):
        memory(ONCE[kind](TABLE), resume="skip").open({"rows": 101}, durable=True)
    assert len(ids(drain(memory(ONCE[kind](TABLE)), {"rows": 0}))) == 100


def test_what_is_read_once_is_not_opened_twice() -> None:
    source = memory(iter(TABLE.to_batches()), id="x")
    drain(source)
    with pytest.raises(InputError, match=r"memory\(x\): was read already"):
        source.open(None, durable=False)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    asked = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in TABLE.to_batches():
            asked.append(batch.num_rows)
            yield batch

    source = memory(batches(), schema=TABLE.schema)
    assert source.schema() == TABLE.schema
    reader = source.open(None, durable=True)
    assert asked == []
    reader.read()
    assert asked == [40]
    reader.close()
    assert memory(batches()).schema() == TABLE.schema


def test_closing_ends_the_generator() -> None:
    ended = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from TABLE.to_batches()
        finally:
            ended.append(True)

    reader = memory(batches()).open(None, durable=True)
    reader.read()
    reader.close()
    assert ended == [True]
    assert reader.read() is None


def test_large_batches_are_cut_and_empty_ones_left_out() -> None:
    batch = pa.record_batch({"id": pa.array(range(70_000))})
    reads = drain(memory([batch.slice(0, 0), batch, batch.slice(0, 0)]))
    assert [read.rows.num_rows for read in reads] == [65_536, 4_464]
    assert drain(memory(batch.slice(0, 0))) == []
    assert drain(memory(TABLE.slice(0, 0))) == []
    assert ids(drain(memory([batch]), reads[0].offset)) == list(range(65_536, 70_000))


def test_no_batch_to_take_a_schema_from() -> None:
    for data in ([], iter([]), lambda: ()):
        with pytest.raises(InputError, match="there is no batch to take the schema from"):
            memory(data).schema()
        assert drain(memory(data, schema=TABLE.schema)) == []


def test_a_declared_schema() -> None:
    declared = pa.schema({"amount": pa.float32(), "id": pa.int8()})
    source = memory(TABLE, schema=declared)
    assert table_of(drain(source), declared).to_pylist() == TABLE.select(["amount", "id"]).to_pylist()
    with pytest.raises(InputError, match='memory row 0 rows 0-300: "id" is int64 and does not fit int8'):
        drain(memory(events(0, 300), schema=declared))


def test_batches_that_are_not_alike() -> None:
    source = memory([events(0, 3), events(3, 6).drop_columns(["name"])])
    with pytest.raises(InputError, match='memory row 3: has no column "name"'):
        drain(source)
    with pytest.raises(InputError, match='has two columns "a"'):
        memory(pa.table([pa.array([1]), pa.array([1])], names=["a", "a"])).schema()


def test_a_failing_iterator_is_the_cause() -> None:
    def batches() -> Iterator[Any]:
        yield TABLE.to_batches()[0]
        raise ZeroDivisionError("no more")

    with pytest.raises(SourceError, match=r"memory\(x\): the stream failed behind row 40: ZeroDivisionError") as caught:
        drain(memory(batches(), id="x"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(SourceError, match="expected record batches, found int"):
        drain(memory(iter([TABLE, 7])))
    with pytest.raises(SourceError, match="cannot be opened: KeyError") as caught:
        memory(lambda: {}["x"]).schema()
    assert isinstance(caught.value.__cause__, KeyError)


def test_arguments_that_make_no_sense() -> None:
    for data in (7, "text", b"bytes", None, {"a": [1]}, dict):
        with pytest.raises(PipelineError, match="expected rows"):
            memory(data)
    with pytest.raises(PipelineError, match="id= must be a name"):
        memory(TABLE, id="")
    with pytest.raises(PipelineError, match="resume= must be"):
        memory(TABLE, resume="again")  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="resume= is for iterators"):
        memory(TABLE, resume="skip")


def test_the_value() -> None:
    source = memory(TABLE, id="orders")
    assert isinstance(source, MemorySource)
    assert (source.name, source.id) == ("memory(orders)", "orders")
    assert memory(TABLE).name == "memory"
    source.ack({"rows": 3})
