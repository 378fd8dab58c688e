"""``map``: a user's function over whole batches, on worker threads or, where it is a coroutine function, on the Trio
loop.

Laws
    - The function sees only wanted rows, gathered, in order, at most ``batch_rows`` at a time.
    - What it returns has the declared schema (or the one it showed on zero rows); anything else is a StageError.
    - None is an error: a forgotten ``return`` must not delete rows.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pyarrow as pa
import trio

from engine.batch import Batch, zero_rows
from engine.errors import PipelineError, StageError
from engine.retry import NO_RETRY, Retry
from engine.stage import StageState, Surroundings
from engine.stages.stateless import Stateless

__all__ = ["Map", "MapFunction"]

MapFunction = Callable[[pa.RecordBatch], Any]


@dataclass(frozen=True, eq=False)
class Map:
    """Applies ``fn`` to every batch. A class in place of a function is instantiated once a partition."""

    fn: MapFunction | type
    schema: pa.Schema | None = None
    batch_rows: int | None = None
    concurrency: int = 1
    retry: Retry = NO_RETRY
    timeout_s: float | None = None
    _learned: list[tuple[pa.Schema, pa.Schema]] = field(default_factory=list, init=False, repr=False)
    """What the function showed on zero rows, for each schema of rows: asking again may cost a model's load."""

    @property
    def name(self) -> str:
        """``map`` and the function's name."""
        return f"map {getattr(self.fn, '__name__', type(self.fn).__name__)}"

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The declared schema, or what the function makes of zero rows. Raises PipelineError where it fails on them."""
        self._check_options()
        if self.schema is not None:
            return self.schema
        for known, learned in self._learned:
            if known.equals(schema, check_metadata=True):
                return learned
        learned = self._learn(schema)
        self._learned.append((schema, learned))
        return learned

    def _learn(self, schema: pa.Schema) -> pa.Schema:
        try:
            returned = self._call_once(zero_rows(schema))
            batches = _as_batches(returned)
        except Exception as error:
            raise PipelineError(
                f"{self.name}: the function failed on zero rows, which it is called with to learn its schema: "
                f"{type(error).__name__}: {error}. Mend it, or pass schema="
            ) from error
        if not batches:
            raise PipelineError(f"{self.name}: returned no batch for zero rows; pass schema=")
        return batches[0].schema

    def fingerprint(self) -> StageState | None:
        """A function may change between runs."""
        return None

    def open(self, schema: pa.Schema, surroundings: Surroundings) -> "MapTransform":
        """The function in one lane."""
        return MapTransform(self, self.output_schema(schema), surroundings)

    def function(self) -> MapFunction:
        """The function itself, or a new instance of the class."""
        fn: Any = self.fn() if inspect.isclass(self.fn) else self.fn
        return cast(MapFunction, fn)

    def _call_once(self, rows: pa.RecordBatch) -> object:
        function = self.function()
        if not is_async(function):
            return function(rows)
        # A loop of its own, on a thread of its own: the caller may be inside a running one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(trio.run, function, rows).result()

    def _check_options(self) -> None:
        faults = []
        if not callable(self.fn):
            faults.append(f"map: expected a function, found {type(self.fn).__name__}")
        if self.schema is not None and not isinstance(self.schema, pa.Schema):
            faults.append(f"{self.name}: schema= must be a pyarrow.Schema, found {type(self.schema).__name__}")
        if self.batch_rows is not None and self.batch_rows < 1:
            faults.append(f"{self.name}: batch_rows must be at least 1, found {self.batch_rows}")
        if self.concurrency < 1:
            faults.append(f"{self.name}: concurrency must be at least 1, found {self.concurrency}")
        if self.timeout_s is not None and self.timeout_s <= 0:
            faults.append(f"{self.name}: timeout_s must be above zero, found {self.timeout_s}")
        if faults:
            raise PipelineError(faults)


def is_async(function: MapFunction) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _as_batches(returned: object) -> list[pa.RecordBatch]:
    """What a function returned, as record batches. Raises TypeError for what is none."""
    if returned is None:
        raise TypeError("it returned None, expected a record batch (is a return missing?)")
    if isinstance(returned, pa.RecordBatch):
        return [returned]
    if isinstance(returned, pa.Table):
        batches = returned.to_batches()
        return batches or [
            pa.RecordBatch.from_arrays([c.combine_chunks() for c in returned.columns], schema=returned.schema)
        ]
    if isinstance(returned, Sequence) and not isinstance(returned, str | bytes):
        return [batch for part in returned for batch in _as_batches(part)]
    if hasattr(returned, "__arrow_c_stream__"):
        return _as_batches(pa.table(returned))
    if hasattr(returned, "__arrow_c_array__"):
        return [pa.record_batch(returned)]
    raise TypeError(f"it returned {type(returned).__name__}, expected a record batch or a list of them")


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under exactly ``schema``. Raises TypeError where names or types differ."""
    if batch.schema.names != schema.names:
        raise TypeError(f"it returned the columns {batch.schema.names}, expected {schema.names}")
    for found, expected in zip(batch.schema, schema, strict=True):
        if found.type != expected.type:
            raise TypeError(f'it returned "{found.name}" as {found.type}, expected {expected.type}')
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


