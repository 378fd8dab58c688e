"""Forms of columns that the writers of files take, where they do not take Arrow's own.

Laws
    - Values never change: only run ends, views inside structs and dictionaries, and nulls among the values of a
      dictionary are written otherwise.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine._core.partition import take, without_views

__all__ = ["parquet_rows", "parquet_schema", "with_plain_dictionaries"]


def parquet_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of Parquet files for rows of ``schema``: no run ends, no views inside structs and dictionaries."""
    fields = [field.with_type(_parquet_type(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)  # type: ignore[arg-type]


def parquet_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows in the form of ``parquet_schema``."""
    for index, field in enumerate(schema):
        kind = rows.schema.field(index).type
        if kind.equals(field.type):
            continue
        column: Any = rows.column(index)
        if pa.types.is_run_end_encoded(kind):
            decode: Callable[[Any], Any] = pc.run_end_decode  # type: ignore[attr-defined]  # the stubs lack it
            column = pa.chunked_array([decode(chunk) for chunk in column.chunks], field.type)
        else:
            column = column.cast(field.type)
        rows = rows.set_column(index, field, column)
    return with_plain_dictionaries(rows)


def with_plain_dictionaries(rows: pa.Table) -> pa.Table:
    """Rows whose nulls are in the indices of dictionaries, not among the values: writers know no other."""
    for index, field in enumerate(rows.schema):
        column: Any = rows.column(index)
        if pa.types.is_dictionary(field.type) and any(chunk.dictionary.null_count for chunk in column.chunks):
            decoded = [take(chunk.dictionary, chunk.indices) for chunk in column.chunks]
            plain = [values.dictionary_encode().cast(field.type) for values in decoded]
            rows = rows.set_column(index, field, pa.chunked_array(plain))
    return rows


def _parquet_type(kind: Any) -> Any:
    if pa.types.is_run_end_encoded(kind):
        return kind.value_type
    return without_views(kind) if _has_struct_or_dictionary(kind) else kind


def _has_struct_or_dictionary(kind: Any) -> bool:
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return pa.types.is_struct(kind) or pa.types.is_dictionary(kind) or any(map(_has_struct_or_dictionary, inner))
