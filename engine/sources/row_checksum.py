"""A checksum of the first n rows of a stream that does not depend on how they are cut into batches or held in Arrow.

It is the sum, modulo 2^64, of ``mix(hash(row) ^ mix(position))`` over the rows: a sum can grow batch by batch, and the
position inside makes it sensitive to order. It detects other data, not an attacker: the hash is public.

The hash of a row is that of the kernel over its flat columns; nested columns are folded in one after the other. A
struct is its fields, a null struct having null fields; a list is its length (null: none) and the sum of its values'
hashes mixed with their places; run-end-encoded and extension values are what they stand for; unions and other rare
types are hashed as text, slowly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine._core.hash import hash_rows
from engine._core.partition import take

__all__ = ["RowChecksum"]

Hashes = npt.NDArray[np.uint64]

_FOLD = np.uint64(0x9E3779B97F4A7C15)


class RowChecksum:
    """The checksum of the rows so far."""

    def __init__(self) -> None:
        self.row_count = 0
        self._sum = 0

    def update(self, rows: pa.RecordBatch) -> None:
        """Add the rows that come next."""
        hashes = _row_hashes(rows)
        places = np.arange(self.row_count, self.row_count + rows.num_rows, dtype=np.uint64)
        self._sum = (self._sum + int(_mix(hashes ^ _mix(places)).sum(dtype=np.uint64))) % (1 << 64)
        self.row_count += rows.num_rows

    def hexdigest(self) -> str:
        """Sixteen hexadecimal digits."""
        return f"{self._sum:016x}"


def _mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _row_hashes(rows: pa.RecordBatch) -> Hashes:
    columns = [_unwrapped(column) for column in rows.columns]
    flat = [column for column in columns if _is_flat(column.type)]
    hashes = np.full(rows.num_rows, len(columns), dtype=np.uint64)
    if flat:
        hashes = hashes ^ _kernel_hashes(flat)
    for column in columns:
        if not _is_flat(column.type):
            hashes = _mix(hashes * _FOLD ^ _array_hashes(column))
    return hashes


def _kernel_hashes(columns: list[Any]) -> Hashes:
    rows = pa.RecordBatch.from_arrays(columns, names=[str(index) for index in range(len(columns))])
    return np.frombuffer(memoryview(hash_rows(rows, range(len(columns)))), dtype=np.uint64)


def _unwrapped(array: Any) -> Any:
    """What an array stands for, in a form that hashes."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _unwrapped(array.storage)
    if pa.types.is_run_end_encoded(kind):
        return _unwrapped(pc.call_function("run_end_decode", [array]))
    if pa.types.is_dictionary(kind) and not _is_flat(kind):
        return _unwrapped(take(array.dictionary, array.indices))
    return array


def _is_flat(type: pa.DataType) -> bool:
    if pa.types.is_dictionary(type):
        return _is_flat(type.value_type)
    return bool(
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_boolean(type)
        or (pa.types.is_temporal(type) and not pa.types.is_interval(type))
        or pa.types.is_decimal128(type)
        or pa.types.is_decimal256(type)
        or pa.types.is_null(type)
        or pa.types.is_string(type)
        or pa.types.is_binary(type)
        or pa.types.is_large_string(type)
        or pa.types.is_large_binary(type)
        or pa.types.is_string_view(type)
        or pa.types.is_binary_view(type)
        or pa.types.is_fixed_size_binary(type)
    )


def _array_hashes(array: Any) -> Hashes:
    array = _unwrapped(array)
    kind = array.type
    if _is_flat(kind):
        return _kernel_hashes([array])
    if pa.types.is_struct(kind):
        return _struct_hashes(array)
    if any(test(kind) for test in _LISTS):
        return _list_hashes(array)
    return _array_hashes(pa.array([repr(value) for value in array.to_pylist()], pa.string()))


_LISTS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def _struct_hashes(array: Any) -> Hashes:
    hashes = _array_hashes(array.is_valid())
    for field in array.flatten():
        hashes = _mix(hashes * _FOLD ^ _array_hashes(field))
    return hashes


def _list_hashes(array: Any) -> Hashes:
    lengths = pc.cast(pc.list_value_length(array), pa.int64())
    sizes = np.asarray(pc.fill_null(lengths, 0))
    stops = np.cumsum(sizes)
    values = _array_hashes(array.flatten())
    places = np.arange(len(values), dtype=np.uint64) - np.repeat(stops - sizes, sizes).astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(values ^ _mix(places)), dtype=np.uint64)])
    return _mix(_array_hashes(lengths) * _FOLD ^ (sums[stops] - sums[stops - sizes]))
