"""Validation of rows: the same verdict as Arrow's, for whole and for broken ones."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sources.row_validation import validate_rows

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=6), st.text("abc", max_size=40)), max_size=12)


def text_column(kind: pa.DataType, offsets: list[int], text: bytes) -> pa.Array:
    width = np.int64 if kind == pa.large_string() else np.int32
    buffers = [None, pa.py_buffer(np.array(offsets, width)), pa.py_buffer(text)]
    return pa.Array.from_buffers(kind, len(offsets) - 1, buffers)


def accepted(rows: pa.RecordBatch, validate) -> bool:
    try:
        validate(rows)
    except pa.ArrowInvalid:
        return False
    return True


def agrees(rows: pa.RecordBatch) -> bool:
    """The verdict, which must be Arrow's."""
    verdict = accepted(rows, validate_rows)
    assert verdict == accepted(rows, lambda rows: rows.validate(full=True))
    return verdict


@given(TEXTS, st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.binary()]), st.data())
def test_whole_rows_pass(texts, kind, data):
    values = [None if text is None else text.encode() for text in texts] if kind == pa.binary() else texts
    rows = pa.RecordBatch.from_arrays([pa.array(values, kind), pa.array(range(len(texts)), pa.int64())], ["a", "b"])
    start = data.draw(st.integers(0, len(texts)))
    assert agrees(rows.slice(start))


@given(
    st.sampled_from([pa.string(), pa.large_string()]),
    st.lists(st.integers(-2, 12), max_size=5),
    st.one_of(st.binary(max_size=10), st.text(max_size=8).map(str.encode), st.text("ab", max_size=10).map(str.encode)),
)
def test_broken_text_is_refused_as_by_arrow(kind, between, text):
    # Arrow makes no array whose first and last offset are wrong.
    agrees(pa.RecordBatch.from_arrays([text_column(kind, [0, *between, len(text)], text)], ["a"]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bytes_that_no_row_shows_need_not_be_text(kind):
    assert agrees(pa.RecordBatch.from_arrays([text_column(kind, [0, 1], b"a\xff")], ["a"]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_each_fault_is_found(kind):
    cut_letter, backwards, beyond, no_text = [0, 1, 2], [0, 4, 2, 4], [0, 9, 4], [0, 1]
    faults = [(cut_letter, "é".encode()), (backwards, b"text"), (beyond, b"text"), (no_text, b"\xff")]
    for offsets, text in faults:
        rows = pa.RecordBatch.from_arrays([text_column(kind, offsets, text)], ["the text"])
        assert not agrees(rows)
        with pytest.raises(pa.ArrowInvalid, match='column "the text": '):
            validate_rows(rows)


def test_text_below_other_types_is_looked_at():
    broken = text_column(pa.string(), [0, 1], b"\xff")
    nested = pa.StructArray.from_arrays([broken], ["text"])
    coded = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), broken)
    for column in (nested, coded):
        assert not agrees(pa.RecordBatch.from_arrays([column], ["a"]))


def test_rows_without_columns_pass():
    validate_rows(pa.RecordBatch.from_arrays([], []))
