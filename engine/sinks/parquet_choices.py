"""How to encode each column of a Parquet file, decided from a sample of its first rows.

Encoding dominates the cost of a whole ingest, and the writer's defaults pay for things that do not help: a dictionary
of unique ids, a codec on bytes that do not shrink, minima of long texts. Against those defaults the choices here take
a third of the time and make smaller files, which are also read faster.

    column                                          encoding
    text, binary whose values repeat                dictionary, codec
    text, binary otherwise                          plain; codec if the sample shrinks
    integers, times whose differences are short     DELTA_BINARY_PACKED; a fast codec finds nothing more
    other numbers                                   dictionary if few values, else plain; a fast codec if the sample
                                                    shrinks by half, a thorough one if it shrinks
    nested, dictionary                              Arrow's defaults

Tried and lost, in ns a value of one core: DELTA_LENGTH_BYTE_ARRAY for unique texts of 40 bytes (39 against 19 plain,
for 7 % fewer bytes); DELTA_BYTE_ARRAY (44) and DELTA_LENGTH_BYTE_ARRAY (29) for repeating keys against a dictionary
(27, a fifth of the bytes); snappy, lz4 or a dictionary for amounts (22 to 24 against 6); BYTE_STREAM_SPLIT without a
codec (7, nothing saved). Write batches of 1,024 to 131,072 rows, and statistics of numbers on or off, make no
difference that can be told.

Laws
    - A choice affects speed and size, never the values; readers need nothing but Parquet 2.6's encodings of 2013.
    - Statistics (minimum, maximum) are kept for numbers, times, booleans and decimals, by which readers skip row
      groups.
    - Dictionaries are counted and codecs are tried on the very sample; the same rows give the same choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ENOUGH_ROWS", "Leaf", "ParquetChoices", "choose"]

RUNS, RUN_ROWS = 4, 1024
"""The sample: runs of consecutive rows spread over the row group, so that it shows both repetition and differences."""

ENOUGH_ROWS = RUNS * RUN_ROWS
"""Choices from so many rows hold for later files too."""

TRIED_BYTES = 64 << 10
REPEATING_TEXT = 0.5
"""Distinct values a row below which a dictionary of texts pays: in a whole row group it will be far lower."""

REPEATING_NUMBERS = 0.1
"""The same for numbers, of which a plain copy is cheap."""

SHRINKING_TEXT = 0.9
"""What a codec must leave of text at most to be worth its time."""

SHRINKING_NUMBERS = 0.5
"""The same for numbers, where a fast codec takes four times as long as a plain copy: snappy takes 3 bytes of 8 off
doubles with two decimals, in the time that a text of 40 bytes needs. Thorough codecs are asked for to save bytes."""

SHORT_DELTAS = 0.75
"""Bytes of packed differences a byte of plain values at which packing pays."""

FAST_CODECS = ("snappy", "lz4")
TRIAL_CODECS = {"lz4": "lz4_raw"}
BLOCK, MINIBLOCK = 128, 32
"""DELTA_BINARY_PACKED as Arrow writes it."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column of the file: its path, Parquet's physical type, and whether it is a whole flat column of the table."""

    path: str
    physical: str
    decimal: bool
    flat: bool


@dataclass(slots=True)
class ParquetChoices:
    """Arguments for pyarrow's ParquetWriter."""

    use_dictionary: list[str] = field(default_factory=list)
    write_statistics: list[str] = field(default_factory=list)
    compression: dict[str, str] = field(default_factory=dict)
    column_encoding: dict[str, str] = field(default_factory=dict)


def choose(rows: pa.Table, leaves: Mapping[str, Sequence[Leaf]], codec: str) -> ParquetChoices:
    """Choices for a file that begins with ``rows``; ``leaves`` by column of the table, ``codec`` as the user asked."""
    choices = ParquetChoices()
    for name in rows.schema.names:
        for leaf in leaves[name]:
            choices.compression[leaf.path] = codec
            if leaf.decimal or leaf.physical not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY", "INT96"):
                choices.write_statistics.append(leaf.path)
            if leaf.flat and not pa.types.is_dictionary(rows.schema.field(name).type):
                _choose_flat(choices, leaf, _sample(rows.column(name)), codec)
            elif leaf.physical == "BYTE_ARRAY" or leaf.flat:
                choices.use_dictionary.append(leaf.path)
    return choices


