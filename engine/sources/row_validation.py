"""Validation of rows whose bytes are not trusted, in full and quickly.

Laws
    - It refuses what ``pyarrow.RecordBatch.validate(full=True)`` refuses, and nothing else.
    - Text in ASCII alone, which is most of it, is valid UTF-8 wherever it is cut: its bytes are looked at together
      instead of row by row, and of its rows only the offsets are left to validate.
"""

from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["validate_rows"]

_BYTES_OF_TEXT = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


def validate_rows(rows: pa.RecordBatch) -> None:
    """Look at every value. Raises pyarrow.ArrowInvalid, which names the column, for what is broken."""
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            column.validate()
            _without_proven_text(column).validate(full=True)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f'column "{name}": {error}') from error
    rows.validate()


def _without_proven_text(column: "pa.Array[Any]") -> "pa.Array[Any]":
    """A text column as the bytes that it is made of where it can be nothing but UTF-8; any other one as it is."""
    as_bytes = _BYTES_OF_TEXT.get(column.type)
    return column.view(as_bytes) if as_bytes is not None and _is_ascii(column.buffers()[2]) else column


def _is_ascii(text: pa.Buffer | None) -> bool:
    return text is None or text.size == 0 or bool(np.frombuffer(memoryview(text), np.int8).min() >= 0)
