"""``check_source``: our sources keep every law, and for each law there is one that breaks it and is found out."""

import json
import random
from itertools import count

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from engine import Log, sources
from engine.batch import Origin
from engine.source import Read, Replay
from engine.sources import arrow_ipc, csv, memory, ndjson, parquet
from engine.testing import check_source


def events(start, stop):
    numbers = range(start, stop)
    columns = {"id": numbers, "name": [f"event {n}" for n in numbers], "amount": [n / 4 for n in numbers]}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def put_parquet(table, path):
    pq.write_table(table, path, row_group_size=40)


def put_csv(table, path):
    pa_csv.write_csv(table, path)


def put_ndjson(table, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def put_arrow(table, path):
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


def put_arrow_stream(table, path):
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


FORMATS = [
    (parquet, put_parquet, "parquet"),
    (csv, put_csv, "csv"),
    (ndjson, put_ndjson, "ndjson"),
    (arrow_ipc, put_arrow, "arrow"),
    (arrow_ipc, put_arrow_stream, "arrows"),
]


@pytest.mark.parametrize(("make", "put", "extension"), FORMATS, ids=lambda value: value if str(value) == value else "")
def test_our_sources_of_files(tmp_path, make, put, extension):
    for number in range(3):
        put(events(number * 100, number * 100 + 90), tmp_path / f"{number}.{extension}")
    path = str(tmp_path)
    check_source(make(path), make_again=lambda: make(path))


def test_our_source_of_a_log(tmp_path):
    with Log(tmp_path / "log", partitions=3, segment_bytes=2_000) as log:
        for number in range(40):
            log.append(pa.table({"n": [3 * number, 3 * number + 1, 3 * number + 2]}), partition=number % 3)
    check_source(sources.log(tmp_path / "log"), make_again=lambda: sources.log(tmp_path / "log"))
    check_source(sources.log(tmp_path / "log", start=5, stop=31, group="checked"))


@pytest.mark.parametrize(
    "data",
    [events(0, 500), events(0, 200).to_batches(max_chunksize=7), [], lambda: iter(events(0, 200).to_batches(20))],
    ids=["table", "batches", "no batches", "function"],
)
def test_our_source_of_memory(data):
    schema = events(0, 1).schema
    check_source(memory(data, id="rows", schema=schema))


def test_a_stream_that_is_made_anew():
    def stream():
        return memory(iter(events(0, 300).to_batches(max_chunksize=30)), id="rows", resume="skip")

    check_source(stream(), make_again=stream)
    with pytest.raises(ValueError, match="give make_again="):
        check_source(stream())


class Numbers:
    """A small source that keeps all laws. ``fault`` is the one thing that it does wrong."""

    replay = Replay.REPLAYABLE
    made = count()

    def __init__(self, fault=None, rows=40):
        self.fault, self.rows, self.acked, self.passes, self.broken = fault, rows, 0, 0, False
        self.number = next(self.made) if fault == "name" else 0

    @property
    def name(self):
        return f"numbers {self.number + (self.passes if self.fault == 'name later' else 0)}"

    def schema(self):
        self.passes += self.fault == "schema"
        return pa.schema({"n": pa.float64() if self.fault == "schema of rows" or self.passes > 2 else pa.int64()})

    def open(self, offset, *, durable):
        if self.fault == "name later":
            self.passes += 1
        if self.fault == "forgets at ack" and offset is not None and self.acked:
            return NumbersReader(self, max(offset["n"], self.acked + 1), offset)
        return NumbersReader(self, 0 if offset is None else offset["n"], offset)

    def ack(self, offset):
        if self.fault == "ack of nothing" and offset is None:
            raise TypeError("no offset")
        if self.fault == "ack of less" and offset is not None and offset["n"] < self.acked:
            raise ValueError("was acknowledged")
        if offset is not None:
            self.acked = max(self.acked, offset["n"])

    def covers(self, directory):
        return False


class NumbersReader:
    def __init__(self, source, start, offset):
        self.source, self.start, self.at, self.kept, self.closed = source, start, start, {"n": 0}, False
        fault = source.fault
        if fault == "off by one" and offset is not None:
            self.at += start == 20
        elif fault == "repeats a row" and offset is not None:
            self.at -= start == 20
        elif fault == "cannot be opened at the end" and start == source.rows:
            raise ValueError("nothing is left")

    def read(self):
        source, fault = self.source, self.source.fault
        if self.at >= source.rows or source.broken:
            return None
        stop = min(self.at + (70_000 if fault == "too many at once" else 5), source.rows)
        numbers = list(range(self.at, stop))
        if fault == "other order":
            random.Random(next(source.made)).shuffle(numbers)
        rows = pa.record_batch({"n": pa.array(numbers, pa.int64())})
        start, self.at = self.at, stop
        offset = {"n": stop - self.start if fault == "counts anew" else stop}
        if fault == "same offset":
            self.kept.update(offset)
            offset = self.kept
        elif fault == "set":
            offset = {stop}
        elif fault == "NaN":
            offset["share"] = float("nan")
        return Read(rows, Origin(source.name, source.name, start, stop), offset)

    def close(self):
        if self.closed and self.source.fault == "close twice":
            raise ValueError("closed already")
        self.closed = True
        if self.at < self.source.rows and self.source.fault == "close breaks the source":
            self.source.broken = True


class Rereading(Numbers):
    """It also gives what came before an offset."""

    def before(self, offset):
        reader = self.open(None, durable=True)
        reader.stop = offset["n"] - (self.fault == "one too few")
        if self.fault == "cannot be read again":
            raise ValueError("they are gone")
        read = reader.read

        def up_to():
            found = read() if reader.at < reader.stop else None
            if found is None or found.offset["n"] <= reader.stop:
                return found
            return found._replace(rows=found.rows.slice(0, reader.stop - found.origin.start))

        reader.read = up_to
        return reader

    def in_order_before(self, offset):
        return self.fault != "order is unknown"


def test_a_source_that_keeps_all_laws():
    check_source(Numbers())
    check_source(Numbers(rows=0))
    check_source(Rereading())
    check_source(Rereading("order is unknown"))


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("name", "its name is stable"),
        ("name later", "its name is stable"),
        ("schema", "schema is that of all its rows"),
        ("schema of rows", "schema is that of all its rows"),
        ("too many at once", "a read gives at most 65,536 rows"),
        ("other order", "reading twice gives the same rows in the same order"),
        ("set", "an offset is a value that JSON can hold"),
        ("NaN", "an offset is a value that JSON can hold"),
        ("same offset", "an offset stays what it was while reading goes on"),
        ("off by one", "open(offset) yields exactly the rows behind it"),
        ("repeats a row", "open(offset) yields exactly the rows behind it"),
        ("counts anew", "open(offset) yields exactly the rows behind it"),
        ("cannot be opened at the end", "open(offset) yields exactly the rows behind it"),
        ("ack of nothing", "ack is harmless: what lies behind the offset can still be read"),
        ("ack of less", "ack is harmless: what lies behind the offset can still be read"),
        ("forgets at ack", "ack is harmless: what lies behind the offset can still be read"),
        ("close twice", "close is harmless, before the end and when repeated"),
        ("close breaks the source", "close is harmless, before the end and when repeated"),
    ],
)
def test_a_broken_source_is_told_its_law(fault, law):
    source = Numbers(fault, rows=70_000 if fault == "too many at once" else 40)
    make_again = (lambda: Numbers(fault)) if fault == "name" else None
    with pytest.raises(AssertionError) as caught:
        check_source(source, make_again=make_again)
    first, second = str(caught.value).split("\n")[:2]
    assert first.startswith("numbers ")
    assert first.endswith(f"breaks the law that {law}:")
    assert second.strip()


