"""A function as a sink: at least once, with tokens that name the rows."""

import pyarrow as pa
import pytest
from sink_runs import opened, origin, token

from engine.errors import PipelineError, SinkError
from engine.sink import Guarantee, Sink, Writer
from engine.sinks.function_call import CallToken, call

ROWS = pa.record_batch({"a": [1, 2, 3]})


def run(calls, spans, *, partition=1, partitions=4):
    sink = opened(call(lambda rows, named: calls.append((rows, named))), ROWS.schema, partitions=partitions)
    writer = sink.writer(partition, token(1, sink))
    for start, stop in spans:
        writer.write(ROWS, origin=origin(start, stop))
    return sink, writer


def test_the_contract():
    sink, writer = run([], [])
    assert isinstance(sink, Sink)
    assert isinstance(writer, Writer)
    assert sink.guarantee is Guarantee.AT_LEAST_ONCE
    assert sink.name == "call(run.<locals>.<lambda>)" == repr(sink)
    assert sink.faults(ROWS.schema) == []


def test_the_function_has_been_called_when_write_returns():
    calls = []
    sink, writer = run(calls, [(0, 3)])
    assert calls == [(ROWS, CallToken("in.parquet", 0, 3, 1))]
    assert writer.prepare() is None
    sink.commit([None])
    sink.discard_after(token(1, sink))
    writer.abort()
    assert len(calls) == 1


def test_no_rows_no_call():
    calls = []
    _, writer = run(calls, [])
    writer.write(ROWS.slice(0, 0), origin=origin())
    assert calls == []


def test_tokens_tell_calls_apart_and_are_the_same_on_replay():
    first, second = [], []
    spans = [(0, 3), (0, 3), (0, 3), (3, 9), (3, 9)]
    for partition in range(4):
        run(first, spans, partition=partition)
        run(second, spans, partition=partition)
    tokens = [named for _, named in first]
    assert tokens == [named for _, named in second]
    assert len(set(tokens)) == len(tokens) == 20
    assert [named.part for named in tokens[:5]] == [0, 4, 8, 0, 4]
    assert len({str(named) for named in tokens}) == 20
    assert str(tokens[1]) == "in.parquet[0:3]#4"


def test_a_handler_that_remembers_tokens_is_exact():
    seen, total = set(), []

    def handler(rows, named):
        if named not in seen:
            seen.add(named)
            total.extend(rows.column("a").to_pylist())

    for _ in range(2):  # the second time after a crash before the commit
        sink = opened(call(handler), ROWS.schema)
        sink.writer(0, token(1, sink)).write(ROWS, origin=origin(0, 3))
    assert total == [1, 2, 3]


def test_what_the_function_raises():
    def broken(rows, named):
        raise KeyError("rate")

    sink = opened(call(broken), ROWS.schema)
    with pytest.raises(SinkError, match=r"broken\) failed on 3 rows: KeyError: 'rate'") as raised:
        sink.writer(1, token(5, sink)).write(ROWS, origin=origin(5, 1000_000))
    assert isinstance(raised.value.__cause__, KeyError)
    assert raised.value.partition == 1
    assert "in.parquet rows 5-1,000,000, partition 1." in str(raised.value)


def test_what_is_no_function():
    async def later(rows, named): ...

    with pytest.raises(PipelineError, match="later is async"):
        call(later)
    with pytest.raises(PipelineError, match="a function is needed, not str"):
        call("print")
