"""Rows into ``column=value`` directories, the layout of Hive: the columns leave the file and live in its path.

Laws
    - Values are written as text and percent-encoded as pyarrow does it; null is ``__HIVE_DEFAULT_PARTITION__``. A text
      that reads so itself is refused: all readers decode before they compare, and would take it for null.
    - Rows of one directory keep their order.
    - A name that no filesystem takes is refused before anything of it is committed.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine._core.partition import take, without_views
from engine.errors import missing_column
from engine.sinks.storable_forms import with_plain_dictionaries

__all__ = ["HiveLayout", "NoDirectoryName", "layout_faults", "partition_values"]

NULL = "__HIVE_DEFAULT_PARTITION__"
NAME_BYTES = 255
"""NAME_MAX of all common filesystems."""


class NoDirectoryName(ValueError):  # noqa: N818 - what there is not
    """A value that cannot be told by the name of a directory."""


def layout_faults(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Why rows of ``schema`` cannot be laid out by ``columns``; empty where they can."""
    faults = []
    for column in columns:
        if schema.names.count(column) != 1:
            faults.append(missing_column(column, schema.names))
        elif not _has_text(schema.field(column).type):
            faults.append(
                f'partition_by "{column}" is {schema.field(column).type}; it has no text to name a directory by'
            )
    if len(set(columns)) != len(columns):
        faults.append(f"partition_by names a column twice: {', '.join(columns)}")
    elif not schema.names:
        faults.append("the rows have no columns, so there is nothing to write")
    elif not faults and len(columns) == len(schema.names):
        faults.append("partition_by takes every column; none is left for the files")
    return faults


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    exact = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    return text or exact or pa.types.is_date(kind) or pa.types.is_timestamp(kind)


class HiveLayout:
    """Splits tables of one schema by the values of ``columns``. Immutable: any number of threads may use it."""

    def __init__(self, schema: pa.Schema, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.file_schema = pa.schema(
            [field for field in schema if field.name not in self.columns],
            metadata=schema.metadata,  # type: ignore[arg-type]
        )

    def split(self, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Each directory with its rows. Raises NoDirectoryName."""
        codes: npt.NDArray[np.int64] = np.zeros(rows.num_rows, dtype=np.int64)
        levels = []
        for column in self.columns:
            values, indices = _dictionary(rows.column(column))
            levels.append((indices, [_directory_name(column, value) for value in values]))
            _, codes = np.unique(codes * len(values) + indices, return_inverse=True)
        kept = rows.select(self.file_schema.names).replace_schema_metadata(self.file_schema.metadata)
        count = int(codes.max(initial=-1)) + 1
        if count > 1:
            kept = with_plain_dictionaries(kept)
            order = np.argsort(codes, kind="stable")
            kept = pa.Table.from_arrays([take(column, order) for column in kept.columns], schema=kept.schema)
        else:
            order = np.arange(rows.num_rows)
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], rows.num_rows], strict=True):
            first = order[start]
            directory = os.path.join(*(names[indices[first]] for indices, names in levels))
            yield directory, kept.slice(int(start), int(stop - start))


def _dictionary(column: Any) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """The distinct values of a column as text, and for each row the index of its value."""
    plain = column.cast(without_views(column.type))
    whole = plain.cast(plain.type.value_type if pa.types.is_dictionary(plain.type) else plain.type).combine_chunks()
    encoded: Any = pc.dictionary_encode(whole, null_encoding="encode")
    texts: list[str | None] = encoded.dictionary.cast(pa.large_string()).to_pylist()
    return texts, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _directory_name(column: str, value: str | None) -> str:
    if value == NULL:
        raise NoDirectoryName(f'a value of "{column}" is "{NULL}", which readers take for null')
    name = f"{quote(column, safe='')}={NULL if value is None else quote(value, safe='')}"
    if len(name) > NAME_BYTES:
        raise NoDirectoryName(f'a value of "{column}" is too long for the name of a directory: {value!r:.60}…')
    return name


def partition_values(directory: str) -> dict[str, str | None]:
    """The columns and their text, as a directory that ``HiveLayout`` named tells them; none where it is empty."""
    pairs = (part.split("=", 1) for part in directory.split(os.sep) if part)
    return {unquote(column): None if value == NULL else unquote(value) for column, value in pairs}
