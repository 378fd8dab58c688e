"""Parquet files as a source.

Laws
    - Seeking skips whole row groups by the metadata; only the row group that holds the offset is decoded and cut.
    - Memory: one decoded batch, and for each column one page and a read buffer; never a whole row group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import InputError, PipelineError, missing_column
from engine.sources.file_listing import FileSet, InputFile, PathArgument, describe, footer_checksum
from engine.sources.file_source import BATCH_ROWS, FileSource
from engine.sources.row_schema import declared_schema, found_schema
from engine.storage import open_input

__all__ = ["ParquetSource", "parquet"]

MAGIC = b"PAR1"
ENCRYPTED = b"PARE"

READ_BYTES = 32 << 20
"""What the read buffers of all columns together take."""

READ_BYTES_PER_COLUMN = (64 << 10, 1 << 20)
"""Bounds of one column's read buffer."""

INT64 = range(-(1 << 63), 1 << 63)


def parquet(
    path: PathArgument, *, columns: Sequence[str] | None = None, schema: pa.Schema | None = None, hive: bool = True
) -> "ParquetSource":
    """Read Parquet files: a file, a directory with all below it (.parquet, .parq, .pq), a pattern, or several of these.

    Files are read in the order of their paths below the directory; files that appear later come after all that were
    read. All must have the same columns and types. ``columns``: only these, in this order. ``schema``: cast to these
    types, where that loses nothing. ``hive``: ``name=value`` directories become columns, int64 where every value is an
    integer, else string. Replayable. Raises PipelineError; reading raises InputError and SourceError.
    """
    declared = declared_schema(schema)
    chosen = None if columns is None else tuple(columns)
    if isinstance(columns, str) or (chosen is not None and (not chosen or len(set(chosen)) < len(chosen))):
        raise PipelineError(f"read: columns= must be a sequence of different names, found {columns!r}")
    if declared is not None and chosen is not None:
        for name in chosen:
            if name not in declared.names:
                raise PipelineError(f"read: columns= does not fit schema=: {missing_column(name, declared.names)}")
        declared = pa.schema([declared.field(name) for name in chosen])
    return ParquetSource(FileSet.of(path, (".parquet", ".parq", ".pq")), declared, chosen, hive)


@dataclass(frozen=True, slots=True)
class ParquetSource(FileSource):
    """Rows of Parquet files."""

    columns: tuple[str, ...] | None
    hive: bool

    kind: ClassVar[str] = "parquet"
    title: ClassVar[str] = "Parquet"
    schema_is_cheap: ClassVar[bool] = True

    def checksum(self, handle: pa.NativeFile, size: int) -> str:
        """The footer's: it holds the place, size and statistics of everything else."""
        return footer_checksum(MAGIC)(handle, size)

    def open_file(self, file: InputFile, expected: pa.Schema | None) -> "_OpenParquet":
        """Read the footer."""
        wanted = None if expected is None else expected.names
        narrowed = expected is not None and self.declared is None and self.columns is not None
        return _OpenParquet(file, wanted, narrowed=narrowed)

    def expected(self, file: InputFile, files: Sequence[InputFile]) -> pa.Schema | None:
        """The file's columns and those of its directories, or the chosen ones of them."""
        inside = FileSource.expected(self, file, files)
        assert inside is not None
        constants = self.constants(file, files)
        fields = [*inside, *(pa.field(n, value.type) for n, value in constants.items() if n not in inside.names)]
        found = {field.name: field for field in fields}
        for name in self.columns or ():
            if name not in found:
                raise InputError(f"{file.location}: {missing_column(name, found)}")
        return pa.schema([found[name] for name in self.columns or found])

    def constants(self, file: InputFile, files: Sequence[InputFile]) -> Mapping[str, Any]:
        """The values of the ``name=value`` directories, of one type for all files."""
        if not self.hive or not file.partitions:
            return {}
        types = _hive_types(tuple(files), self.declared)
        constants = {}
        for name, value in file.partitions:
            if self.columns is not None and name not in self.columns:
                continue
            if self.declared is not None and name not in self.declared.names:
                continue
            whole = value is not None and pa.types.is_integer(types[name])
            constants[name] = pa.scalar(int(value) if whole and value is not None else value, types[name])
        return constants


def _hive_types(files: tuple[InputFile, ...], declared: pa.Schema | None) -> dict[str, pa.DataType]:
    values: dict[str, set[str | None]] = {}
    for file in files:
        for name, value in file.partitions:
            values.setdefault(name, set()).add(value)
    return {name: pa.int64() if _all_integers(each) else pa.string() for name, each in values.items()}


def _all_integers(values: set[str | None]) -> bool:
    texts = [value for value in values if value is not None]
    digits = (text.removeprefix("-") for text in texts)
    return bool(texts) and all(d.isascii() and d.isdigit() and len(d) < 20 for d in digits) and _in_range(texts)


def _in_range(texts: list[str]) -> bool:
    return all(int(text) in INT64 for text in texts)


class _OpenParquet:
    """One Parquet file while it is read."""

    def __init__(self, file: InputFile, wanted: Sequence[str] | None, *, narrowed: bool) -> None:
        handle = open_input(file.path)
        try:
            _check_magic(handle, file)
            footer = pq.ParquetFile(handle, pre_buffer=False)
            whole = found_schema(footer.schema_arrow, file.location)
            held = pa.schema([field for field in whole if wanted is None or field.name in wanted])
            least, most = READ_BYTES_PER_COLUMN
            buffer = min(most, max(least, READ_BYTES // max(1, len(held))))
            self._file = pq.ParquetFile(handle, metadata=footer.metadata, buffer_size=buffer, pre_buffer=False)
        except BaseException:
            handle.close()
            raise
        self._handle = handle
        self._names = held.names
        self.schema = held if narrowed else whole
        self.row_count: int | None = self._file.metadata.num_rows

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Decoded rows; row groups before ``skip`` are not touched."""
        metadata = self._file.metadata
        first = 0
        while first < metadata.num_row_groups and metadata.row_group(first).num_rows <= skip:
            skip -= metadata.row_group(first).num_rows
            first += 1
        groups = list(range(first, metadata.num_row_groups))
        if not groups:
            return
        for batch in self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=self._names, use_threads=False):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            kept = batch.slice(skip)
            skip = 0
            yield kept.select(self._names) if self._names else kept

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)
        self._handle.close()


def _check_magic(handle: pa.NativeFile, file: InputFile) -> None:
    size = handle.size()
    head = bytes(handle.read(16))
    handle.seek(max(0, size - len(MAGIC)))
    tail = bytes(handle.read(len(MAGIC)))
    if head[:4] == ENCRYPTED or tail == ENCRYPTED:
        raise InputError(f"{file.location}: is an encrypted Parquet file.\n  Write it without encryption.")
    if head[:4] != MAGIC:
        raise InputError(
            f"{file.location}: expected a Parquet file, found {describe(head, size)}.\n"
            "  Nothing from it was committed. Remove it, or write it again."
        )
    if tail != MAGIC:
        raise InputError(
            f"{file.location}: expected a Parquet file, found one that is truncated ({size:,} bytes, no footer).\n"
            "  Nothing from it was committed. Write it again, whole."
        )
