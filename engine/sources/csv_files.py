"""CSV files as a source.

Laws
    - Types are those of ``schema=``, or of the first block of the first file that has rows: never of the file at hand.
      A column without a value there is text.
    - Seeking reads the file from its beginning and drops rows: a row has no place of its own in a CSV file.
    - Memory: the blocks that the parser reads ahead (32 MiB), and one batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.csv as pa_csv

from engine.errors import PipelineError
from engine.sources.file_listing import FileSet, InputFile, PathArgument
from engine.sources.file_source import FileSource
from engine.sources.row_schema import declared_schema, drift, drift_error, found_schema
from engine.sources.text_input import check_text, is_packed, open_text
from engine.storage import open_input

__all__ = ["CsvSource", "csv"]

BLOCK_BYTES = 1 << 20
"""A row must fit into it. The parser reads up to 32 blocks ahead."""

BATCH_BYTES = 4 << 20
"""Blocks are put together to batches of at least this size: about 40,000 rows of 100 bytes."""


def csv(
    path: PathArgument, *, schema: pa.Schema | None = None, delimiter: str = ",", header: bool = True
) -> "CsvSource":
    """Read CSV files: a file, a directory with all below it (.csv, .tsv; also .gz and .zst), a pattern, or several
    of these.

    Files are read in the order of their paths below the directory; files that appear later come after all that were
    read. UTF-8, quoted as in RFC 4180; an empty value is null, in a text column the empty text. Without ``schema`` the
    types are those that fit the first rows of the first file (whole numbers beyond int64 become doubles), and every
    other file must have the same columns; with it, columns that it does not name are not read. ``header=False``:
    columns are named as in ``schema``, or f0, f1, …. Replayable. Raises PipelineError; reading raises InputError and
    SourceError.
    """
    if not isinstance(delimiter, str) or len(delimiter.encode()) != 1 or delimiter in '"\r\n':
        raise PipelineError(f"read: delimiter= must be one ASCII character, found {delimiter!r}")
    files = FileSet.of(path, tuple(f"{name}{packed}" for name in (".csv", ".tsv") for packed in ("", ".gz", ".zst")))
    return CsvSource(files, declared_schema(schema), delimiter, header)


@dataclass(frozen=True, slots=True)
class CsvSource(FileSource):
    """Rows of CSV files."""

    delimiter: str
    header: bool

    kind: ClassVar[str] = "csv"
    title: ClassVar[str] = "CSV"

    def expected(self, file: InputFile, files: Sequence[InputFile]) -> pa.Schema | None:
        """The types that fit the first block; None where the file has no rows and is not the last hope."""
        schema = self._inferred(file)
        if len(files) > 1 and all(pa.types.is_null(each) for each in schema.types) and file != files[-1]:
            return None
        return pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])

    def _inferred(self, file: InputFile) -> pa.Schema:
        opened = self._open(file, None)
        try:
            return found_schema(opened.schema, file.location)
        finally:
            opened.close()

    def open_file(self, file: InputFile, expected: pa.Schema | None) -> "_OpenCsv":
        """Read the header and the first block, in the expected types."""
        try:
            return self._open(file, expected)
        except pa.ArrowInvalid:
            if expected is None or self.declared is not None:
                raise
            phrases = [phrase for phrase in drift(self._inferred(file), expected) if " is null;" not in phrase]
            if phrases:
                raise drift_error(file.location, phrases) from None
            raise

    def _open(self, file: InputFile, expected: pa.Schema | None) -> "_OpenCsv":
        given = None if self.header or self.declared is None else self.declared.names
        read = pa_csv.ReadOptions(
            use_threads=False,
            block_size=BLOCK_BYTES,
            column_names=given,
            autogenerate_column_names=not self.header and given is None,
        )
        parse = pa_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        types = {} if expected is None else dict(zip(expected.names, expected.types, strict=True))
        convert = pa_csv.ConvertOptions(column_types=types)
        return _OpenCsv(file, read, parse, convert)


class _OpenCsv:
    """One CSV file while it is read."""

    def __init__(
        self,
        file: InputFile,
        read: pa_csv.ReadOptions,
        parse: pa_csv.ParseOptions,
        convert: pa_csv.ConvertOptions,
    ) -> None:
        with open_input(file.path) as handle:
            check_text(handle, file, "CSV")
            handle.seek(max(0, handle.size() - 4))
            self._tail = bytes(handle.read(4)) if not is_packed(file) else b'"'
        self._last: pa.RecordBatch | None = None
        self._stream = open_text(file)
        self.row_count: int | None = None
        try:
            self._reader = pa_csv.open_csv(self._stream, read, parse, convert)  # type: ignore[arg-type]
        except BaseException:
            self._stream.close()
            raise
        self.schema = self._reader.schema

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Parsed rows; the first ``skip`` are parsed and dropped."""
        for batch in _gathered(self._reader):
            self._last = batch.slice(batch.num_rows - 1)
            kept = batch.slice(min(skip, batch.num_rows))
            skip -= batch.num_rows - kept.num_rows
            if kept.num_rows:
                yield kept
        if self._quote_is_open():
            raise ValueError("a quote is not closed: the last value runs to the end of the file")

    def _quote_is_open(self) -> bool:
        """The parser takes an open quote for closed by the end of the file, and all lines up to there for one value."""
        last = self._last.column(self._last.num_columns - 1)[0].as_py() if self._last is not None else None
        closed = self._tail.rstrip(b"\r\n").endswith(b'"')
        return isinstance(last, str) and last.endswith("\n") and not closed

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._stream.close()


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches, none of them empty."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            held.append(batch)
            size += batch.nbytes
        if size >= BATCH_BYTES:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