def _choose_flat(choices: ParquetChoices, leaf: Leaf, sample: Any, codec: str) -> None:
    if leaf.physical == "BOOLEAN" or len(sample) == sample.null_count:
        return
    if leaf.physical in ("INT32", "INT64") and _delta_share(sample) <= SHORT_DELTAS:
        choices.column_encoding[leaf.path] = "DELTA_BINARY_PACKED"
        if codec in FAST_CODECS:
            choices.compression[leaf.path] = "none"
        return
    text = leaf.physical in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
    if _distinct_share(sample) <= (REPEATING_TEXT if text else REPEATING_NUMBERS):
        choices.use_dictionary.append(leaf.path)
    elif codec != "none" and _codec_share(sample, codec) > _shrinking(text, codec):
        choices.compression[leaf.path] = "none"


def _shrinking(text: bool, codec: str) -> float:
    return SHRINKING_NUMBERS if codec in FAST_CODECS and not text else SHRINKING_TEXT


def _sample(column: Any) -> Any:
    """Up to RUNS runs of RUN_ROWS rows, copied together."""
    length = len(column)
    if length <= ENOUGH_ROWS:
        pieces = column.chunks
    else:
        starts = np.linspace(0, length - RUN_ROWS, RUNS).astype(int)
        pieces = [chunk for start in starts for chunk in column.slice(int(start), RUN_ROWS).chunks]
    pieces = [_plain(piece) for piece in pieces]
    return pa.concat_arrays(pieces) if pieces else pa.nulls(0, column.type)


def _plain(piece: Any) -> Any:
    """The storage of an extension array; texts in their offset form, whose bytes lie together."""
    if isinstance(piece, pa.ExtensionArray):
        piece = piece.storage
    if pa.types.is_string_view(piece.type) or pa.types.is_binary_view(piece.type):
        return piece.cast(pa.large_binary())
    return piece


def _distinct_share(sample: Any) -> float:
    """Distinct values a row, nulls apart."""
    distinct: int = pc.count_distinct(sample, mode="only_valid").as_py()
    share: float = distinct / (len(sample) - sample.null_count)
    return share


def _codec_share(sample: Any, codec: str) -> float:
    """What the codec leaves of the sample's values."""
    values = sample.drop_null().buffers()[-1]
    if values is None or values.size == 0:
        return 1.0
    tried = values.slice(0, min(values.size, TRIED_BYTES))
    compressed: pa.Buffer = pa.compress(tried, TRIAL_CODECS.get(codec, codec))  # type: ignore[call-overload]
    return int(compressed.size) / int(tried.size)


def _delta_share(sample: Any) -> float:
    """Bytes that DELTA_BINARY_PACKED takes for a byte of plain values."""
    values = _integers(sample.drop_null())
    blocks = (len(values) - 1) // BLOCK
    if blocks < 1:
        return 1.0
    with np.errstate(over="ignore"):
        deltas = np.diff(values[: blocks * BLOCK + 1]).reshape(blocks, BLOCK)
        spans = (deltas - deltas.min(axis=1, keepdims=True)).view(np.uint64)
    widths = np.ceil(np.log2(spans.reshape(blocks, -1, MINIBLOCK).max(axis=2).astype(np.float64) + 1))
    header_bytes = 5 + BLOCK // MINIBLOCK
    packed_bytes = float(widths.sum()) * MINIBLOCK / 8 + blocks * header_bytes
    plain_bytes = blocks * BLOCK * (sample.type.bit_width // 8 if sample.type.bit_width > 32 else 4)
    return packed_bytes / plain_bytes


def _integers(values: Any) -> npt.NDArray[np.int64]:
    kind = values.type
    if not pa.types.is_integer(kind):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    plain: npt.NDArray[np.int64] = values.to_numpy(zero_copy_only=False).astype(np.int64)
    return plain
