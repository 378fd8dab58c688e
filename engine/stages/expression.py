"""Evaluates pyarrow expressions on one record batch: the common part of ``filter`` and ``select``.

Arrow offers no direct call for it; a two-node Acero plan (table source, project) is the public way. It runs on the
calling thread and keeps the order of rows. Text and bytes in views, as data tools give them, are unknown to most of
Arrow's functions: where one refuses the types, it is given plain ones.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from engine._core.partition import without_views
from engine.batch import zero_rows
from engine.errors import PipelineError

__all__ = ["first_line", "project"]


def first_line(error: BaseException) -> str:
    """The first line of an error's text: the rest is of no help to a user."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def project(
    schema: pa.Schema,
    rows: pa.RecordBatch | None,
    expressions: Sequence[pc.Expression],
    names: Sequence[str],
    *,
    stage: str,
) -> pa.RecordBatch:
    """One column per expression over ``rows``, of as many rows; None stands for no rows, to learn the types.

    Raises PipelineError where the expressions do not fit the schema, pyarrow.ArrowException where they fail on a value.
    """
    table = pa.Table.from_batches([zero_rows(schema) if rows is None else rows])
    try:
        projected = _projected(table, expressions, names)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        if rows is not None:
            raise
        shown = ", ".join(str(expression) for expression in expressions)
        raise PipelineError(f"{stage}: {shown} does not fit the columns: {first_line(error)}") from error
    batches = projected.to_batches()
    if batches:
        return batches[0]
    return zero_rows(projected.schema)


def _projected(table: pa.Table, expressions: Sequence[pc.Expression], names: Sequence[str]) -> pa.Table:
    # Loaded when it is needed: it brings the datasets of Arrow along, and those bring pandas where it is installed.
    from pyarrow import acero

    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
            acero.Declaration("project", acero.ProjectNodeOptions(list(expressions), list(names))),
        ]
    )
    try:
        return plan.to_table(use_threads=False).combine_chunks()
    except pa.ArrowNotImplementedError:
        plain = _without_views(table)
        if plain.schema.equals(table.schema):
            raise
        return _projected(plain, expressions, names)


def _without_views(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        plain = field.with_type(without_views(field.type))
        if plain != field:
            table = table.set_column(index, plain, table.column(index).cast(plain.type))
    return table
