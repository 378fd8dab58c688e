"""Evaluates pyarrow expressions on one record batch: the common part of ``filter`` and ``select``.

Arrow offers no direct call for it; a two-node Acero plan (table source, project) is the public way. It runs on the
calling thread and keeps the order of rows.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

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
    # Loaded when it is needed: it brings the datasets of Arrow along, and those bring pandas where it is installed.
    from pyarrow import acero

    table = schema.empty_table() if rows is None else pa.Table.from_batches([rows])
    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
            acero.Declaration("project", acero.ProjectNodeOptions(list(expressions), list(names))),
        ]
    )
    try:
        projected = plan.to_table(use_threads=False).combine_chunks()
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        if rows is not None:
            raise
        shown = ", ".join(str(expression) for expression in expressions)
        raise PipelineError(f"{stage}: {shown} does not fit the columns: {first_line(error)}") from error
    batches = projected.to_batches()
    if batches:
        return batches[0]
    return zero_rows(projected.schema)
