"""``filter``: rows for which a predicate is true stay wanted. Marks rows; copies none."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine._core.partition import combine_selection
from engine.batch import Batch
from engine.errors import PipelineError, StageError
from engine.stage import StageState, Surroundings
from engine.stages.expression import first_line, project
from engine.stages.stateless import Stateless

__all__ = ["Filter"]


@dataclass(frozen=True, eq=False)
class Filter:
    """Keeps the rows for which ``predicate`` is true; those where it is false or null are dropped."""

    predicate: pc.Expression

    @property
    def name(self) -> str:
        """``filter`` and its predicate."""
        return f"filter {self.predicate}"

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema that enters. Raises PipelineError unless the predicate is boolean over its columns."""
        if not isinstance(self.predicate, pc.Expression):
            raise PipelineError(f"filter: expected a pyarrow.compute expression, found {type(self.predicate).__name__}")
        found = project(schema, None, [self.predicate], ["predicate"], stage="filter").schema.field(0).type
        if not pa.types.is_boolean(found):
            raise PipelineError(f"filter: expected a predicate of type bool; {self.predicate} is {found}")
        return schema

    def fingerprint(self) -> StageState | None:
        """A filter may change between runs."""
        return None

    def open(self, schema: pa.Schema, surroundings: Surroundings) -> "FilterTransform":
        """The filter in one lane."""
        return FilterTransform(self, schema, surroundings)


class FilterTransform(Stateless):
    """A filter at work."""

    def __init__(self, stage: Filter, schema: pa.Schema, surroundings: Surroundings) -> None:
        self._stage = stage
        self._schema = schema
        self._surroundings = surroundings

    async def process(self, batch: Batch) -> list[Batch]:
        """The batch with a narrower selection."""
        return [await self._surroundings.offload(self._mark, batch)]

    def _mark(self, batch: Batch) -> Batch:
        try:
            verdict = self._judge(batch)
        except pa.ArrowException as error:
            if batch.selection is not None:
                # Perhaps only a row that an earlier stage dropped made it fail: judge the wanted ones alone.
                return self._mark(batch.gathered())
            raise StageError(
                f"{self._stage.name} failed: {first_line(error)}\n  {batch.origin}. Fix the predicate and run again.",
                stage=self._stage.name,
                partition=self._surroundings.partition,
                rows=str(batch.origin),
            ) from error
        selection, selected = combine_selection(batch.selection, verdict, batch.rows.num_rows)
        return batch.narrowed(selection, selected)

    def _judge(self, batch: Batch) -> "pa.Array[Any]":
        return project(self._schema, batch.rows, [self._stage.predicate], ["predicate"], stage="filter").column(0)
