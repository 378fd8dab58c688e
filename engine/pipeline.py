"""``Pipeline``: the graph as an immutable value. Building it runs nothing and reads nothing.

    read ─► dedup, filter, select, map … ─► key_by ─► map, filter, select, dedup … ─► write

Laws
    - Every method returns a new pipeline; what it was called on stays as it was.
    - A method refuses what is wrong in itself; ``validate`` finds, all at once, what does not fit together.
"""

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import PipelineError
from engine.explanation import Format, explain
from engine.graph import Graph
from engine.retry import NO_RETRY, Retry
from engine.sink import Sink
from engine.source import Source
from engine.sources.memory_rows import memory
from engine.stage import Stage
from engine.stages.dedup import Dedup
from engine.stages.filter import Filter
from engine.stages.hash_partitioner import KeyBy, Keys, key_names
from engine.stages.key_window import Exactness
from engine.stages.map import Map, MapFunction
from engine.stages.select import Select

__all__ = ["Pipeline"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, eq=False, init=False)
class Pipeline:
    """A pipeline: where rows come from, what happens to them, and where they go.

    ``name`` names its part of a state directory: letters, digits, ``.``, ``_`` and ``-``. Raises PipelineError
    otherwise.
    """

    name: str
    graph: Graph

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PipelineError(
                f'Pipeline: expected a name of letters, digits, ".", "_" and "-" that begins with a letter or digit, '
                f"of at most 100 characters; found {name!r}"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "graph", Graph())

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {len(self.graph.sources)} sources, {len(self.graph.stages)} stages>"

    def read(self, *sources: Any) -> "Pipeline":
        """Read from these sources, merged as they come; each one's order is kept. Once, and first.

        A source of ``engine.sources``, or any Arrow object (``__arrow_c_stream__``, ``__arrow_c_array__``).
        """
        if self.graph.sources:
            raise PipelineError("read: a pipeline reads once; give all sources to one read()")
        if self.graph.stages or self.graph.sink is not None:
            raise PipelineError("read: comes first")
        if not sources:
            raise PipelineError("read: expected at least one source")
        return self._with(sources=tuple(_as_source(source) for source in sources))

    def dedup(
        self,
        keys: Keys,
        *,
        within: int | timedelta | None = None,
        by: str | None = None,
        exact: Exactness = "fingerprint",
    ) -> "Pipeline":
        """Drop each row whose ``keys`` were seen before; the first one wins.

        ``within``: an int looks back that many rows, a timedelta that much progress of the event time in column ``by``,
        None for ever. A timedelta is forgotten after at most 65/64 of it: a row up to 1/64 beyond the window may still
        be dropped, one inside is never missed. Behind ``key_by`` its keys must include those, and an int counts the
        rows of the partition. A key with a null component is never a duplicate. Exact; bounded memory; survives
        restarts with the state.

        ``exact``: keys longer than an id of 16 bytes are compared by a secret-seeded fingerprint of 128 bits, or with
        ``"bytes"`` byte by byte; then they take memory and disk as long as they are in the window.
        """
        return self._append(Dedup(key_names(keys, stage="dedup"), within, by, exact))

    def key_by(self, keys: Keys, *, partitions: int = 8) -> "Pipeline":
        """From here on rows keep their order per key, and ``partitions`` (1 to 1,024) run in parallel. Once."""
        if any(isinstance(stage, KeyBy) for stage in self.graph.stages):
            raise PipelineError("key_by: a pipeline is partitioned once")
        return self._append(KeyBy(key_names(keys, stage="key_by"), partitions))

    def map(
        self,
        fn: MapFunction | type,
        *,
        schema: pa.Schema | None = None,
        batch_rows: int | None = None,
        concurrency: int = 1,
        retry: Retry | None = None,
        on_error: Literal["fail"] = "fail",
        timeout_s: float | None = None,
    ) -> "Pipeline":
        """Apply ``fn`` to whole batches: a record batch in; a record batch, or a list of them, out; sync or async
        (Trio).

        It may run in several partitions at the same time, on worker threads, even with ``concurrency=1``; a class is
        instantiated once per partition. None is an error. Without ``schema`` it is called once on zero rows to learn
        it. ``batch_rows`` bounds the rows of a call; where batches begin and end is otherwise the engine's business.
        ``concurrency`` calls of one partition may be under way at once; results leave in order. ``retry`` says which
        exceptions are tried again (none by default). After ``timeout_s`` an attempt counts as failed with
        TimeoutError; the thread of a sync function that hangs is left behind. A failure ends the run with StageError.
        """
        if on_error != "fail":
            raise PipelineError(f'map: on_error must be "fail", found {on_error!r}')
        return self._append(Map(fn, schema, batch_rows, concurrency, retry or NO_RETRY, timeout_s))

    def filter(self, predicate: pc.Expression) -> "Pipeline":
        """Keep the rows for which ``predicate`` (a pyarrow.compute expression) is true; false and null drop."""
        return self._append(Filter(predicate))

    def select(self, *columns: str, **computed: pc.Expression) -> "Pipeline":
        """Keep ``columns``, in this order, and add computed ones (pyarrow.compute expressions) behind them."""
        for column in columns:
            if not isinstance(column, str):
                raise PipelineError(
                    f"select: expected names of columns, found {column!r}; compute with name=expression"
                )
        return self._append(Select(columns, tuple(computed.items())))

    def write(self, sink: Sink) -> "Pipeline":
        """Write to ``sink``. Once, and last."""
        if self.graph.sink is not None:
            raise PipelineError("write: a pipeline writes once")
        if not isinstance(sink, Sink):
            raise PipelineError(f"write: expected a sink of engine.sinks, found {type(sink).__name__}")
        return self._with(sink=sink)

    def validate(self) -> None:
        """Raise PipelineError with every fault in ``.faults``; reads footers and headers, not rows."""
        if faults := self.graph.faults():
            raise PipelineError(faults, pipeline=self.name)

    def explain(self, *, format: Format = "text") -> str:
        """The graph with each stage's guarantee and state, as ``"text"`` or as a ``"mermaid"`` chart."""
        return explain(self.name, self.graph, format=format)

    def _with(self, **changes: Any) -> "Pipeline":
        changed = Pipeline(self.name)
        object.__setattr__(changed, "graph", replace(self.graph, **changes))
        return changed

    def _append(self, stage: Stage | KeyBy) -> "Pipeline":
        if not self.graph.sources:
            raise PipelineError(f"{stage.name}: read() comes first")
        if self.graph.sink is not None:
            raise PipelineError(f"{stage.name}: nothing can follow write()")
        return self._with(stages=(*self.graph.stages, stage))


def _as_source(source: object) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, str):
        raise PipelineError(
            f"read: expected a source, found the text {source!r}; say how to read it, as sources.parquet(…)"
        )
    return memory(source)
