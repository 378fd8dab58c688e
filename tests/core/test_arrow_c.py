"""The Arrow border: every type is recognised, offsets add up, malformed batches are refused by name."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable

import pyarrow as pa
import pytest
from arrays import ALL_FORMS, KEY_FORMS, NESTED, DrawnBatch, batches
from hypothesis import given
from hypothesis import strategies as st

from engine._core import arrow_c
from engine._core.partition import gather

SEVERAL = st.lists(st.sampled_from(sorted(ALL_FORMS)), max_size=4)


class _Array(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")] + [
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
    ]


class _Schema(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("format", "name", "metadata")] + [
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    ]


class _Exported:
    """What these capsules hold."""

    def __init__(self, schema: object, array: object) -> None:
        self.schema, self.array = schema, array

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self.schema, self.array

    def __arrow_c_schema__(self) -> object:
        return self.schema


def _pointer(capsule: object, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return get(capsule, name)


class Altered:
    """Exports a batch with one field changed in the C struct of its first column (child 0) or of itself (None)."""

    def __init__(self, batch: pa.RecordBatch, field: str, value: int, child: int | None = 0) -> None:
        self.schema, self.array = batch.__arrow_c_array__()
        root = _Array.from_address(_pointer(self.array, b"arrow_array"))
        self.struct = root if child is None else _Array.from_address(root.children[child])
        self.field = ctypes.addressof(self.struct) + getattr(_Array, field).offset
        self.before = ctypes.string_at(self.field, 8)  # a pointer that is read as such would change with the struct
        setattr(self.struct, field, value)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self.schema, self.array

    def restore(self) -> None:
        ctypes.memmove(self.field, self.before, 8)


@given(batches(SEVERAL))
def test_columns_are_parsed_with_their_nulls(drawn: DrawnBatch) -> None:
    described = arrow_c.describe(drawn.batch)
    assert len(described) == len(drawn.forms)
    for column, raw, form in zip(described, drawn.columns, drawn.forms, strict=True):
        assert column["length"] == drawn.rows
        if form in KEY_FORMS and "by" not in form:
            assert column["nulls"] == raw.count(None)


@pytest.mark.parametrize("name", sorted(ALL_FORMS))
def test_kinds_of_a_schema(name: str) -> None:
    kind = arrow_c.kinds(pa.schema([("c", ALL_FORMS[name].type)]))
    assert (kind == ["nested"]) == (name in NESTED)


def test_kinds_by_name() -> None:
    types = [
        pa.int8(),
        pa.uint64(),
        pa.float16(),
        pa.bool_(),
        pa.decimal128(5, 2),
        pa.binary(3),
        pa.string_view(),
        pa.null(),
    ]
    schema = pa.schema([(f"c{index}", kind) for index, kind in enumerate(types)])
    assert arrow_c.kinds(schema) == [
        "signed integer",
        "unsigned integer",
        "floating point",
        "boolean",
        "decimal",
        "fixed-size binary",
        "bytes",
        "null",
    ]


def test_a_dictionary_is_of_the_kind_of_its_values() -> None:
    assert arrow_c.kinds(pa.schema([("c", pa.dictionary(pa.int8(), pa.string()))])) == ["bytes"]


def test_offsets_of_parent_and_child_add_up() -> None:
    child = pa.array([9, 9, 1, 2, None, 4]).slice(2)
    struct = pa.StructArray.from_arrays([child], ["c"])
    assert arrow_c.describe(struct.slice(1))[0] == {
        "name": "c",
        "kind": "signed integer",
        "length": 3,
        "offset": 3,
        "nulls": 1,
    }


@pytest.mark.parametrize("thing", [None, 5, [1, 2], pa.schema([])])
def test_what_is_no_batch_is_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match="__arrow_c_array__"):
        arrow_c.describe(thing)  # type: ignore[arg-type]


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(TypeError, match="__arrow_c_schema__"):
        arrow_c.kinds(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not of format 'l'"):
        arrow_c.kinds(pa.int64())


def test_an_array_that_is_no_struct_is_refused() -> None:
    with pytest.raises(ValueError, match="must be an Arrow struct, not of format 'u'"):
        arrow_c.describe(pa.array(["a"]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("length", 2, "column 'key' of Arrow format 'u': is shorter than its batch"),
        ("length", -1, "is shorter than its batch"),
        ("offset", -1, "is shorter than its batch"),
        ("n_buffers", 2, "column 'key' of Arrow format 'u': has 2 buffers instead of 3"),
        ("buffers", 0, "its buffers are missing"),
        ("release", 0, "is already released"),
    ],
)
def test_malformed_columns_are_refused_by_name(field: str, value: int, message: str) -> None:
    cast = ctypes.POINTER(ctypes.c_void_p)() if field == "buffers" else value
    altered = Altered(pa.record_batch({"key": ["a", "b", "c"]}), field, cast)
    with pytest.raises(ValueError, match=message):
        arrow_c.describe(altered)
    altered.restore()


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_children", 0), ("length", -1), ("offset", -1), ("release", 0), ("children", 0), ("buffers", 0)],
)
@pytest.mark.parametrize("kernel", [arrow_c.describe, lambda batch: gather(batch, None)])
def test_malformed_batches_are_refused(field: str, value: int, kernel: Callable[[object], object]) -> None:
    missing = ctypes.POINTER(ctypes.c_void_p)() if field in ("children", "buffers") else value
    altered = Altered(pa.record_batch({"key": ["a", "b", "c"]}), field, missing, child=None)
    with pytest.raises(ValueError, match="Arrow batch"):
        kernel(altered)
    altered.restore()


@pytest.mark.parametrize(
    "format", ["", "?", "xyz", "w:", "w:-1", "w:x", "w:99999999999", "d:5", "d:5,1,7", "t", "tsx", "v"]
)
def test_unknown_formats_are_refused(format: str) -> None:
    batch = pa.record_batch({"key": [1, 2]})
    schema, array = batch.__arrow_c_array__()
    root = _Schema.from_address(_pointer(schema, b"arrow_schema"))
    child = _Schema.from_address(root.children[0])
    before, child.format = child.format, format.encode()
    try:
        with pytest.raises(ValueError, match=f"column 'key' of Arrow format '{re.escape(format)}': this format"):
            arrow_c.describe(_Exported(schema, array))
        with pytest.raises(ValueError, match=f"the Arrow format '{re.escape(format)}' is not known"):
            arrow_c.kinds(_Exported(schema, array))
    finally:
        child.format = before


def test_an_offset_beyond_all_memory_is_refused() -> None:
    altered = Altered(pa.record_batch({"key": [1, 2, 3]}), "offset", 2**63 - 1)
    with pytest.raises(ValueError, match="reaches beyond all memory"):
        arrow_c.describe(altered)
    altered.restore()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()])
@pytest.mark.parametrize("texts", [["a", "b"], ["", ""]])
def test_text_may_be_missing_only_where_there_is_none(kind: pa.DataType, texts: list[str]) -> None:
    schema, array = pa.record_batch({"key": pa.array(texts, kind)}).__arrow_c_array__()
    root = _Array.from_address(_pointer(array, b"arrow_array"))
    _Array.from_address(root.children[0]).buffers[2] = None
    if any(texts):
        with pytest.raises(ValueError, match="its text is missing"):
            arrow_c.describe(_Exported(schema, array))
    else:
        assert arrow_c.describe(_Exported(schema, array))[0]["length"] == 2


def test_a_missing_dictionary_is_refused() -> None:
    altered = Altered(pa.record_batch({"key": pa.array(["a", "b"]).dictionary_encode()}), "dictionary", 0)
    with pytest.raises(ValueError, match="column 'key' of Arrow format 'i': its dictionary is missing"):
        arrow_c.describe(altered)
    altered.restore()


def test_a_batch_is_released_when_the_kernel_is_done() -> None:
    gc.collect()
    before = pa.total_allocated_bytes()
    batch = pa.record_batch({"a": pa.array(range(10_000))})
    arrow_c.describe(batch)
    del batch
    assert pa.total_allocated_bytes() == before
