"""Rows into Parquet files.

Laws
    - What Parquet cannot hold is refused before the first row. Run-end encoded columns are written as plain ones;
      every other type comes back as Arrow's reader restores it from the schema that is stored in the file.
    - Choices of encoding (``parquet_choices``) are made per partition, from the first row group of a file, and made
      anew after ``CHOICES_HOLD_ROWS`` rows, as data changes.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import PipelineError
from engine.sinks.file_sink import FileSink
from engine.sinks.ownership import FileMark
from engine.sinks.parquet_choices import ENOUGH_ROWS, Leaf, ParquetChoices, choose
from engine.sinks.staged_file import StagedFile
from engine.sinks.storable_forms import parquet_rows, parquet_schema
from engine.storage import Storage

__all__ = ["ParquetSink", "parquet"]

CODECS = ("snappy", "zstd", "lz4", "gzip", "brotli", "none")
PAGE_BYTES = 256 << 10
"""A page that fits the core's cache: four times as much costs a twelfth of the time, and readers can skip less."""

PAGE_ROWS = 131_072
"""Pages end by their size; Arrow's limit of 20,000 rows costs a tenth of the time."""

CHOICES_HOLD_ROWS = 4 << 20


def parquet(
    path: str | os.PathLike[str],
    *,
    partition_by: str | Sequence[str] | None = None,
    mode: str = "error",
    compression: str | None = "snappy",
    row_group_rows: int = 131_072,
    max_file_bytes: int | None = None,
) -> "ParquetSink":
    """Write the rows to a directory of Parquet files: exactly once, each file visible only whole and committed.

    ``path`` is the directory; it must be missing, empty, or of this pipeline, unless ``mode="append"``, which leaves
    others' files alone. ``partition_by`` names columns that become ``column=value`` directories instead of columns in
    the files. ``compression`` is "snappy", "zstd", "lz4", "gzip", "brotli" or None; columns that do not shrink are
    left as they are. A row group has at most ``row_group_rows`` rows; a file ends with the row group that reaches
    ``max_file_bytes``, or with its epoch. Raises PipelineError.
    """
    return ParquetSink(
        path,
        partition_by=partition_by,
        mode=mode,
        compression=compression,
        row_group_rows=row_group_rows,
        max_file_bytes=max_file_bytes,
    )


class ParquetSink(FileSink):
    """Parquet files in a directory; made by ``parquet``."""

    kind = "parquet"
    extension = "parquet"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partition_by: str | Sequence[str] | None,
        mode: str,
        compression: str | None,
        row_group_rows: int,
        max_file_bytes: int | None,
        storage: Storage | None = None,
    ) -> None:
        codec = (compression or "none").lower()
        if codec not in CODECS:
            raise PipelineError(f"parquet: compression is {compression!r}; there are {', '.join(CODECS)}")
        self.compression = codec
        self._leaves: dict[str, Sequence[Leaf]] = {}
        self._choices: dict[
            int, tuple[ParquetChoices, int]
        ] = {}  # by partition, with the rows that they still hold for
        super().__init__(
            path,
            partition_by=partition_by,
            mode=mode,
            row_group_rows=row_group_rows,
            max_file_bytes=max_file_bytes,
            storage=storage,
        )

    def _format_faults(self, schema: pa.Schema) -> list[str]:
        faults = []
        if len(set(schema.names)) != len(schema.names):
            faults.append("two columns have the same name")
        for field in parquet_schema(schema):
            try:
                _leaves_of(field)
            except pa.ArrowException:
                faults.append(
                    f'parquet has no form for column "{field.name}" ({field.type}); cast it, or use arrow_ipc'
                )
        return faults

    def _opened(self, file_schema: pa.Schema) -> None:
        super()._opened(parquet_schema(file_schema))
        self._leaves = {field.name: _leaves_of(field) for field in self._file_schema}
        self._choices = {}

    def _read_mark(self, path: str) -> FileMark | None:
        try:
            with self.storage.open_input(path) as file:
                return FileMark.from_metadata(pq.read_metadata(file).metadata)
        except OSError as error:
            if error.errno is not None:
                raise
            return None  # Arrow's word for a footer that it cannot read
        except pa.ArrowMemoryError:
            raise
        except pa.ArrowException:
            return None

    def _open_encoder(self, staged: StagedFile, mark: FileMark, rows: pa.Table) -> "_ParquetEncoder":
        rows = parquet_rows(rows, self._file_schema)
        choices, holds = self._choices.get(mark.partition, (None, 0))
        if choices is None or holds <= 0:
            choices = choose(rows, self._leaves, self.compression)
            holds = CHOICES_HOLD_ROWS if rows.num_rows >= ENOUGH_ROWS else 0
        self._choices[mark.partition] = (choices, holds - rows.num_rows)
        return _ParquetEncoder(staged, mark, self._file_schema, choices)


class _ParquetEncoder:
    def __init__(self, staged: StagedFile, mark: FileMark, schema: pa.Schema, choices: ParquetChoices) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(
            staged,  # type: ignore[arg-type]  # the stubs want IO, any such stream will do
            schema,
            use_dictionary=choices.use_dictionary,  # type: ignore[arg-type]
            write_statistics=choices.write_statistics,
            compression=choices.compression,  # type: ignore[arg-type]
            column_encoding=choices.column_encoding,
            data_page_size=PAGE_BYTES,
            max_rows_per_page=PAGE_ROWS,
        )
        self._writer.add_key_value_metadata(mark.to_metadata())

    def write(self, rows: pa.Table) -> None:
        for group in _row_groups(parquet_rows(rows, self._schema)):
            self._writer.write_table(group, row_group_size=group.num_rows)

    def close(self) -> None:
        self._writer.close()


def _row_groups(rows: pa.Table) -> list[pa.Table]:
    """The rows as one row group; piece by piece where the dictionaries of the pieces together have more values than
    their index type can count: readers restore that type, one row group at a time."""
    if any(pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32 for kind in rows.schema.types):
        try:
            rows.unify_dictionaries()
        except pa.ArrowException:
            return [pa.Table.from_batches([batch]) for batch in rows.to_batches()]
    return [rows]


@lru_cache(maxsize=1024)
def _leaves_of(field: "pa.Field[Any]") -> tuple[Leaf, ...]:
    """The columns that Parquet makes of one of ours, learned by writing none of its rows. Raises Arrow's errors."""
    stream = pa.BufferOutputStream()
    schema = pa.schema([field])
    with pq.ParquetWriter(stream, schema) as writer:
        writer.write_table(schema.empty_table())
    columns = pq.read_metadata(pa.BufferReader(stream.getvalue())).schema
    flat = len(columns) == 1 and not pa.types.is_nested(_storage_type(field.type))
    return tuple(
        Leaf(column.path, column.physical_type, column.logical_type.type == "DECIMAL", flat)
        for column in (columns.column(index) for index in range(len(columns)))
    )


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
