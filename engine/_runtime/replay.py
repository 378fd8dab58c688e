"""A pipeline without effects: its sources as far as they were committed, its stages, and a sink that forgets.

Laws
    - A source is read from its first row to exactly the offset that was committed, and is never told of it.
    - A source of ours ends there by itself (``Rereads``). Of others offsets are opaque: the end is where a read gives
      the committed one. Only where a pipeline has one source, whose committed rows are counted, may a read go beyond;
      then the rows behind must be those that the offset begins with.
    - Where the order of the rows counts, it is that in which they came, or nothing is rebuilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from engine.checkpoint.manifest import Commit, canonical
from engine.errors import InputError, StateError
from engine.pipeline import Pipeline
from engine.progress import Offset, Token
from engine.sink import Guarantee, Handle
from engine.source import Read, Reader, Replay, Rereads, Source
from engine.stages.dedup import Dedup

__all__ = ["Muted", "muted", "replay_faults"]


def replay_faults(pipeline: Pipeline, commit: Commit) -> list[str]:
    """Why its states cannot be rebuilt from its sources up to ``commit``, a line each; empty where they can."""
    sources, stages = pipeline.graph.sources, pipeline.graph.stages
    faults = [f"{s.name}: cannot be read again from its beginning" for s in sources if s.replay is Replay.ONCE]
    dedups = [stage for stage in stages if isinstance(stage, Dedup)]
    if len(dedups) < 2 and all(dedup.within is None for dedup in dedups):
        return faults
    if len(sources) > 1:
        faults.append(
            f"dedup: what it holds depends on how the rows of {len(sources)} sources were merged, which no commit tells"
        )
    for source in sources:
        offset = commit.offsets.get(source.name)
        if isinstance(source, Rereads) and offset is not None and not source.in_order_before(offset):
            faults.append(
                f"{source.name}: what dedup holds depends on the order in which several runs read the partitions, which"
                " no commit tells"
            )
    return faults


def muted(pipeline: Pipeline, commit: Commit) -> "tuple[Pipeline, Muted]":
    """``pipeline`` up to ``commit``, its last, and its sink."""
    sources = pipeline.graph.sources
    rows = commit.counters.get("rows_in", 0) if len(sources) == 1 else None
    bounded = tuple(_Bounded(source, commit.offsets.get(source.name), rows) for source in sources)
    sink = Muted()
    return pipeline._with(sources=bounded, sink=sink), sink


class Muted:
    """A sink, and its writers: nothing that they are given leaves."""

    name = "nothing"
    guarantee = Guarantee.EXACTLY_ONCE

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Nothing to prepare."""

    def writer(self, partition: int, token: Token) -> "Muted":
        """Itself: it holds nothing."""
        return self

    def commit(self, handles: Sequence[Handle]) -> None:
        """Nothing to publish."""

    def discard_after(self, token: Token) -> None:
        """Nothing to remove."""

    def write(self, rows: pa.RecordBatch, *, origin: object) -> None:
        """Forget the rows."""

    def prepare(self) -> None:
        """There is nothing to publish."""

    def abort(self) -> None:
        """Nothing to give up."""


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A source that ends at ``end``, None: at once. ``rows``: how many come before it, where that is known."""

    source: Source
    end: Offset | None
    rows: int | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def replay(self) -> Replay:
        return self.source.replay

    def schema(self) -> pa.Schema:
        return self.source.schema()

    def open(self, offset: Offset | None, *, durable: bool) -> Reader:
        if offset is not None:
            raise InputError(f"{self.name}: a replay begins at the first row, not at {offset}", source=self.name)
        if isinstance(self.source, Rereads) and self.end is not None:
            return self.source.before(self.end)
        return _BoundedReader(self, self.source.open(None, durable=durable))

    def ack(self, offset: Offset) -> None:
        """It was told long ago."""

    def covers(self, directory: str) -> bool:
        return self.source.covers(directory)


class _BoundedReader:
    """One pass over the rows before the end."""

    def __init__(self, bounded: _Bounded, reader: Reader) -> None:
        self._bounded = bounded
        self._reader = reader
        self._end = canonical(bounded.end)
        self._rows = 0
        self._ended = bounded.end is None

    def read(self) -> Read | None:
        if self._ended:
            return None
        read = self._reader.read()
        limit = self._bounded.rows
        if read is None:
            if self._rows != limit or self._following() is not None:
                raise self._lost(f"it ends after {self._rows:,} rows without coming there")
            self._ended = True
            return None
        self._rows += read.rows.num_rows
        if canonical(read.offset) == self._end:
            self._ended = True
        elif limit is not None and self._rows > limit:
            kept = read.rows.num_rows - (self._rows - limit)
            self._check_follows(read.rows.slice(kept))
            self._ended, self._rows = True, limit
            origin = replace(read.origin, stop=read.origin.start + kept)
            read = Read(read.rows.slice(0, kept), origin, self._bounded.end)
        if self._ended and limit is not None and self._rows != limit:
            raise self._lost(f"{self._rows:,} rows come before it, and {limit:,} are committed")
        return read

    def close(self) -> None:
        self._reader.close()

    def _check_follows(self, rows: pa.RecordBatch) -> None:
        """Raise unless ``rows`` are what the source gives behind the committed offset."""
        following = self._following()
        count = min(rows.num_rows, following.num_rows) if following is not None else 0
        if following is None or not rows.slice(0, count).equals(following.slice(0, count)):
            raise self._lost(f"the rows behind the first {self._bounded.rows:,} are not those that follow it")

    def _following(self) -> pa.RecordBatch | None:
        """The first rows behind the committed offset."""
        reader = self._bounded.source.open(self._bounded.end, durable=True)
        try:
            following = reader.read()
            while following is not None and not following.rows.num_rows:
                following = reader.read()
        finally:
            reader.close()
        return None if following is None else following.rows

    def _lost(self, what: str) -> StateError:
        name = self._bounded.name
        return StateError(
            f"{name}: the offset of the last commit, {self._end.decode()}, is not found again: {what}.\n"
            "  Nothing was changed. Give the source back all rows since the first run, or bring back a whole copy of"
            " the state."
        )
