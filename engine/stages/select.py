"""``select``: the columns that go on, by name or computed from others, in the order given."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch
from engine.errors import PipelineError, StageError, missing_column
from engine.stage import StageState, Surroundings
from engine.stages.expression import first_line, project
from engine.stages.stateless import Stateless

__all__ = ["Select"]


@dataclass(frozen=True, eq=False)
class Select:
    """Keeps ``columns`` and adds ``computed`` ones behind them, each a pyarrow.compute expression."""

    columns: tuple[str, ...]
    computed: tuple[tuple[str, pc.Expression], ...]

    @property
    def name(self) -> str:
        """``select`` and the names of its columns."""
        return "select " + ", ".join([*self.columns, *(name for name, _ in self.computed)])

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The selected fields and the computed ones. Raises PipelineError for a column that is not there."""
        names = [*self.columns, *(name for name, _ in self.computed)]
        faults = [f"select: {missing_column(name, schema.names)}" for name in self.columns if name not in schema.names]
        faults += [
            f'select: column "{name}" is given twice' for name in sorted({n for n in names if names.count(n) > 1})
        ]
        faults += [
            f"select: {name}= must be a pyarrow.compute expression, found {type(expression).__name__}"
            for name, expression in self.computed
            if not isinstance(expression, pc.Expression)
        ]
        if not names:
            faults.append("select: expected at least one column")
        if faults:
            raise PipelineError(faults)
        fields = [schema.field(name) for name in self.columns]
        fields += list(self._compute(schema, None).schema) if self.computed else []
        selected = pa.schema(fields)
        return selected.with_metadata(schema.metadata) if schema.metadata else selected

    def fingerprint(self) -> StageState | None:
        """A selection of columns may change between runs."""
        return None

    def open(self, schema: pa.Schema, surroundings: Surroundings) -> "SelectTransform":
        """The selection in one lane."""
        return SelectTransform(self, schema, surroundings)

    def _compute(self, schema: pa.Schema, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        names = [name for name, _ in self.computed]
        return project(schema, rows, [expression for _, expression in self.computed], names, stage="select")


class SelectTransform(Stateless):
    """A selection of columns at work. Rows are not copied, and those that are no longer wanted stay marked."""

    def __init__(self, stage: Select, schema: pa.Schema, surroundings: Surroundings) -> None:
        self._stage = stage
        self._schema = schema
        self._output_schema = stage.output_schema(schema)
        self._surroundings = surroundings

    async def process(self, batch: Batch) -> list[Batch]:
        """The batch with other columns and the same selection."""
        if not self._stage.computed:
            return [self._choose(batch)]
        return [await self._surroundings.offload(self._choose, batch)]

    def _choose(self, batch: Batch) -> Batch:
        if self._stage.computed:
            # A dropped row must not fail a computation, so only wanted rows are computed on.
            batch = batch.gathered()
        columns = [batch.rows.column(name) for name in self._stage.columns]
        if self._stage.computed:
            try:
                columns += self._stage._compute(self._schema, batch.rows).columns
            except pa.ArrowException as error:
                raise StageError(
                    f"{self._stage.name} failed: {first_line(error)}\n"
                    f"  {batch.origin}. Fix the expression and run again.",
                    stage=self._stage.name,
                    partition=self._surroundings.partition,
                    rows=str(batch.origin),
                ) from error
        rows = pa.RecordBatch.from_arrays(columns, schema=self._output_schema)
        return Batch(rows, batch.origin, batch.selection, batch.selected)
