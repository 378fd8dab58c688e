"""Forms of columns that the writers of files take, where they do not take Arrow's own.

Laws
    - Values never change: only run ends, views inside structs, and nulls among the values of a dictionary are written
      otherwise.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["parquet_rows", "parquet_schema", "with_plain_dictionaries"]


def parquet_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of Parquet files for rows of ``schema``: no run ends, and no views inside structs."""
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
            plain = [chunk.dictionary_decode().dictionary_encode().cast(field.type) for chunk in column.chunks]
            rows = rows.set_column(index, field, pa.chunked_array(plain))
    return rows


def _parquet_type(kind: Any) -> Any:
    if pa.types.is_run_end_encoded(kind):
        return kind.value_type
    return _without_views(kind) if pa.types.is_nested(kind) and _has_struct(kind) else kind


def _has_struct(kind: Any) -> bool:
    return pa.types.is_struct(kind) or any(_has_struct(kind.field(index).type) for index in range(kind.num_fields))


def _without_views(kind: Any) -> Any:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    for is_list, make in (
        (pa.types.is_list, pa.list_),
        (pa.types.is_large_list, pa.large_list),
        (pa.types.is_list_view, pa.list_view),
        (pa.types.is_large_list_view, pa.large_list_view),
    ):
        if is_list(kind):
            return make(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), kind.item_field.with_type(_without_views(kind.item_type)))
    return kind
