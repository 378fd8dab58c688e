"""``key_by`` and the public ``HashPartitioner``: which partition a row belongs to, by the hash of its key.

Laws
    - key group = the top 15 bits of the key's hash (a persisted format); partition = key group · partitions >> 15.
    - Equal keys go to one partition, in every Arrow form, on every run and platform; rows keep their order within it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from engine._core.hash import HASH_VERSION
from engine._core.partition import Partitioner
from engine.errors import InputError, PipelineError, missing_column
from engine.stage import StageState

__all__ = ["MAX_PARTITIONS", "HashPartitioner", "KeyBy", "Keys", "column_indices", "key_names"]

MAX_PARTITIONS = 1_024

Keys = str | Sequence[str]


class ArrowArrayExporter(Protocol):
    """Any object with the Arrow C data interface of a struct array: a record batch of any library."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """Give the schema and array capsules."""


def key_names(keys: Keys, *, stage: str) -> tuple[str, ...]:
    """The key columns as a tuple of names. Raises PipelineError for none, or for what is no name."""
    if not isinstance(keys, Iterable) or isinstance(keys, bytes):
        raise PipelineError(f"{stage}: expected the names of columns, found {keys!r}")
    names = (keys,) if isinstance(keys, str) else tuple(keys)
    if not names:
        raise PipelineError(f"{stage}: expected at least one key column")
    for name in names:
        if not isinstance(name, str):
            raise PipelineError(f"{stage}: expected the names of columns, found {name!r}")
    if len(set(names)) != len(names):
        raise PipelineError(f"{stage}: a key column is given twice in {', '.join(names)}")
    return names


def column_indices(names: Sequence[str], schema: pa.Schema, *, stage: str) -> list[int]:
    """Where the key columns are. Raises PipelineError for one that is missing, doubled, or of a type without a hash."""
    faults = []
    for name in names:
        count = schema.names.count(name)
        if count == 0:
            faults.append(f"{stage}: {missing_column(name, schema.names)}")
        elif count > 1:
            faults.append(f'{stage}: column "{name}" is there {count} times; rename or select first')
        elif _is_nested(schema.field(name).type):
            faults.append(f'{stage}: "{name}" is {schema.field(name).type}, and a nested column cannot be a key')
    if faults:
        raise PipelineError(faults)
    return [schema.get_field_index(name) for name in names]


def _is_nested(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _is_nested(kind.storage_type)
    return pa.types.is_nested(kind) or (pa.types.is_dictionary(kind) and _is_nested(kind.value_type))


@dataclass(frozen=True)
class KeyBy:
    """The mark in a pipeline from which rows travel in partitions."""

    keys: tuple[str, ...]
    partitions: int

    def __post_init__(self) -> None:
        _check_partitions(self.partitions, stage="key_by")

    @property
    def name(self) -> str:
        """``key_by`` and its columns."""
        return "key_by " + ", ".join(self.keys)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema that enters. Raises PipelineError where a key column is missing or nested."""
        column_indices(self.keys, schema, stage="key_by")
        return schema

    def fingerprint(self) -> StageState:
        """Key columns and the count of partitions are fixed for an incarnation, and so is the hash."""
        return {"keys": list(self.keys), "partitions": self.partitions, "hash": HASH_VERSION}


class HashPartitioner:
    """Splits record batches into ``partitions`` by the hash of their key columns.

    Equal keys always meet in one partition, also across Arrow forms (utf8, large_utf8, views, dictionary) and runs;
    null is a key like any other. 1 to 1,024 partitions; raises PipelineError otherwise. May be shared between threads.
    """

    def __init__(self, keys: Keys, *, partitions: int) -> None:
        self.keys = key_names(keys, stage="HashPartitioner")
        self.partitions = _check_partitions(partitions, stage="HashPartitioner")
        self._bound: tuple[pa.Schema, Partitioner] | None = None

    def partition(self, batch: pa.RecordBatch | ArrowArrayExporter) -> list[pa.RecordBatch]:
        """Give one record batch per partition, the index being the partition; rows keep their order.

        ``batch``: a pyarrow.RecordBatch or anything with ``__arrow_c_array__``. The results are slices of one new
        batch with the schema of ``batch``. Raises PipelineError where a key column is missing, InputError for what is
        no batch.
        """
        rows = batch if isinstance(batch, pa.RecordBatch) else self._imported(batch)
        bound = self._bound
        if bound is None or (bound[0] is not rows.schema and not bound[0].equals(rows.schema)):
            indices = column_indices(self.keys, rows.schema, stage="HashPartitioner")
            bound = self._bound = (rows.schema, Partitioner(indices, self.partitions))
        return bound[1].partition(rows)

    @staticmethod
    def _imported(batch: object) -> pa.RecordBatch:
        if not hasattr(batch, "__arrow_c_array__"):
            raise InputError(
                f"HashPartitioner: expected a record batch, found {type(batch).__name__}. "
                "Pass the batches of a table one by one (to_batches())."
            )
        return pa.record_batch(batch)


def _check_partitions(partitions: int, *, stage: str) -> int:
    if isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= MAX_PARTITIONS:
        raise PipelineError(f"{stage}: partitions must be from 1 to {MAX_PARTITIONS:,}, found {partitions!r}")
    return partitions