class MapTransform(Stateless):
    """A function at work in one lane."""

    def __init__(self, stage: Map, schema: pa.Schema, surroundings: Surroundings) -> None:
        self._stage = stage
        self._schema = schema
        self._surroundings = surroundings
        self._function = stage.function()
        self._is_async = is_async(self._function)
        self._random = Random(surroundings.seed + surroundings.partition.to_bytes(4, "big"))
        self.concurrency = stage.concurrency

    async def process(self, batch: Batch) -> list[Batch]:
        """What the function makes of the wanted rows. Raises StageError when it fails for good."""
        if batch.row_count == 0:
            return []
        if batch.selection is not None:
            batch = await self._surroundings.offload(batch.gathered)
        step = self._stage.batch_rows or batch.rows.num_rows
        made: list[Batch] = []
        for start in range(0, batch.rows.num_rows, step):
            made += await self._attempt(batch, batch.rows.slice(start, step))
        return made

    async def _attempt(self, batch: Batch, rows: pa.RecordBatch) -> list[Batch]:
        waits = self._stage.retry.waits_s(self._random)
        attempt = 1
        while True:
            try:
                return await self._call(batch, rows)
            except Exception as error:
                wait_s = next(waits, None)
                if not isinstance(error, self._stage.retry.on) or wait_s is None:
                    raise self._failure(batch, rows, attempt, error) from error
            await trio.sleep(wait_s)
            attempt += 1

    async def _call(self, batch: Batch, rows: pa.RecordBatch) -> list[Batch]:
        if self._stage.timeout_s is None:
            return await self._call_untimed(batch, rows)
        with trio.move_on_after(self._stage.timeout_s):
            return await self._call_untimed(batch, rows)
        raise TimeoutError(f"no result within {self._stage.timeout_s} s")

    async def _call_untimed(self, batch: Batch, rows: pa.RecordBatch) -> list[Batch]:
        if self._is_async:
            awaitable: Awaitable[object] = self._function(rows)
            returned = await awaitable
            return await self._surroundings.offload(self._accept, batch, returned)
        if self._stage.timeout_s is not None:
            # The only way not to wait for a function that hangs is to leave its thread behind.
            return await trio.to_thread.run_sync(self._call_and_accept, batch, rows, abandon_on_cancel=True)
        return await self._surroundings.offload(self._call_and_accept, batch, rows)

    def _call_and_accept(self, batch: Batch, rows: pa.RecordBatch) -> list[Batch]:
        return self._accept(batch, self._function(rows))

    def _accept(self, batch: Batch, returned: object) -> list[Batch]:
        conforming = [_conform(rows, self._schema) for rows in _as_batches(returned)]
        return [batch.with_rows(rows).measured() for rows in conforming if rows.num_rows]

    def _failure(self, batch: Batch, rows: pa.RecordBatch, attempt: int, error: Exception) -> StageError:
        function = self._stage.name.removeprefix("map ")
        return StageError(
            f"{self._stage.name} failed on a batch of {rows.num_rows:,} rows: {type(error).__name__}: {error}\n"
            f"  {batch.origin}, partition {self._surroundings.partition}, attempt {attempt}.\n"
            f"  Fix {function} and run again.",
            stage=self._stage.name,
            partition=self._surroundings.partition,
            rows=str(batch.origin),
        )