@pytest.mark.parametrize("fault", ["one too few", "cannot be read again"])
def test_what_came_before_an_offset(fault):
    with pytest.raises(AssertionError, match="yields exactly the rows before it"):
        check_source(Rereading(fault))


def test_it_looks_at_every_offset():
    """A fault at one offset only is found, wherever that is."""
    found = 0
    for wrong in range(5, 45, 5):

        class OneWrong(Numbers):
            def open(self, offset, *, durable, wrong=wrong):
                reader = super().open(offset, durable=durable)
                reader.at += offset is not None and offset["n"] == wrong < 40
                reader.at -= offset is not None and offset["n"] == wrong == 40
                return reader

        with pytest.raises(AssertionError, match=rf'offset {{"n": {wrong}}}'):
            check_source(OneWrong())
        found += 1
    assert found == 8


def test_another_instance_must_have_the_same_rows():
    for given, made in ((40, 35), (40, 45), (40, 0)):
        with pytest.raises(AssertionError, match=r"the second time there are \d+ rows, expected 40") as caught:
            check_source(Numbers(rows=given), make_again=lambda made=made: Numbers(rows=made))
        assert "reading twice gives the same rows in the same order" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"offsets": 0}, {"passes": 0}, {"offsets": -1}, {"passes": -3}], ids=repr)
def test_a_check_that_tries_nothing_is_refused(wrong):
    [(name, number)] = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} is {number}; it must be at least 1"):
        check_source(Numbers(), **wrong)


STRANGE = {
    "nanoseconds": pa.array([1, 2, None], pa.timestamp("ns")),
    "text that is none": pa.array([b"\xff", b"\xfe", None]).view(pa.string()),
    "not a number": pa.array([float("nan"), 0.0, None]),
}


@pytest.mark.parametrize("values", STRANGE)
def test_values_that_python_has_no_form_for(values):
    rows = pa.table({"x": pa.concat_arrays([STRANGE[values]] * 30)})
    check_source(memory(rows, id="rows"))
    turned = pa.table({"x": pa.concat_arrays([STRANGE[values].slice(1), STRANGE[values].slice(0, 1)] * 30)})
    with pytest.raises(AssertionError, match="the second time row 0 is "):
        check_source(memory(rows, id="rows"), make_again=lambda: memory(turned, id="rows"))


def test_signs_of_zero_are_told_apart():
    with pytest.raises(AssertionError, match=r"row 0 is \(-0.0\), expected \(0.0\)"):
        check_source(
            memory(pa.table({"x": [0.0]}), id="rows"), make_again=lambda: memory(pa.table({"x": [-0.0]}), id="rows")
        )
