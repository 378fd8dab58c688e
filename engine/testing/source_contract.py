"""``check_source``: the laws of ``engine.source`` tried on any source.

Laws of this check
    - Offsets go through JSON, as in a COMMIT, and are opened durably, as by a run with a state directory.
    - Rows are compared, in order, bit by bit; where batches begin and end is the source's affair.
    - The source that was given is read first, and what ``make_again`` makes is compared with it.
    - What ``ack`` allows a source to forget is not asked for again.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from engine.progress import Offset
from engine.source import Read, Reader, Replay, Rereads, Source
from engine.testing.exact_rows import exact_rows, surely_equal

__all__ = ["check_source"]

_MOST_ROWS = 65_536

_NAME = "its name is stable"
_SCHEMA = "schema is that of all its rows"
_SIZE = "a read gives at most 65,536 rows"
_EQUAL = "reading twice gives the same rows in the same order"
_JSON = "an offset is a value that JSON can hold"
_VALUE = "an offset stays what it was while reading goes on"
_BEHIND = "open(offset) yields exactly the rows behind it"
_BEFORE = "before(offset) yields exactly the rows before it"
_ACK = "ack is harmless: what lies behind the offset can still be read"
_CLOSE = "close is harmless, before the end and when repeated"


class _Pass(NamedTuple):
    """What one reader gave: all rows, and after how many of them it gave which offset, as JSON."""

    rows: pa.Table
    offsets: list[tuple[int, str]]


def check_source(
    source: Source, *, make_again: Callable[[], Source] | None = None, offsets: int = 100, passes: int = 20
) -> None:
    """Prove the laws of ``engine.source`` on a source. Raises AssertionError that names the law and what was seen.

    ``make_again`` makes the same source anew, as another process does; without it the one that is given is opened
    again and again. A source that can be read once needs it (ValueError). ``offsets``: at how many of the offsets that
    reading gives the source is opened, evenly spread, the first and the last among them. ``passes``: at how many of
    these the offsets of that second pass are tried too, and ``before``, where the source has it. Both must be at least
    1 (ValueError). Reads all rows about ``offsets`` times; at the end tells the source that all of them are committed.
    """
    for name, number in (("offsets", offsets), ("passes", passes)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1, or nothing is tried")
    if make_again is None and source.replay is Replay.ONCE:
        raise ValueError(f"{source.name} can be read once: give make_again=, which makes it anew")
    trial = _Trial(source, make_again or (lambda: source))
    trial.check_name(source)
    whole = trial.read_all(source, None)
    trial.check_schema(whole)
    trial.check_equal(whole)
    trial.check_offsets(whole, offsets, passes)
    trial.check_close(whole)
    trial.check_ack(whole)


class _Trial:
    def __init__(self, source: Source, make: Callable[[], Source]) -> None:
        self._name = source.name
        self._make = make

    def make(self) -> Source:
        """The source, made anew where that can be done."""
        source = self._make()
        self.check_name(source)
        return source

    def check_name(self, source: Source) -> None:
        if not isinstance(source.name, str) or not source.name or source.name != self._name:
            raise self._broken(_NAME, f"it was called {self._name!r} and then {source.name!r}")

    def read_all(self, source: Source, offset: str | None, *, durable: bool = True) -> _Pass:
        """Everything behind an offset, and that close may be repeated."""
        place = None if offset is None else json.loads(offset)
        where = "from the beginning" if offset is None else f"from offset {offset}"
        law = _EQUAL if offset is None else _BEHIND
        return self._read(source, partial(source.open, place, durable=durable), law, where)

    def read_before(self, source: Rereads, offset: str) -> _Pass:
        """Everything before an offset."""
        return self._read(source, partial(source.before, json.loads(offset)), _BEFORE, f"up to offset {offset}")

    def _read(self, source: Any, open_reader: Callable[[], Reader], law: str, where: str) -> _Pass:
        try:
            schema = source.schema()
            reader = open_reader()
            reads, texts = self._drain(reader)
        except AssertionError:
            raise
        except Exception as error:
            raise self._broken(law, f"reading {where} raised {type(error).__name__}: {error}") from error
        for _ in range(2):
            self._close(reader, "at the end")
        for read, text in zip(reads, texts, strict=True):
            if (now := self._json(read.offset)) != text:
                raise self._broken(_VALUE, f"the reader gave {text}, which later was {now}")
        return self._joined(schema, reads, texts)

    def _drain(self, reader: Reader) -> tuple[list[Read], list[str]]:
        reads, texts = [], []
        while (read := reader.read()) is not None:
            if read.rows.num_rows > _MOST_ROWS:
                raise self._broken(_SIZE, f"a read gave {read.rows.num_rows:,}")
            reads.append(read)
            texts.append(self._json(read.offset))
        return reads, texts

    def _joined(self, schema: pa.Schema, reads: list[Read], texts: list[str]) -> _Pass:
        rows, offsets = 0, []
        for read, text in zip(reads, texts, strict=True):
            if not read.rows.schema.equals(schema):
                raise self._broken(
                    _SCHEMA, f"behind row {rows:,} it is\n{read.rows.schema}\n  and schema() gave\n{schema}"
                )
            rows += read.rows.num_rows
            offsets.append((rows, text))
        return _Pass(pa.Table.from_batches([read.rows for read in reads], schema), offsets)

    def _json(self, offset: Offset) -> str:
        try:
            return json.dumps(offset, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self._broken(_JSON, f"{offset!r}: {error}") from error

    def check_schema(self, whole: _Pass) -> None:
        schema = self.make().schema()
        if not schema.equals(whole.rows.schema):
            raise self._broken(_SCHEMA, f"schema() gave\n{whole.rows.schema}\n  and later\n{schema}")

    def check_equal(self, whole: _Pass) -> None:
        source = self.make()
        self._compare(_EQUAL, "the second time", self.read_all(source, None).rows, whole.rows)
        source = self.make()
        self._compare(_EQUAL, "opened without durable", self.read_all(source, None, durable=False).rows, whole.rows)
        self.check_name(source)

    def check_offsets(self, whole: _Pass, most: int, passes: int) -> None:
        chosen = _spread(whole.offsets, most)
        again = {offset for _, offset in _spread(chosen, passes)}
        for row, offset in chosen:
            rest = whole.rows.slice(row)
            second = self.read_all(self.make(), offset)
            self._compare(_BEHIND, f"from offset {offset}, behind row {row:,},", second.rows, rest)
            if offset not in again:
                continue
            self._check_before(offset, whole.rows.slice(0, row))
            for further, later in _spread(second.offsets, 3):
                where = f"from offset {later}, given {further:,} rows behind offset {offset},"
                self._compare(_BEHIND, where, self.read_all(self.make(), later).rows, rest.slice(further))
                self._check_before(later, whole.rows.slice(0, row + further))

    def _check_before(self, offset: str, expected: pa.Table) -> None:
        """In order, where the source knows it; else merely the same rows."""
        source = self.make()
        if not isinstance(source, Rereads) or source.replay is Replay.ONCE:
            return
        found = self.read_before(source, offset).rows
        if source.in_order_before(json.loads(offset)):
            self._compare(_BEFORE, f"up to offset {offset}", found, expected)
        elif sorted(row.data for row in exact_rows(found)) != sorted(row.data for row in exact_rows(expected)):
            raise self._broken(_BEFORE, f"up to offset {offset} there are others")

    def check_close(self, whole: _Pass) -> None:
        """Close a reader before its first read, and another one after it; what they left behind disturbs nobody."""
        for reads in (0, 1):
            reader = self.make().open(None, durable=True)
            for _ in range(reads):
                reader.read()
            for _ in range(3):
                self._close(reader, f"after {reads} reads")
        self._compare(_CLOSE, "after readers were closed early", self.read_all(self.make(), None).rows, whole.rows)

    def check_ack(self, whole: _Pass) -> None:
        """Acknowledge as a run does: nothing yet, then ever later offsets, some twice; last an earlier one."""
        self._ack(self.make(), "null")
        chosen = _spread(whole.offsets, 5)
        for row, offset in chosen:
            source = self.make()
            self._ack(source, offset)
            self._ack(source, offset)
            rest = self.read_all(self.make(), offset).rows
            self._compare(_ACK, f"after ack of offset {offset}, behind row {row:,},", rest, whole.rows.slice(row))
        for _, offset in chosen[:1]:
            self._ack(self.make(), offset)
            row, last = chosen[-1]
            rest = self.read_all(self.make(), last).rows
            self._compare(_ACK, f"after ack of the earlier offset {offset}", rest, whole.rows.slice(row))

    def _ack(self, source: Source, offset: str) -> None:
        try:
            source.ack(json.loads(offset))
        except Exception as error:
            raise self._broken(_ACK, f"ack of offset {offset} raised {type(error).__name__}: {error}") from error

    def _close(self, reader: Reader, when: str) -> None:
        try:
            reader.close()
        except Exception as error:
            raise self._broken(_CLOSE, f"close {when} raised {type(error).__name__}: {error}") from error

    def _compare(self, law: str, when: str, found: pa.Table, expected: pa.Table) -> None:
        if surely_equal(found, expected):
            return
        pairs = zip(exact_rows(found), exact_rows(expected), strict=False)
        for row, (one, other) in enumerate(pairs):
            if one != other:
                raise self._broken(law, f"{when} row {row:,} is {one}, expected {other}")
        if found.num_rows != expected.num_rows:
            raise self._broken(law, f"{when} there are {found.num_rows:,} rows, expected {expected.num_rows:,}")

    def _broken(self, law: str, what: str) -> AssertionError:
        return AssertionError(f"{self._name} breaks the law that {law}:\n  {what}.")


def _spread(offsets: list[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """At most so many of them, the first and the last among them."""
    if len(offsets) <= most:
        return offsets
    return [offsets[number * (len(offsets) - 1) // max(1, most - 1)] for number in range(most)]
